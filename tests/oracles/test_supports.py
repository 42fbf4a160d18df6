"""Tokens drawn among a part of the vocabulary: the trainer's log-probs beside plain Python's, and beside those of the engine that drew."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightrft.config import NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.models.logprobs import LogProbs, logprobs
from lightrft.models.supports import Growing, Support, fault, restricted
from lightrft.models.tiny import tiny_model
from lightrft.testing import keep_double, tiny_processor, tiny_prompt, tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.trainer.responses import begun, continued, extend
from lightrft.types import Completion, Continuation, Sampling, Trajectory

SHAPE = [(5, [4, 6, 1]), (3, [2, 7])]
"""Lengths of prompts, and of the responses to each."""
TEMPERATURE = 0.7
FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "gemma3": {"final_logit_softcapping": 3.0}}
RESTRICTIONS = {
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 7},
    "min_p": {"min_p": 0.3},
    "all": {"top_k": 30, "top_p": 0.9, "min_p": 0.1, "temperature": 1.3},
    "first token": {"first_token_top_k": 3, "first_token_temperature": 2.0},
    "first token, top_p": {"first_token_top_k": 9, "top_p": 0.7},
}


def given_supports(responses: list[Trajectory]) -> None:
    """Every third token is drawn among all, the others among up to 40 that hold it; one response knows of its first tokens only, one of none."""
    draw = torch.Generator().manual_seed(0)
    for number, t in enumerate(responses):
        parts = []
        for place, token in enumerate(t.token_ids):
            count = int(torch.randint(1, 41, (), generator=draw)) if place % 3 else 0
            others = torch.randperm(256, generator=draw)[:count].tolist()
            parts.append(torch.tensor(sorted({token, *others}) if count else [], dtype=torch.int32))
        known = Growing()
        for part in parts[: len(parts) - (number == 1)]:
            known.add(part)
        t.support = known.so_far()
    responses[-2].support = None


def by_hand(logits: list[float], token: int, among: list[int]) -> tuple[float, float, float]:
    """Log-prob, entropy and sum of squares of the distribution over the tokens `among`, all if there are none."""
    among = among or list(range(len(logits)))
    top = max(logits[n] for n in among)
    weights = {n: math.exp(logits[n] - top) for n in among}
    total = math.fsum(weights.values())
    p = {n: w / total for n, w in weights.items()}
    return (
        math.log(p[token]),
        -math.fsum(x * math.log(x) for x in p.values() if x),
        math.fsum(x * x for x in p.values()),
    )


def dense(family: str, module: Any, responses: list[Trajectory]) -> list[Tensor]:
    """(L, V) logits of each response over the temperature, by transformers alone, with its prompt to itself."""
    inner = tiny_model(family, attention="sdpa", **FAMILIES[family])
    inner.load_state_dict(module.state_dict())
    found = []
    for t in responses:
        row = torch.tensor([[*t.prompt.token_ids, *t.token_ids]])
        found.append(inner(input_ids=row).logits[0, len(t.prompt.token_ids) - 1 : -1] / TEMPERATURE)
    return found


def supports(t: Trajectory) -> list[list[int]]:
    """The ids of each token, empty where it was drawn among all."""
    if t.support is None:
        return [[]] * len(t)
    counts, ids = t.support
    found = [part.tolist() for part in ids.split(counts.tolist())]
    return found + [[]] * (len(t) - len(found))


def ours(module: Any, responses: list[Trajectory], **options: Any) -> LogProbs:
    return logprobs(module, pack(responses), **{"temperature": TEMPERATURE, "max_logits": 0, **options})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_logits", [0, 700])
def test_log_probs_and_entropies_are_those_of_plain_python(family: str, max_logits: int) -> None:
    module = tiny_model(family, attention=ATTENTION, **FAMILIES[family])
    responses = tiny_trajectories(SHAPE)
    given_supports(responses)
    with torch.no_grad():
        found = ours(module, responses, max_logits=max_logits)
        logits = dense(family, module, responses)
    right = [
        by_hand(row, token, among)
        for t, rows in zip(responses, logits, strict=True)
        for row, token, among in zip(rows.tolist(), t.token_ids, supports(t), strict=True)
    ]
    for column, numbers in zip(
        (found.values, found.entropy, found.squares), zip(*right, strict=True), strict=True
    ):
        assert_close(column, torch.tensor(numbers), atol=2e-5, rtol=1e-5)
    for t in responses:
        t.support = None
    with torch.no_grad():
        assert float((ours(module, responses).values - found.values).abs().max()) > 0.5


def masked_softmax(module: Any, t: Trajectory) -> list[tuple[Tensor, Tensor]]:
    """Log-prob and entropy of each token, with gradients."""
    row = torch.tensor([[*t.prompt.token_ids, *t.token_ids]])
    logits = module(input_ids=row).logits[0, len(t.prompt.token_ids) - 1 : -1] / TEMPERATURE
    found = []
    for own, token, among in zip(logits, t.token_ids, supports(t), strict=True):
        log_p = torch.log_softmax(own[among] if among else own, -1)
        found.append((log_p[among.index(token) if among else token], -(log_p.exp() * log_p).sum()))
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_a_masked_softmax(masked: bool) -> None:
    """In float64, by autograd through transformers' own logits; `masked`: with tokens between that nobody chose."""
    responses = tiny_trajectories(SHAPE)
    given_supports(responses)
    if masked:
        responses[1].mask[2:4] = [False, False]
    chosen = torch.tensor([x for t in responses for x in t.mask])
    first = torch.linspace(-1, 1, len(chosen), dtype=torch.float64) * chosen
    second = first.flip(0) * chosen
    with keep_double():
        module = tiny_model("llama", attention=ATTENTION).double()
        found = ours(module, responses, max_logits=900)
        ((found.values * first).sum() + (found.entropy * second).sum()).backward()
        plain = tiny_model("llama", attention="sdpa").double()
        pairs = [pair for t in responses for pair in masked_softmax(plain, t)]
        values, entropies = (torch.stack(column) for column in zip(*pairs, strict=True))
        ((values * first).sum() + (entropies * second).sum()).backward()
    right = {name: p.grad for name, p in plain.named_parameters()}
    for name, p in module.named_parameters():
        assert_close(p.grad, right[name], atol=1e-10, rtol=1e-7)


