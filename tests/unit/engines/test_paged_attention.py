"""Pages of keys and values: live ones in front, contents follow them."""

from __future__ import annotations

import random

import torch
from torch.testing import assert_close

from lightrft.engines.paged_attention import Step
from lightrft.engines.pages import Cache, Page, Pool, Stretch


class Layer:
    """What an attention module says of itself."""

    layer_idx = 3


def test_contents_follow_their_pages_when_gaps_close() -> None:
    pool, draw = Pool(2), random.Random(0)
    live: dict[Page, float] = {}
    for number in range(200):
        if live and draw.random() < 0.45:
            gone = draw.sample(list(live), draw.randint(1, min(4, len(live))))
            pool.give_back(gone)
            for page in gone:
                del live[page]
        else:
            page = pool.take()
            live[page] = float(number)
            token = torch.full((1, 1, 1), float(number))
            pool.write(0, (torch.tensor([page.index]), torch.tensor([1])), token, -token, 2.0)
        assert sorted(page.index for page in live) == list(range(len(pool)))
        if live:
            keys, values = pool.read(0)
            for page, content in live.items():
                assert (keys[page.index, 0, 1, 0], values[page.index, 0, 1, 0]) == (2 * content, -content)


def test_memory_is_kept_by_clear_and_freed_by_offload() -> None:
    cache = Cache()
    stretch = Stretch(cache.prompts, 0)
    stretch.extend(65)
    assert len(stretch.pages) == 2
    key = torch.ones(1, 2, 65, 8)
    Step([], [stretch], torch.device("cpu")).attend(Layer(), key, key, key, 1.0, None)
    assert cache.nbytes() == 2 * (2 * 2 * 64 * 8) * 4
    cache.clear()
    assert cache.nbytes() > 0
    cache.offload()
    assert cache.nbytes() == 0


def test_bfloat16_keys_are_kept_in_float32() -> None:
    pool = Pool(4)
    place = (torch.tensor([pool.take().index]), torch.tensor([0]))
    pool.write(
        0, place, torch.ones(1, 1, 1, dtype=torch.bfloat16), torch.ones(1, 1, 1, dtype=torch.bfloat16), 1 / 3
    )
    keys, values = pool.read(0)
    assert_close(keys[0, 0, 0, 0], torch.tensor(1 / 3))
    assert values.dtype == torch.bfloat16
