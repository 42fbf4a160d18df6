"""Scheduling, stopping, seeds, weights and memory of the native engine, on tiny random models."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import nn

from lightrft.config import NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.testing import tiny_model, tiny_processor, tiny_prompt
from lightrft.types import Completion, Prompt, Sampling

MIXED = [3, 40, 1, 129, 5]


def engine_with(
    module: nn.Module | None = None,
    stop_ids: Sequence[int] = (),
    max_sequences: int = 256,
    prefill_tokens: int = 2048,
    pack: bool = True,
) -> NativeEngine:
    module = tiny_model("qwen3", attention=ATTENTION) if module is None else module
    config = NativeEngineConfig(max_sequences=max_sequences, prefill_tokens=prefill_tokens, pack_weights=pack)
    return NativeEngine(module, frozenset(stop_ids), tiny_processor().text, config)


def prompts_of(lengths: Sequence[int]) -> list[Prompt]:
    return [tiny_prompt(length, seed=i) for i, length in enumerate(lengths)]


def engine_decoding(decode: Callable[[Sequence[int]], str]) -> NativeEngine:
    return NativeEngine(tiny_model("llama", attention=ATTENTION), frozenset(), decode, NativeEngineConfig())


def latin(tokens: Sequence[int]) -> str:
    return bytes(t % 256 for t in tokens).decode("latin-1")


def tokens_of(answers: list[list[Completion]]) -> list[list[list[int]]]:
    return [[a.token_ids for a in group] for group in answers]


@pytest.mark.parametrize(("max_sequences", "prefill_tokens"), [(1, 100), (3, 1), (3, 100), (64, 50)])
def test_text_does_not_depend_on_how_many_run_at_once(max_sequences: int, prefill_tokens: int) -> None:
    sampling = Sampling(n=3, max_tokens=12, seed=7)
    whole = engine_with(stop_ids=range(40)).generate(prompts_of(MIXED), sampling)
    parts = engine_with(
        stop_ids=range(40), max_sequences=max_sequences, prefill_tokens=prefill_tokens
    ).generate(prompts_of(MIXED), sampling)
    assert tokens_of(parts) == tokens_of(whole)


def test_text_does_not_depend_on_the_other_prompts() -> None:
    prompts = prompts_of([9, 30, 9])
    other = [prompts[0], tiny_prompt(100, seed=55), tiny_prompt(4, seed=56)]
    first, second = (
        tokens_of(engine_with().generate(p, Sampling(n=4, max_tokens=20))) for p in (prompts, other)
    )
    assert first[0] == second[0]
    assert first[1:] != second[1:]


def test_greedy_text_moves_with_its_prompt_when_the_batch_is_permuted() -> None:
    prompts, sampling = prompts_of(MIXED), Sampling(max_tokens=20, temperature=0)
    forward, backward = (
        engine_with().generate(prompts, sampling),
        engine_with().generate(prompts[::-1], sampling),
    )
    assert tokens_of(forward) == tokens_of(backward)[::-1]


def test_siblings_differ_and_a_seed_repeats() -> None:
    engine, prompts = engine_with(), prompts_of([10])
    (answers,) = tokens_of(engine.generate(prompts, Sampling(n=8, max_tokens=10, seed=1)))
    assert len({tuple(a) for a in answers}) == 8
    assert tokens_of(engine.generate(prompts, Sampling(n=8, max_tokens=10, seed=1))) == [answers]
    assert tokens_of(engine.generate(prompts, Sampling(n=8, max_tokens=10, seed=2))) != [answers]


def test_fewer_samples_are_the_first_of_more() -> None:
    prompts = prompts_of([10, 20])
    more, fewer = (tokens_of(engine_with().generate(prompts, Sampling(n=n, max_tokens=10))) for n in (5, 2))
    assert [group[:2] for group in more] == fewer


def test_three_hundred_requests_go_through_sixteen_places() -> None:
    engine, seen = engine_with(stop_ids=range(30), max_sequences=16), []
    prompts = prompts_of([1 + i % 9 for i in range(100)])
    answers = engine.generate(
        prompts, Sampling(n=3, max_tokens=30), lambda finished, tokens: seen.append((finished, tokens))
    )
    flat = [a for group in answers for a in group]
    assert len(flat) == 300
    assert seen[-1] == (300, sum(len(a.token_ids) for a in flat))
    assert all(a <= b for a, b in pairwise(seen))
    assert max(b[1] - a[1] for a, b in pairwise(seen)) == 16
    assert len(engine._cache.prompts) == len(engine._cache.answers) == 0


def test_an_answer_ends_with_the_stop_token_it_sampled() -> None:
    answers = engine_with(stop_ids=range(60)).generate(prompts_of(MIXED), Sampling(n=4, max_tokens=200))
    for answer in (a for group in answers for a in group):
        assert answer.finish == "stop"
        assert answer.token_ids[-1] < 60
        assert all(token >= 60 for token in answer.token_ids[:-1])
        assert len(answer.logprobs) == len(answer.token_ids)


def test_an_end_token_drawn_first_ends_the_answer_however_hot_it_was_drawn() -> None:
    """FIRE: at a temperature this high all 260 tokens are equally likely, and half of them end the answer."""
    engine = engine_with(stop_ids=range(0, 260, 2))
    (answers,) = engine.generate(prompts_of([5]), Sampling(n=64, max_tokens=4, first_token_temperature=1e6))
    ended = [a for a in answers if a.token_ids[0] % 2 == 0]
    assert 16 < len(ended) < 48
    assert all(a.finish == "stop" and len(a.token_ids) == 1 for a in ended)


def test_the_first_token_can_be_drawn_among_the_likeliest_only() -> None:
    """FIRE: hot, but among 4 of 260 tokens; the second token is drawn as if nothing had happened."""
    engine = engine_with(stop_ids=[])
    (answers,) = engine.generate(
        prompts_of([5]), Sampling(n=200, max_tokens=2, first_token_temperature=1e6, first_token_top_k=4)
    )
    first = Counter(a.token_ids[0] for a in answers)
    assert len(first) == 4
    assert min(first.values()) > 25, "each is drawn 50 times on average, give or take 6"
    assert all(a.logprobs[0] == pytest.approx(-math.log(4), abs=1e-4) for a in answers)
    assert len({a.token_ids[1] for a in answers}) > 50
    (greedy,) = engine.generate(prompts_of([5]), Sampling(max_tokens=1, temperature=0.0))
    assert greedy[0].token_ids[0] in first


def test_a_truncated_answer_gets_no_end_token() -> None:
    ((answer),) = engine_with(stop_ids=[256]).generate(prompts_of([5]), Sampling(max_tokens=1))[0]
    assert (answer.finish, len(answer.token_ids)) == ("length", 1)
    assert answer.token_ids[-1] != 256


def test_a_stop_token_at_the_last_place_counts_as_stop() -> None:
    (free,) = engine_with().generate(prompts_of([5]), Sampling(max_tokens=4))[0]
    (answer,) = engine_with(stop_ids=[free.token_ids[3]]).generate(prompts_of([5]), Sampling(max_tokens=4))[0]
    assert answer.finish == "stop"


def test_own_stop_tokens_are_obeyed_and_ignore_eos_overrides_all() -> None:
    prompts, every = prompts_of([5]), tuple(range(260))
    (stopped,) = engine_with().generate(prompts, Sampling(max_tokens=9, stop_token_ids=every))[0]
    assert (stopped.finish, len(stopped.token_ids)) == ("stop", 1)
    sampling = Sampling(max_tokens=9, stop_token_ids=every, stop=("",), ignore_eos=True)
    (whole,) = engine_with(stop_ids=every).generate(prompts, sampling)[0]
    assert (whole.finish, len(whole.token_ids)) == ("length", 9)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_text_ends_the_answer_at_the_token_that_completes_it(length: int) -> None:
    engine, prompts = engine_decoding(latin), prompts_of([6])
    (free,) = engine.generate(prompts, Sampling(max_tokens=60))[0]
    text = latin(free.token_ids[40 : 40 + length])
    (answer,) = engine.generate(prompts, Sampling(max_tokens=60, stop=("never there", text)))[0]
    assert answer.finish == "stop"
    assert answer.token_ids == free.token_ids[: len(answer.token_ids)]
    assert text in latin(answer.token_ids)
    assert text not in latin(answer.token_ids[:-1])


def test_a_stop_character_split_between_two_tokens_is_found() -> None:
    def decode(tokens: Sequence[int]) -> str:
        return bytes(b"\xc3\xa9"[t % 2] for t in tokens).decode(errors="replace")

    (answer,) = engine_decoding(decode).generate(prompts_of([6]), Sampling(max_tokens=100, stop=("\u00e9",)))[
        0
    ]
    assert answer.finish == "stop"
    assert [t % 2 for t in answer.token_ids[-2:]] == [0, 1]


def test_a_stop_text_is_found_among_tokens_without_text() -> None:
    def decode(tokens: Sequence[int]) -> str:
        return "".join("ab"[t % 2] for t in tokens if t > 240)

    (answer,) = engine_decoding(decode).generate(prompts_of([6]), Sampling(max_tokens=400, stop=("ab",)))[0]
    assert answer.finish == "stop"
    assert len(answer.token_ids) > 20
    assert decode(answer.token_ids).endswith("ab")
    assert decode(answer.token_ids).count("ab") == 1


@pytest.mark.parametrize("pack", [True, False])
def test_new_weights_are_used_at_once(pack: bool) -> None:
    module = tiny_model("llama", attention=ATTENTION)
    engine, prompts, sampling = (
        engine_with(module, pack=pack),
        prompts_of([6]),
        Sampling(max_tokens=8, temperature=0),
    )
    before = engine.generate(prompts, sampling)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    fresh = tiny_model("llama", attention=ATTENTION)
    fresh.load_state_dict(module.state_dict())
    after = engine.generate(prompts, sampling)
    assert after[0][0].logprobs != before[0][0].logprobs
    assert after == engine_with(fresh, pack=pack).generate(prompts, sampling)


def test_load_weights_copies_what_is_not_its_own_already() -> None:
    module, other = (tiny_model("llama", seed=seed, attention=ATTENTION) for seed in (0, 1))
    engine, addresses = engine_with(module), [p.data_ptr() for p in module.parameters()]
    engine.load_weights(module.named_parameters())
    engine.load_weights((name, p.detach()) for name, p in other.named_parameters())
    assert [p.data_ptr() for p in module.parameters()] == addresses
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"no weight named 'nonsense'"):
        engine.load_weights([("nonsense", torch.zeros(1))])


def test_completions_carry_the_weight_version() -> None:
    engine = engine_with()
    engine.weight_version = 17
    assert engine.generate(prompts_of([4]), Sampling(max_tokens=2))[0][0].weight_version == 17


def test_the_module_is_left_as_it_was() -> None:
    module = tiny_model("llama", attention=ATTENTION).train()
    module.model.layers[0].eval()
    modes = [m.training for m in module.modules()]
    engine_with(module).generate(prompts_of([4]), Sampling(max_tokens=2))
    assert [m.training for m in module.modules()] == modes
    assert not any("forward" in m.__dict__ for m in module.modules())
    module(torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()


def test_the_cache_gives_its_memory_back() -> None:
    engine = engine_with()
    cache = engine.parts()["cache"]
    assert cache.nbytes() == 0
    first = engine.generate(prompts_of(MIXED), Sampling(n=2, max_tokens=66))
    assert cache.nbytes() > 0
    cache.offload()
    assert cache.nbytes() == 0
    cache.onload()
    assert engine.generate(prompts_of(MIXED), Sampling(n=2, max_tokens=66)) == first


def test_an_interrupted_call_leaves_nothing_behind() -> None:
    engine = engine_with()

    def interrupt(finished: int, tokens: int) -> None:
        if tokens > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts_of(MIXED), Sampling(max_tokens=66), interrupt)
    assert len(engine._cache.prompts) == len(engine._cache.answers) == engine._cache.nbytes() == 0
    assert not any("forward" in m.__dict__ for m in engine._module.modules())
    assert len(engine.generate(prompts_of([3]), Sampling(max_tokens=2))[0][0].token_ids) == 2


def test_a_bfloat16_model_gives_float32_logprobs_near_those_of_float32() -> None:
    module = tiny_model("llama", attention=ATTENTION)
    sampling, prompts = Sampling(n=2, max_tokens=20, temperature=0), prompts_of([100, 7])
    exact = engine_with(module).generate(prompts, sampling)
    rounded = engine_with(module.to(torch.bfloat16)).generate(prompts, sampling)
    assert abs(exact[0][0].logprobs[0] - rounded[0][0].logprobs[0]) < 0.1
    assert rounded[0][0].logprobs[0] != torch.tensor(rounded[0][0].logprobs[0]).bfloat16().item()


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        (Prompt("empty", [], [], None, "t"), Sampling(), "prompt 'empty' has no tokens"),
        (tiny_prompt(3), Sampling(max_tokens=0), "max_tokens=0: both must be at least 1"),
        (tiny_prompt(3), Sampling(temperature=-1.0), "need temperature, first_token_temperature"),
        (tiny_prompt(3), Sampling(top_p=0.0), "0 < top_p <= 1"),
    ],
)
def test_what_cannot_be_answered_is_refused(prompt: Prompt, sampling: Sampling, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine_with().generate([prompt], sampling)


def test_a_model_with_another_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="Load the model with attn_implementation='lightrft_packed'"):
        engine_with(tiny_model("llama", attention="sdpa"))


def test_no_prompts_give_no_answers() -> None:
    assert engine_with().generate([], Sampling()) == []


def test_sampled_tokens_follow_the_models_distribution() -> None:
    module = tiny_model("llama", attention=ATTENTION, vocab_size=12, eos_token_id=0)
    prompt = Prompt("p", [1, 2, 3], [], None, "t")
    count = 4000
    (answers,) = engine_with(module).generate([prompt], Sampling(n=count, max_tokens=1, seed=3))
    with torch.no_grad():
        expected = count * module(torch.tensor([prompt.token_ids])).logits[0, -1].softmax(-1)
    observed = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=12)
    assert (
        (observed - expected) ** 2 / expected
    ).sum() < 31.3  # 0.1 % point of chi-square with 11 degrees of freedom
