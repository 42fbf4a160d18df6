"""Passes of padded sizes, as recordings need them, against plain ones. On a CPU nothing is recorded, only computed so."""

import pytest
import torch

from lightrft.config import NativeEngineConfig
from lightrft.models.attention import ATTENTION
from lightrft.strategy.engines import native
from lightrft.strategy.engines.native import NativeEngine
from lightrft.strategy.engines.recorded import Recorder, Sizes
from lightrft.testing import tiny_model, tiny_prompt
from lightrft.types import Sampling


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("most", [256, 7])
def test_padded_passes_give_what_plain_ones_give(monkeypatch, family, most):
    made = []

    class Counted(Recorder):
        def hidden(self, *args):
            found = super().hidden(*args)
            made.append(found is not None)
            return found

    def said(config):
        engine = NativeEngine(tiny_model(family, attention=ATTENTION), frozenset({7}), str, config)
        prompts = [tiny_prompt(length, seed=length) for length in (1, 90, 3, 200, 64)]
        return [a for g in engine.generate(prompts, Sampling(n=3, max_tokens=75, seed=2)) for a in g]

    plain = said(NativeEngineConfig(max_sequences=most))
    monkeypatch.setattr(native, "can_record", lambda device: True)
    monkeypatch.setattr(native, "Recorder", Counted)
    padded = said(NativeEngineConfig(max_sequences=most, record=True))
    assert sum(made) > 50
    assert [a.token_ids for a in padded] == [a.token_ids for a in plain]
    assert len({len(a.token_ids) for a in plain}) > 1
    for mine, right in zip(padded, plain, strict=True):
        torch.testing.assert_close(mine.logprobs, right.logprobs, atol=1e-5, rtol=0)
    made.clear()
    said(NativeEngineConfig(max_sequences=most))
    assert not made


def test_a_recording_serves_what_fits_and_does_not_waste_much():
    needed = Sizes(100, 20, 8, 2, 300, 3)
    assert needed.rounded() == Sizes(112, 20, 8, 2, 320, 3)
    assert needed.rounded().holds(needed)
    assert not needed.holds(needed.rounded())
    assert not Sizes(1000, 20, 8, 2, 3000, 3).holds(needed)
