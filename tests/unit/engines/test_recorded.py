"""Passes of padded sizes, as recordings need them, against plain ones.

CUDA graphs need a GPU. What they ask of a pass does not: here its operations are written down once and repeated on the memory they
had, so that a number that Python put in, or a tensor that has moved since, gives wrong answers here too.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightrft.config import NativeEngineConfig
from lightrft.models.attention import ATTENTION
from lightrft.strategy.engines import native
from lightrft.strategy.engines import recorded as recordings
from lightrft.strategy.engines.native import NativeEngine
from lightrft.strategy.engines.recorded import Recorder, Sizes
from lightrft.testing import tiny_model, tiny_prompt
from lightrft.types import Sampling


class Tape(TorchDispatchMode):
    """Writes down every operation inside, to be done again on the same memory. `beside`: tapes whose memory it shares."""

    REFUSED = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select")
    """What a graph cannot hold: it would wait for a number, take one from Python's memory, or have a size that depends on one."""

    def __init__(self, beside):
        super().__init__()
        self._steps, self._made, self._beside = [], [], beside

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in func.name() for name in self.REFUSED), f"{func} cannot be recorded"
        out = func(*args, **(kwargs or {}))
        self._steps.append((func, args, kwargs or {}, out))
        given = {memory(x) for x in tensors((args, kwargs))}
        self._made += [x for x in tensors(out) if memory(x) not in given and x.is_floating_point()]
        return out

    def play(self):
        for made in (x for tape in self._beside for x in tape._made):
            made.fill_(torch.nan)
        for func, args, kwargs, out in self._steps:
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(found):
    """But for weights in a layout of oneDNN's own, which have no address."""
    return [x for x in tree_leaves(found) if isinstance(x, torch.Tensor) and not x.is_mkldnn]


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


def taping():
    """As utils.device.recorded on a GPU."""
    tapes = []

    def taped(function, device, pool):
        tape = Tape(tapes)
        tapes.append(tape)
        with tape:
            result = function()

        def repeat():
            tape.play()
            return result

        return repeat

    return taped


@pytest.mark.parametrize("repeated", [False, True], ids=["computed", "repeated"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("most", [256, 7])
def test_padded_passes_give_what_plain_ones_give(monkeypatch, family, most, repeated):
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
    if repeated:
        monkeypatch.setattr(recordings, "recorded", taping())
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
