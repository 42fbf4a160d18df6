"""Passes of padded sizes, as recordings need them, against plain ones.

CUDA graphs need a GPU. What they ask of a pass does not: here its operations are written down once and repeated on the memory they
had, so that a number that Python put in, or a tensor that has moved since, gives wrong answers here too.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from lightrft.config import NativeEngineConfig
from lightrft.engines import cuda_graphs as recordings
from lightrft.engines import native, pages, scheduler
from lightrft.engines.cuda_graphs import GraphRunner, Sizes
from lightrft.engines.native import NativeEngine
from lightrft.engines.pages import Pool, Stretch
from lightrft.engines.sampling import FEWEST_CANDIDATES, MOST_CANDIDATES
from lightrft.models.attention import ATTENTION
from lightrft.testing import check_engine, tiny_model, tiny_prompt
from lightrft.types import Continuation, Sampling


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


def taken_over(longer):
    """Of pages.py: what a larger tensor replaces is soon another's memory."""

    def longer_and_gone(tensor, size):
        out = longer(tensor, size)
        tensor.fill_(torch.nan)
        return out

    return longer_and_gone


ALL, FEW, ONE = (
    (256, (1, 90, 3, 200, 64), Sampling(n=3, max_tokens=75, seed=2)),
    (7, (1, 90, 3, 200, 64), Sampling(n=3, max_tokens=75, seed=2)),
    (1, (10, 300, 12), Sampling(n=2, max_tokens=75, seed=2)),
)
"""Answers at a time, and what is asked: in ONE the cache grows as a long question is read, and the next needs little of it."""


