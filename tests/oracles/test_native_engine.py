"""The native engine against transformers: its greedy text, and its log-probs by one independent forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lightrft.config import NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.models.tiny import FAMILIES
from lightrft.testing import tiny_model, tiny_prompt
from lightrft.types import Completion, Prompt, Sampling

LENGTHS = [1, 5, 130, 17, 64, 65]


def engine_of(family: str, stop_ids: frozenset[int] = frozenset(), **changes: object) -> NativeEngine:
    module = tiny_model(family, attention=ATTENTION, **changes)
    return NativeEngine(
        module,
        stop_ids,
        lambda tokens: bytes(t % 256 for t in tokens).decode("latin-1"),
        NativeEngineConfig(),
    )


def prompts_of(lengths: list[int]) -> list[Prompt]:
    return [tiny_prompt(length, seed=i) for i, length in enumerate(lengths)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_transformers_generate(family: str) -> None:
    engine, reference = engine_of(family), tiny_model(family, attention="sdpa")
    prompts = prompts_of(LENGTHS)
    answers = engine.generate(prompts, Sampling(max_tokens=70, temperature=0, ignore_eos=True))
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt.token_ids])
        text = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=70, do_sample=False, eos_token_id=None
        )
        assert answer.token_ids == text[0, len(prompt.token_ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_a_whole_forward_pass(family: str) -> None:
    reference = tiny_model(family, attention="eager")
    prompts = prompts_of(LENGTHS)
    for temperature in (0.0, 0.7, 1.0):
        sampling = Sampling(n=3, max_tokens=20, temperature=temperature, ignore_eos=True)
        for prompt, answers in zip(prompts, engine_of(family).generate(prompts, sampling), strict=True):
            for answer in answers:
                assert_close(
                    torch.tensor(answer.logprobs),
                    expected(reference, prompt, answer, temperature or 1.0),
                    atol=1e-4,
                    rtol=0,
                )


@pytest.mark.parametrize("cap", [None, 5.0])
def test_a_hot_first_token_has_the_logprob_of_the_distribution_it_was_drawn_from(cap: float | None) -> None:
    """The others have theirs, at the usual temperature; also where finished answers make room for waiting ones."""
    options = {} if cap is None else {"final_logit_softcapping": cap}
    engine, reference = (
        engine_of("gemma3", **options),
        tiny_model("gemma3", attention="eager", **options),
    )
    prompts = prompts_of(LENGTHS)
    sampling = Sampling(n=3, max_tokens=6, temperature=0.7, first_token_temperature=4.0, ignore_eos=True)
    for prompt, answers in zip(prompts, engine.generate(prompts, sampling), strict=True):
        for answer in answers:
            hot, usual = (expected(reference, prompt, answer, t) for t in (4.0, 0.7))
            assert_close(torch.tensor(answer.logprobs), torch.cat([hot[:1], usual[1:]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 16, 63, 64, 65, 500])
def test_any_sliding_window_is_that_of_a_whole_forward_pass(window: int) -> None:
    engine, reference = (
        engine_of("gemma3", sliding_window=window),
        tiny_model("gemma3", attention="eager", sliding_window=window),
    )
    prompts = prompts_of([3, 62, 129])
    for prompt, answers in zip(
        prompts, engine.generate(prompts, Sampling(n=2, max_tokens=70, ignore_eos=True)), strict=True
    ):
        for answer in answers:
            assert_close(
                torch.tensor(answer.logprobs), expected(reference, prompt, answer, 1.0), atol=1e-4, rtol=0
            )


def test_a_soft_cap_of_the_final_logits_is_applied() -> None:
    engine, reference = (
        engine_of("gemma3", final_logit_softcapping=2.0),
        tiny_model("gemma3", attention="eager", final_logit_softcapping=2.0),
    )
    (prompt,) = prompts_of([9])
    ((answer,),) = engine.generate([prompt], Sampling(max_tokens=10, ignore_eos=True))
    assert_close(torch.tensor(answer.logprobs), expected(reference, prompt, answer, 1.0), atol=1e-4, rtol=0)


@torch.no_grad()
def expected(
    reference: torch.nn.Module, prompt: Prompt, answer: Completion, temperature: float
) -> torch.Tensor:
    tokens = torch.tensor([prompt.token_ids + answer.token_ids])
    logits = reference(tokens).logits[0, len(prompt.token_ids) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