def sampled(module: Any, sampling: Sampling) -> list[Trajectory]:
    processor = tiny_processor()
    engine = NativeEngine(module, frozenset(), processor.text, NativeEngineConfig(prefill_tokens=8))
    prompts = [tiny_prompt(n, seed=n) for n in (7, 3)]
    found = engine.generate(prompts, replace(sampling, n=4, max_tokens=12, seed=1, ignore_eos=True))
    assert not any(fault(c) for group in found for c in group if sampling.support)
    return [
        begun(prompt, place, one, processor)
        for place, (prompt, group) in enumerate(zip(prompts, found, strict=True))
        for one in group
    ]


@pytest.mark.parametrize("name", RESTRICTIONS)
def test_the_trainer_says_what_the_engine_that_drew_said(name: str) -> None:
    """Under the same weights the log-prob of each token, and under others ratios over the same tokens; without supports they are apart."""
    module = tiny_model("llama", attention=ATTENTION)
    sampling = Sampling(support=True, **RESTRICTIONS[name])
    options = {
        "temperature": sampling.temperature,
        "first_token_temperature": sampling.first_token_temperature,
    }
    responses = sampled(module, sampling)
    behavior = torch.tensor([x for t in responses for x in t.behavior])
    with torch.no_grad():
        assert_close(ours(module, responses, **options).values, behavior, atol=2e-5, rtol=0)
    for t in responses:
        t.support = None
    with torch.no_grad():
        assert float((ours(module, responses, **options).values - behavior).abs().max()) > 0.1
    plain = sampled(module, replace(sampling, support=False))
    assert [t.token_ids for t in plain] == [t.token_ids for t in responses]
    assert all(t.support is None for t in plain)


def test_an_answer_in_two_calls_has_the_support_of_one() -> None:
    module, processor = tiny_model("llama", attention=ATTENTION), tiny_processor()
    engine = NativeEngine(module, frozenset(), processor.text, NativeEngineConfig())
    prompt, sampling = tiny_prompt(6), Sampling(max_tokens=10, ignore_eos=True, top_p=0.5, support=True)
    (whole,) = engine.generate([prompt], sampling)[0]
    (first,) = engine.generate([prompt], replace(sampling, max_tokens=4))[0]
    t = begun(prompt, 0, first, processor)
    (rest,) = engine.generate([continued(t, 6)], sampling)[0]
    extend(t, rest, processor)
    assert t.token_ids == whole.token_ids
    assert whole.support is not None
    assert t.support is not None
    for mine, right in zip(t.support, whole.support, strict=True):
        assert torch.equal(mine, right)


