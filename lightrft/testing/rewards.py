"""What every reward must do, as a list of checks: for ours, and for the author of another one."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightrft.rewards.function import Answer, Question, RewardFunction, as_reward, values_of
from lightrft.rewards.table import load_reward
from lightrft.testing.checks import Checked, LackingError, lacks, run_checks
from lightrft.types import Message

ODD = ("", " \n", "\\boxed{", "<answer>", "{", "]" * 50, "é\u200b🙂", "9" * 400, "word " * 400)
"""Answers that a model gives sooner or later: none of them may make a reward raise."""


@dataclass(frozen=True)
class Example:
    """A question with its target, an answer that gets more, and one that gets less (of a cost: the worse gets more)."""

    question: str
    target: Any
    right: str
    wrong: str
    right_steps: tuple[float, ...] = ()
    """What an environment gave for the turns of the first, where the reward looks at that."""
    wrong_steps: tuple[float, ...] = ()


@dataclass(frozen=True)
class RewardBench:
    """A reward, by its name or as a function, and examples of what it should tell apart."""

    reward: str | Callable[..., Any]
    examples: Sequence[Example]
    source: str

    @cached_property
    def function(self) -> RewardFunction:
        """The reward, loaded as a run loads it. ValueError where it cannot be."""
        if isinstance(self.reward, str):
            return load_reward(self.reward)
        return as_reward(self.reward, getattr(self.reward, "__name__", "reward"))

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """One number per answer. TypeError or ValueError as from `values_of`."""
        return values_of(self.function, answers)

    def group(
        self, number: int, example: Example, texts: Sequence[str], finish: str = "stop"
    ) -> list[Answer]:
        """The texts as answers to an example's question."""
        messages = [Message(role="user", content=example.question)]
        question = Question(f"{self.source}/{number}", messages, example.target, self.source)
        steps = {example.right: example.right_steps, example.wrong: example.wrong_steps}
        return [
            Answer(
                question,
                number,
                list(range(len(text.split()))),
                text,
                finish,
                step_rewards=list(steps.get(text, ())),
            )
            for text in texts
        ]

    def pairs(self) -> list[Answer]:
        """For each example a group of four: right, wrong, right, right; the majority is right."""
        found = []
        for n, e in enumerate(self.examples):
            found += self.group(n, e, [e.right, e.wrong, e.right, e.right])
        return found


def it_loads_and_gives_one_finite_number_per_answer(bench: RewardBench) -> None:
    for answer, value in zip(bench.pairs(), bench.values(bench.pairs()), strict=True):
        lacks(not math.isfinite(value), f"{value} for {answer.answer[:80]!r}")


def the_better_answer_gets_more(bench: RewardBench) -> None:
    """Beside a worse one, or, where a reward is one of whole groups, among its like."""
    values = bench.values(bench.pairs())
    for n, example in enumerate(bench.examples):
        right, wrong = values[4 * n], values[4 * n + 1]
        alike = [
            bench.values(bench.group(n, example, [text] * 3))[0] for text in (example.right, example.wrong)
        ]
        lacks(
            not (right > wrong or alike[0] > alike[1]),
            f"{right:g} for {example.right[:80]!r} and {wrong:g} for {example.wrong[:80]!r}",
        )


def the_same_answer_gets_the_same_again(bench: RewardBench) -> None:
    once, again = bench.values(bench.pairs()), bench.values(bench.pairs())
    lacks(once != again, f"{again} after {once}")


def a_group_is_judged_alike_whichever_groups_come_with_it(bench: RewardBench) -> None:
    together = bench.values(bench.pairs())
    for n in range(len(bench.examples)):
        group = slice(4 * n, 4 * n + 4)
        alone = bench.values(bench.pairs()[group])
        lacks(alone != together[group], f"{alone} for group {n} alone, {together[group]} beside others")


def odd_answers_raise_nothing_and_give_finite_numbers(bench: RewardBench) -> None:
    for finish in ("stop", "length"):
        for n, example in enumerate(bench.examples):
            for text in ODD:
                try:
                    found = bench.values(bench.group(n, example, [text, text], finish))
                except (Exception, SystemExit) as error:  # as in a worker, see workers/process.py
                    raise LackingError(f"for {text[:40]!r}: {type(error).__name__}: {error}") from error
                lacks(not all(map(math.isfinite, found)), f"{found} for {text[:40]!r}")


def it_leaves_the_answers_as_they_are(bench: RewardBench) -> None:
    answers = bench.pairs()
    before = copy.deepcopy(answers)
    bench.values(answers)
    lacks(answers != before, "it changed a response, which other rewards read after it")


def no_answers_give_no_numbers(bench: RewardBench) -> None:
    lacks(bench.values([]) != [], "numbers for no responses")


def its_answers_can_travel_to_another_process(bench: RewardBench) -> None:
    travelled = pickle.loads(pickle.dumps(bench.pairs()))
    lacks(bench.values(travelled) != bench.values(bench.pairs()), "other numbers after pickling")


CHECKS = (
    it_loads_and_gives_one_finite_number_per_answer,
    the_better_answer_gets_more,
    the_same_answer_gets_the_same_again,
    a_group_is_judged_alike_whichever_groups_come_with_it,
    odd_answers_raise_nothing_and_give_finite_numbers,
    it_leaves_the_answers_as_they_are,
    no_answers_give_no_numbers,
    its_answers_can_travel_to_another_process,
)


def check_reward(
    reward: str | Callable[..., Any], examples: Sequence[Example], *, source: str = "check"
) -> Checked:
    """Every check of a reward, and what is lacking in words; print it, or assert its `ok`.

    `reward`: its name, its import path, or the function itself. `examples`: questions with a better and a worse answer;
    at least one, ValueError otherwise. `source`: the task that the answers are said to be of.
    """
    if not examples:
        raise ValueError(
            "check_reward needs at least one Example: what would a reward without one be compared with?"
        )
    return run_checks(CHECKS, RewardBench(reward, examples, source))
