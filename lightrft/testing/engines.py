"""What every engine must do, as one list of checks: for ours, and for the author of another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightrft.engines.base import NONE, Engine
from lightrft.models.logprobs import logprobs
from lightrft.models.supports import fault
from lightrft.testing.bench import LOADED, Bench, Check
from lightrft.testing.checks import Checked, LackingError, lacks, run_checks
from lightrft.trainer.batching import pack
from lightrft.trainer.responses import continued
from lightrft.types import Completion, Continuation, Prompt, Sampling, Trajectory

TEMPERATURES = (1.0, 0.7)


def greedy_text_is_that_of_generate(bench: Bench) -> None:
    prompts = bench.prompts()
    for prompt, answer in zip(prompts, bench.greedy(prompts), strict=True):
        right = bench.expected(prompt)
        lacks(
            answer.token_ids != right,
            f"{answer.token_ids} instead of {right} ({len(prompt.token_ids)} tokens asked)",
        )


def each_token_has_the_logprob_of_the_distribution_it_was_drawn_from(bench: Bench) -> None:
    prompts = bench.prompts()
    for temperature in TEMPERATURES:
        sampling = Sampling(n=3, max_tokens=10, temperature=temperature, ignore_eos=True, seed=3)
        for prompt, answers in zip(prompts, bench.engine.generate(prompts, sampling), strict=True):
            for answer in answers:
                lacks(
                    len(answer.logprobs) != len(answer.token_ids),
                    f"{len(answer.logprobs)} log-probs for {len(answer.token_ids)} tokens",
                )
                right = bench.logprobs(prompt, answer, temperature)
                apart = float((torch.tensor(answer.logprobs) - right).abs().max())
                lacks(apart > bench.tolerance, f"{apart:.2g} off at temperature {temperature}")


def each_token_tells_what_it_was_drawn_among(bench: Bench) -> None:
    """A response that goes on tells it too; the whole vocabulary where the likeliest token is taken."""
    sampling = Sampling(n=2, max_tokens=8, top_p=0.8, seed=3, ignore_eos=True, support=True)
    prompts = bench.prompts()
    for prompt, answers in zip(prompts, bench.engine.generate(prompts, sampling), strict=True):
        for answer in answers:
            _among_the_likeliest(bench, prompt, answer, sampling.top_p)
        going_on = continued(_answer(prompt, answers[0]), 4)
        ((rest,),) = bench.engine.generate([going_on], sampling)
        _among_the_likeliest(bench, replace(prompt, token_ids=going_on.token_ids), rest, sampling.top_p)
    for answer in bench.greedy(prompts, top_p=0.8, support=True):
        lacks(bool(told := fault(answer)), f"{told} of a greedy response")
        assert answer.support is not None
        lacks(bool(answer.support[0].any()), "a greedy token that was drawn among a part of the vocabulary")


def _among_the_likeliest(bench: Bench, prompt: Prompt, answer: Completion, top_p: float) -> None:
    """The support of each token is the smallest set with so much mass, and its log-prob is that among them."""
    lacks(bool(told := fault(answer, len(answer.token_ids))), f"{told} with top_p={top_p:g}")
    assert answer.support is not None
    counts, ids = answer.support
    rows = bench.distributions(prompt, answer, 1.0)
    places = zip(rows, ids.long().split(counts.tolist()), answer.token_ids, answer.logprobs, strict=True)
    for row, among, token, logprob in places:
        mass, least = float(row[among].exp().sum()), float(row[among].exp().min())
        lacks(mass < top_p - bench.tolerance, f"a support with the mass {mass:.3g} with top_p={top_p:g}")
        lacks(mass - least > top_p + bench.tolerance, f"a support larger than top_p={top_p:g} leaves")
        apart = abs(logprob - float(row[token] - row[among].logsumexp(-1)))
        lacks(apart > bench.tolerance, f"{apart:.2g} off among the tokens of a support")


def a_draw_is_fixed_by_its_seed_and_siblings_differ(bench: Bench) -> None:
    prompts = bench.prompts()

    def drawn(seed: int) -> list[list[list[int]]]:
        sampling = Sampling(n=4, max_tokens=10, ignore_eos=True, seed=seed)
        return [[a.token_ids for a in answers] for answers in bench.engine.generate(prompts, sampling)]

    once, again, other = drawn(1), drawn(1), drawn(2)
    lacks(any(len(answers) != 4 for answers in once), "not n responses to each prompt")
    lacks(once != again, "the same seed gave other responses")
    lacks(once == other, "another seed gave the same responses")
    lacks(
        any(len({tuple(a) for a in answers}) == 1 for answers in once),
        "all responses to a prompt are the same",
    )


def an_answer_ends_with_its_stop_token_or_is_cut_at_the_limit(bench: Bench) -> None:
    prompts = bench.prompts()
    for prompt, whole in zip(prompts, bench.greedy(prompts), strict=True):
        lacks(whole.finish != "length", f"finish={whole.finish!r} of a response that was truncated")
        lacks(len(whole.token_ids) != 12, f"{len(whole.token_ids)} tokens instead of max_tokens=12")
        token = whole.token_ids[5]
        (ended,) = bench.greedy([prompt], ignore_eos=False, stop_token_ids=(token,))
        right = whole.token_ids[: whole.token_ids.index(token) + 1]
        stopped = next((n for n, t in enumerate(ended.token_ids) if t == token), None)
        lacks(
            ended.token_ids != right[: len(ended.token_ids)] or stopped is None,
            f"{ended.token_ids} instead of {right}",
        )
        lacks(ended.finish != "stop", f"finish={ended.finish!r} of a response that a stop token ended")


def an_answer_that_was_cut_goes_on_where_it_stopped(bench: Bench) -> None:
    prompts = bench.prompts()
    for prompt, whole in zip(prompts, bench.greedy(prompts), strict=True):
        continuation, end = whole.token_ids[:5], whole.token_ids[5:]
        going_on = replace(
            prompt,
            token_ids=[*prompt.token_ids, *continuation],
            continuation=Continuation(tokens=5, stream=whole.stream, max_tokens=7),
        )
        found = bench.engine.generate(
            [going_on], Sampling(n=3, max_tokens=12, temperature=0, ignore_eos=True)
        )
        answers = [answer.token_ids for answer in found[0]]
        lacks(answers != [end], f"{answers} instead of {[end]} for the rest of a response")


def a_turn_goes_on_behind_a_reply_and_its_stop_texts_are_its_own(bench: Bench) -> None:
    """Tokens that were not sampled stand between, and the turn before ended with a stop text."""
    prompt, text = _printable(bench)
    (said,) = bench.greedy([prompt], tokens=40, ignore_eos=False, stop=(text,))
    reply = bench.prompts()[0].token_ids[:3]
    tokens, mask = [*said.token_ids, *reply], (*[True] * len(said.token_ids), *[False] * len(reply))
    whole = replace(prompt, token_ids=[*prompt.token_ids, *tokens])
    going_on = replace(whole, continuation=Continuation(len(tokens), said.stream, max_tokens=6, mask=mask))

    def found(*stop: str) -> Completion:
        sampling = Sampling(n=3, max_tokens=40, temperature=0, stop=stop)
        ((answer,),) = bench.engine.generate([going_on], sampling)
        return answer

    answer, free = found(text), found()
    right = bench.expected(whole, 6)[: len(answer.token_ids)]
    lacks(answer.token_ids != right, f"{answer.token_ids} instead of {right} behind a reply")
    apart = float((torch.tensor(answer.logprobs) - bench.logprobs(whole, answer, 1.0)).abs().max())
    lacks(apart > bench.tolerance, f"{apart:.2g} off behind tokens that were not sampled")
    shorter = len(answer.token_ids) < len(free.token_ids)
    lacks(
        shorter and text not in bench.decode(answer.token_ids),
        "a stop text of the turn before ended this one",
    )


def a_stop_text_ends_an_answer_and_is_kept(bench: Bench) -> None:
    prompt, text = _printable(bench)
    (ended,) = bench.greedy([prompt], tokens=40, ignore_eos=False, stop=(text,))
    said = bench.decode(ended.token_ids)
    lacks(text not in said, f"the response {said!r} does not hold the stop text {text!r}")
    lacks(ended.finish != "stop", f"finish={ended.finish!r} of a response that a stop text ended")
    lacks(text in bench.decode(ended.token_ids[:-1]), "the response goes on after the stop text")


def _printable(bench: Bench) -> tuple[Prompt, str]:
    """A prompt whose greedy response says something printable in two tokens, and that text."""
    prompts = bench.prompts()
    for prompt, whole in zip(prompts, bench.greedy(prompts, tokens=40), strict=True):
        for place in range(2, 39):
            text = bench.decode(whole.token_ids[place : place + 2])
            if len(text) > 1 and text.isascii() and text.isprintable() and text.strip() == text:
                return prompt, text
    raise LackingError("no response holds a printable text to stop at")


def a_thousand_requests_come_back_in_order(bench: Bench) -> None:
    several = bench.prompts()
    right = [answer.token_ids for answer in bench.greedy(several, tokens=2)]
    asked = [several[n % len(several)] for n in range(bench.requests)]
    found = [answer.token_ids for answer in bench.greedy(asked, tokens=2)]
    wrong = sum(a != right[n % len(right)] for n, a in enumerate(found))
    lacks(len(found) != len(asked) or wrong > 0, f"{wrong} of {len(asked)} responses are another prompt's")
    drawn = bench.engine.generate(asked, Sampling(max_tokens=2, seed=1, ignore_eos=True))
    lacks([len(answers) for answers in drawn] != [1] * len(asked), "not one response for each")


def an_empty_prompt_is_refused(bench: Bench) -> None:
    try:
        bench.greedy([bench.prompt(0, 0)])
    except ValueError:
        return
    raise LackingError("no ValueError")


def new_weights_are_there_at_once_and_old_ones_gone(bench: Bench) -> None:
    prompts = bench.prompts()
    before = [answer.token_ids for answer in bench.greedy(prompts)]
    with _Changed(bench):
        bench.give()
        for prompt, answer in zip(prompts, bench.greedy(prompts), strict=True):
            right = bench.expected(prompt)
            lacks(answer.token_ids != right, f"{answer.token_ids} instead of {right} under changed weights")
            apart = (torch.tensor(answer.logprobs) - bench.logprobs(prompt, answer, 1.0)).abs().max()
            lacks(float(apart) > bench.tolerance, f"log-probs {float(apart):.2g} off under changed weights")
    bench.give()
    after = [answer.token_ids for answer in bench.greedy(prompts)]
    lacks(after != before, "other responses after the first weights came back")


class _Changed:
    """Inside, the reference has other weights, embeddings (and a tied head) among them."""

    def __init__(self, bench: Bench) -> None:
        self._reference = bench.reference
        self._kept = [p.detach().clone() for p in self._reference.parameters()]

    def __enter__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self._reference.parameters():
                p.add_(torch.randn(p.shape, generator=draw) * (0.5 * p.std() if p.numel() > 1 else 0.1))

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for p, kept in zip(self._reference.parameters(), self._kept, strict=True):
                p.copy_(kept)


def a_weight_of_another_name_is_refused(bench: Bench) -> None:
    try:
        bench.engine.load_weights(iter([("model.no_such_weight", torch.zeros(2))]))
    except ValueError:
        bench.give()
        return
    raise LackingError("no ValueError")


def answers_carry_the_version_of_their_weights(bench: Bench) -> None:
    bench.engine.weight_version = LOADED + 1
    versions = {answer.weight_version for answer in bench.greedy(bench.prompts())}
    bench.engine.weight_version = LOADED
    lacks(versions != {LOADED + 1}, f"versions {versions} instead of {LOADED + 1}")


def what_slept_and_woke_answers_as_before(bench: Bench) -> None:
    prompts = bench.prompts()
    before = [answer.token_ids for answer in bench.greedy(prompts)]
    parts = bench.engine.parts()
    for part in parts.values():
        part.offload()
    if bench.engine.weight_version == NONE:
        bench.give()
    for part in parts.values():
        part.onload()
    lacks([answer.token_ids for answer in bench.greedy(prompts)] != before, "other responses after waking")


def answers_about_media_have_the_logprobs_of_the_trainer(bench: Bench) -> None:
    """A response that goes on has them as well, and other media give other ones."""
    sampling = Sampling(n=2, max_tokens=8, ignore_eos=True)
    for prompt, answers in zip(bench.media, bench.engine.generate(bench.media, sampling), strict=True):
        for answer in answers:
            _media_apart(bench, prompt, answer)
            lacks(
                bool(set(answer.token_ids) & set(bench.never)),
                "a response holds a token that stands for media",
            )
        ((rest,),) = bench.engine.generate([continued(_answer(prompt, answers[0]), 4)], sampling)
        whole = [*answers[0].token_ids, *rest.token_ids], [*answers[0].logprobs, *rest.logprobs]
        _media_apart(bench, prompt, replace(answers[0], token_ids=whole[0], logprobs=whole[1]))


def new_weights_look_anew_at_media_seen_before(bench: Bench) -> None:
    """What an engine keeps of a picture comes from the old weights."""
    sampling = Sampling(max_tokens=8, ignore_eos=True)
    bench.engine.generate(bench.media, sampling)
    with _Changed(bench):
        bench.give()
        for prompt, (answer,) in zip(bench.media, bench.engine.generate(bench.media, sampling), strict=True):
            _media_apart(bench, prompt, answer)
    bench.give()


def _answer(prompt: Prompt, c: Completion) -> Trajectory:
    return Trajectory(
        prompt, 0, c.token_ids, [True] * len(c.token_ids), c.logprobs, c.finish, stream=c.stream
    )


def _media_apart(bench: Bench, prompt: Prompt, answer: Completion) -> None:
    def by_trainer(prompt: Prompt) -> Tensor:
        with torch.no_grad():
            batch = pack([_answer(prompt, answer)])
            return logprobs(bench.reference, batch, temperature=1.0, max_logits=2000).values

    right = by_trainer(prompt)
    apart = float((torch.tensor(answer.logprobs) - right).abs().max())
    lacks(apart > bench.tolerance, f"{apart:.2g} off for '{prompt.id}'")
    if prompt.media:
        others = {n: -value if value.is_floating_point() else value for n, value in prompt.media.items()}
        difference = float((by_trainer(replace(prompt, media=others)) - right).abs().max())
        lacks(difference < bench.tolerance, f"the reference does not look at the media of '{prompt.id}'")


CHECKS: tuple[Check, ...] = (
    greedy_text_is_that_of_generate,
    each_token_has_the_logprob_of_the_distribution_it_was_drawn_from,
    a_draw_is_fixed_by_its_seed_and_siblings_differ,
    an_answer_ends_with_its_stop_token_or_is_cut_at_the_limit,
    an_answer_that_was_cut_goes_on_where_it_stopped,
    a_turn_goes_on_behind_a_reply_and_its_stop_texts_are_its_own,
    a_stop_text_ends_an_answer_and_is_kept,
    a_thousand_requests_come_back_in_order,
    an_empty_prompt_is_refused,
    new_weights_are_there_at_once_and_old_ones_gone,
    a_weight_of_another_name_is_refused,
    answers_carry_the_version_of_their_weights,
    what_slept_and_woke_answers_as_before,
)
SUPPORT_CHECKS: tuple[Check, ...] = (each_token_tells_what_it_was_drawn_among,)
MEDIA_CHECKS: tuple[Check, ...] = (
    answers_about_media_have_the_logprobs_of_the_trainer,
    new_weights_look_anew_at_media_seen_before,
)


def check_engine(
    engine: Engine,
    reference: Any,
    decode: Callable[[list[int]], str],
    *,
    tolerance: float = 1e-3,
    requests: int = 1000,
    media: Sequence[Prompt] = (),
    support: bool = False,
) -> Checked:
    """Every check of the contract, and what is lacking in words; print it, or assert its `ok`.

    `reference`: a causal transformers model in float32 with the weights that the engine should have; it is changed and put
    back. `decode`: tokens to text, as the engine was told. `tolerance`: of log-probs, nats. `media`: for models that
    see or hear, questions whose media were read (Processor.open). `support`: whether it is to tell what it sampled among, as
    rollout.keep_sampling_mask asks (Sampling.support).
    """
    bench = Bench(engine, reference.eval(), decode, tolerance, requests, media)
    bench.give()
    more = (SUPPORT_CHECKS if support else ()) + (MEDIA_CHECKS if media else ())
    return run_checks(CHECKS + more, bench)