def test_what_was_sampled_by_an_engine_that_told_nothing_was_drawn_among_all() -> None:
    """As by a run before rollout.keep_sampling_mask was set, or by an environment."""
    processor = tiny_processor()
    support: Support = (torch.tensor([2], dtype=torch.int32), torch.tensor([7, 9], dtype=torch.int32))
    t = begun(tiny_prompt(3), 0, Completion([4, 5], [-1.0, -1.0], "length"), processor)
    assert t.support is None
    extend(t, Completion([9], [-1.0], "length", support=support), processor)
    assert supports(t) == [[], [], [7, 9]]
    extend(t, Completion([3], [-1.0], "length"), processor)
    assert supports(t) == [[], [], [7, 9], []]
    extend(t, Completion([3], [-1.0], "length", support=(torch.tensor([1]), torch.tensor([3]))), processor)
    assert supports(t) == [[], [], [7, 9], [], [3]]
    assert t.support is not None
    assert {part.dtype for part in t.support} == {torch.int32}, "whatever an engine of a user's says it in"


@pytest.mark.parametrize(
    ("counts", "ids", "told"),
    [
        ([2, 0], [5, 8], ""),
        ([2, 1], [5, 8, 6], ""),
        ([2], [5, 8], "a support of 1 counts, 2 in all, and 2 ids for 2 tokens"),
        ([2, 2], [5, 8, 6], "a support of 2 counts, 4 in all, and 3 ids for 2 tokens"),
        ([2, 1], [5, 8, 5], "1 tokens that are not in their own support"),
        ([1, 2], [4, 6, 5], "1 tokens that are not in their own support"),
    ],
)
def test_what_an_engine_tells_is_checked(counts: list[int], ids: list[int], told: str) -> None:
    support = torch.tensor(counts, dtype=torch.int32), torch.tensor(ids, dtype=torch.int32)
    assert fault(Completion([5, 6], [-1.0, -1.0], "stop", support=support)) == told
    assert fault(Completion([5, 6], [-1.0, -1.0], "stop")) == "no support"
    assert fault(Completion([], [], "stop")) == ""


@pytest.mark.parametrize(
    ("support", "told"),
    [
        (([2, 0], [5, 8]), "a support of type tuple, and not a tuple of two tensors"),
        (torch.zeros(2, 2), "a support of type Tensor, and not a tuple of two tensors"),
        ((torch.tensor([2.0, 0.0]), torch.tensor([5, 8])), "whose counts are torch.float32 (2,) on cpu"),
        ((torch.tensor([2, 0]), torch.tensor([[5, 8]])), "whose ids are torch.int64 (1, 2) on cpu"),
        (
            (torch.tensor([2, 0]), torch.tensor([5, 8], device="meta")),
            "whose ids are torch.int64 (2,) on meta",
        ),
        ((torch.tensor([3, -1]), torch.tensor([5, 8])), "a support with -1 among its counts"),
        ((torch.tensor([2, 0]), torch.tensor([5, -8])), "a support with -8 among its ids"),
    ],
)
def test_what_is_no_support_at_all_is_told_in_words(support: Any, told: str) -> None:
    assert told in fault(Completion([5, 6], [-1.0, -1.0], "stop", support=support))


def test_a_token_that_sampling_restricts_is_not_drawn_among_all() -> None:
    """Each of top-p, the first one of first_token_top_k where a response begins, none of temperature 0."""
    support: Support = torch.tensor([0, 1, 0]), torch.tensor([6])
    completion = Completion([5, 6, 7], [-1.0] * 3, "stop", support=support)
    fresh = tiny_prompt(3)
    going_on = replace(fresh, continuation=Continuation(2, 0, 5))
    first, cold = Sampling(first_token_top_k=4), Sampling(top_p=0.5, temperature=0)
    wanted = [(Sampling(top_p=0.5), going_on, 3), (first, fresh, 1), (first, going_on, 0), (cold, fresh, 0)]
    for sampling, prompt, count in wanted:
        assert restricted(sampling, prompt, 3) == count
    assert fault(completion, 3) == "no ids for 2 tokens, which were drawn among a part of the vocabulary"
    assert fault(completion, 1).startswith("no ids for 1 tokens")
    assert fault(completion) == ""
