"""Pages of keys and values: live ones in front, contents follow them."""

from __future__ import annotations

import random

import pytest
import torch
from torch.testing import assert_close

from lightrft.engines.paged_attention import Step
from lightrft.engines.paged_suffix import Suffix
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


@pytest.mark.parametrize("window", [None, 7])
def test_the_end_of_a_response_attends_as_in_the_whole(window: int | None) -> None:
    """Two responses to one prompt, cut anywhere, beside a running one; against one plain softmax over everything."""
    cache = Cache()
    prompt = Stretch(cache.prompts, 0)
    prompt.extend(70)
    device, heads, size = torch.device("cpu"), 2, 8
    torch.manual_seed(0)
    lengths, cuts = (50, 41, 600), (45, 1, 20)
    whole = [torch.randn(3, heads, 70 + length, size, dtype=torch.float64) for length in lengths]
    for tokens in whole[1:]:
        tokens[:, :, :70] = whole[0][:, :, :70]
    first = [t[:, :, :70] for t in whole[:1]]
    Step([], [prompt], device).attend(Layer(), *(first[0][i][None] for i in range(3)), 0.5, window)
    owns = [Stretch(cache.answers, 70) for _ in lengths]
    for own, cut, tokens in zip(owns, cuts, whole, strict=True):  # what was read before
        own.extend(cut)
        parts = [tokens[i][None, :, 70 : 70 + cut] for i in range(3)]
        Step([], [], device, suffixes=[Suffix(prompt, own, cut)]).attend(Layer(), *parts, 0.5, window)
    new = [1, lengths[1] - cuts[1], lengths[2] - cuts[2]]
    for own, count in zip(owns, new, strict=True):
        own.extend(count)
    ends = [70 + cut + count for cut, count in zip(cuts, new, strict=True)]
    parts = [
        torch.cat([t[i][None, :, end - n : end] for t, end, n in zip(whole, ends, new, strict=True)], 2)
        for i in range(3)
    ]
    suffixes = [Suffix(prompt, own, n) for own, n in zip(owns[1:], new[1:], strict=True)]
    layout = Step([(prompt, owns[0])], [], device, suffixes=suffixes)
    found = layout.attend(Layer(), *parts, 0.5, window)[0]
    right = []
    for (q, k, v), end, n in zip(whole, ends, new, strict=True):
        scores = 0.5 * q[:, end - n : end] @ k[:, :end].transpose(1, 2)
        place = torch.arange(end)
        row = place[end - n :, None]
        hidden = (place > row) | (place <= row - (window or 10**6))
        right.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, :end]).transpose(0, 1))
    assert_close(found, torch.cat(right), atol=1e-12, rtol=0)