@pytest.mark.parametrize("repeated", [False, True], ids=["computed", "repeated"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(("most", "lengths", "sampling"), [ALL, FEW, ONE], ids=["all", "few", "one"])
def test_padded_passes_give_what_plain_ones_give(monkeypatch, family, most, lengths, sampling, repeated):
    made = []

    class Counted(GraphRunner):
        def hidden(self, *args):
            found = super().hidden(*args)
            made.append(found is not None)
            return found

    def said(config):
        engine = NativeEngine(tiny_model(family, attention=ATTENTION), frozenset({7}), str, config)
        prompts = [tiny_prompt(length, seed=length) for length in lengths]
        return [a for g in engine.generate(prompts, sampling) for a in g]

    plain = said(NativeEngineConfig(max_sequences=most, cuda_graphs="off"))
    monkeypatch.setattr(scheduler, "can_record", lambda device: True)
    monkeypatch.setattr(scheduler, "GraphRunner", Counted)
    if repeated:
        monkeypatch.setattr(recordings, "recorded", taping())
        monkeypatch.setattr(pages, "_longer", taken_over(pages._longer))
    padded = said(NativeEngineConfig(max_sequences=most))
    assert sum(made) > 50
    assert [a.token_ids for a in padded] == [a.token_ids for a in plain]
    assert len({len(a.token_ids) for a in plain}) > 1
    for mine, right in zip(padded, plain, strict=True):
        torch.testing.assert_close(mine.logprobs, right.logprobs, atol=1e-5, rtol=0)
    made.clear()
    said(NativeEngineConfig(max_sequences=most, cuda_graphs="off"))
    assert not made


def decode(tokens):
    return bytes(t % 256 for t in tokens).decode("latin-1")


def drawn_in_turns(engine, seeds):
    """Two turns of each of several conversations, in which some responses ended early: tokens, and how many were read."""
    stop = Sampling(n=2, max_tokens=21, seed=3, stop_token_ids=tuple(range(0, 260, 9)))
    with engine.keeping():
        prompts = [tiny_prompt(20 + n, seed=n) for n in range(seeds)]
        first = engine.generate(prompts, stop)
        said = [answer for group in first for answer in group]
        more = [
            replace(prompt, token_ids=[*prompt.token_ids, *answer.token_ids, 5, 6, 7],
                    continuation=Continuation(len(answer.token_ids) + 3, answer.stream, 15, [True] * len(answer.token_ids) + [False] * 3))
            for prompt, group in zip(prompts, first, strict=True) for answer in group
        ]  # fmt: skip
        said += [answer for group in engine.generate(more, stop) for answer in group]
    return said, engine.read_tokens


def test_what_is_drawn_behind_the_end_of_a_response_is_not_there_for_its_next_turn(monkeypatch):
    """Eight tokens are drawn before any is looked at: those behind an end leave neither tokens nor pages."""
    found = []
    for records in (False, True):
        monkeypatch.setattr(scheduler, "can_record", lambda device, on=records: on)
        engine = NativeEngine(
            tiny_model("llama", attention=ATTENTION), frozenset({7}), str, NativeEngineConfig()
        )
        found.append(drawn_in_turns(engine, 4))
        assert len(engine._cache.answers) == 0
    (plain, read), (ahead, also_read) = found
    assert also_read == read  # those behind an end do not count
    assert [a.token_ids for a in ahead] == [a.token_ids for a in plain]
    assert len({len(a.token_ids) for a in plain}) > 4  # ends at all places of a draw
    for mine, right in zip(ahead, plain, strict=True):
        torch.testing.assert_close(mine.logprobs, right.logprobs, atol=1e-5, rtol=0)


def test_fewer_are_drawn_at_once_while_prompts_wait_for_a_place(monkeypatch):
    monkeypatch.setattr(scheduler, "can_record", lambda device: True)
    engine = NativeEngine(
        tiny_model("llama", attention=ATTENTION), frozenset(), str, NativeEngineConfig(max_sequences=1)
    )
    rollout = scheduler.Scheduler(
        engine._model, [tiny_prompt(9), tiny_prompt(7)], Sampling(max_tokens=9), engine._kept
    )
    drawn = {True: set(), False: set()}
    with torch.no_grad():
        waits, before = True, 0
        while rollout.step():
            drawn[waits].add(rollout.tokens - before)
            waits, before = bool(rollout._questions), rollout.tokens
    assert drawn == {True: {1, 2}, False: {8}}


@pytest.mark.parametrize(
    ("sampling", "last"), [
        (Sampling(n=3, max_tokens=26, top_p=0.999, temperature=0.1), FEWEST_CANDIDATES),
        (Sampling(n=3, max_tokens=26, top_p=0.999, temperature=0.15), MOST_CANDIDATES),
        (Sampling(n=3, max_tokens=26, min_p=1e-4), 0),
    ], ids=["now and then", "often", "always, min_p"],
)  # fmt: skip
def test_tokens_are_drawn_ahead_where_candidates_do_not_suffice_too(monkeypatch, sampling, last):
    """Of 3000 tokens the restrictions leave more than 256 now and then, or always: drawn again, by the plain way, and the same."""
    model, said, unsure, looked = tiny_model("llama", attention=ATTENTION, vocab_size=3000), [], [], []

    class Noting(scheduler.Scheduler):
        def _draw_ahead(self):
            found = super()._draw_ahead()
            unsure.append(bool(self._unsure))
            looked.append(self._candidates)
            return found

    monkeypatch.setattr(native, "Scheduler", Noting)
    for records in (False, True):
        monkeypatch.setattr(scheduler, "can_record", lambda device, on=records: on)
        engine = NativeEngine(model, frozenset({7}), str, NativeEngineConfig())
        prompts = [tiny_prompt(9, seed=n) for n in range(3)]
        said.append([a for group in engine.generate(prompts, sampling) for a in group])
    plain, ahead = said
    assert [a.token_ids for a in ahead] == [a.token_ids for a in plain]
    for mine, right in zip(ahead, plain, strict=True):
        torch.testing.assert_close(mine.logprobs, right.logprobs, atol=1e-5, rtol=0)
    assert any(unsure)
    if last:
        assert not all(unsure)
        assert set(looked) == {last}
    else:  # where even the most do not suffice, nothing is drawn ahead in vain from then on
        assert looked == [MOST_CANDIDATES, 0]


@pytest.mark.extended
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_recorded_passes_that_draw_ahead_keep_the_contract(monkeypatch, family):
    monkeypatch.setattr(scheduler, "can_record", lambda device: True)
    engine = NativeEngine(tiny_model(family, attention=ATTENTION), frozenset(), decode, NativeEngineConfig())
    found = check_engine(engine, tiny_model(family, attention="sdpa"), decode)
    assert found.ok, str(found)


def test_a_stretch_that_shrinks_gives_back_the_pages_that_it_does_not_need():
    pool = Pool(4)
    one, other = Stretch(pool, 0), Stretch(pool, 0)
    one.extend(9)
    other.extend(5)
    one.shrink(4)
    assert (one.length, len(one.pages), len(pool)) == (5, 2, 4)
    assert sorted(page.index for page in [*one.pages, *other.pages]) == [0, 1, 2, 3]
    one.shrink(0)
    one.extend(3)
    assert (one.length, len(one.pages), len(pool)) == (8, 2, 4)
    assert one.newest == (one.pages[1].index, 3)
    one.shrink(8)
    assert (one.length, one.pages, len(pool)) == (0, [], 2)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic rotary positions"),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 32}, "experts"),
    ],
)  # fmt: skip
def test_models_that_wait_for_the_device_are_not_recorded_and_refused_if_they_should_be(kind, changes, told):
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 260}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **shape, **changes), attn_implementation=ATTENTION
    )
    NativeEngine(model, frozenset(), str, NativeEngineConfig())  # auto: plain passes
    with pytest.raises(ValueError, match=f"rollout.native.cuda_graphs=on cannot record a model with {told}"):
        NativeEngine(model, frozenset(), str, NativeEngineConfig(cuda_graphs="on"))


def test_a_recording_serves_what_fits_and_does_not_waste_much():
    needed = Sizes(100, 20, 8, 2, 300, 3)
    assert needed.rounded() == Sizes(112, 20, 8, 2, 320, 3)
    assert needed.rounded().holds(needed)
    assert not needed.holds(needed.rounded())
    assert not Sizes(1000, 20, 8, 2, 3000, 3).holds(needed)
