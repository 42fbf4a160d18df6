"""The self-check of a task: its rewards must give full marks to answers known to be right, and not to wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightrft.rewards.base import RewardRunner
from lightrft.types import Message, Prompt, Record, Trajectory

ENVIRONMENT = "environment"
"""The reward that an environment gives for turns, which a single answer has not had."""
SLICE = 64
"""Answers judged in one call, as many as in a usual training step, so that the time limit means the same."""


@dataclass(frozen=True, slots=True)
class GoldFailure:
    """A right answer that did not get full marks."""

    id: str
    target: object
    answer: str
    parts: dict[str, float]


@dataclass(frozen=True, slots=True)
class GoldReport:
    """What the rewards made of the gold answers."""

    task: str
    checked: int
    failures: list[GoldFailure]
    wrong_score: float
    """Mean reward, as a share of full marks, of other questions' gold answers: near 0 unless the reward is blind."""

    by_environment: bool = False
    """Whether an environment alone gives the reward, of what no single answer has anything."""

    @property
    def ok(self) -> bool:
        """Whether gold answers were checked and none failed."""
        return self.checked > 0 and not self.failures

    def __str__(self) -> str:
        if self.by_environment:
            return (
                f"{self.task}: its environment gives the reward, turn by turn; there is no answer to check."
            )
        lines = [
            f"{self.task}: {self.checked - len(self.failures)} of {self.checked} gold answers score full marks; "
            f"those to other prompts score {self.wrong_score:.3f} on average."
        ]
        lines += [
            f"  {f.id}: {f.answer!r:.120} for target {f.target!r:.80} scored {f.parts}"
            for f in self.failures[:10]
        ]
        if len(self.failures) > 10:
            lines.append(f"  ... and {len(self.failures) - 10} more.")
        return "\n".join(lines)


def check_gold(
    task: str, records: Sequence[Record], gold: Callable[[Record], str], judge: RewardRunner
) -> GoldReport:
    """Judges each record's gold answer, and beside it the gold answer of a record with another target.

    Full marks are 1.0 from every reward that has a positive weight; others, such as the price of length, are only watched.
    """
    counting = {
        source: {judge.labels[name] for name, w in parts.items() if w > 0 and name != ENVIRONMENT}
        for source, parts in judge.weights.items()
    }

    def marks(trajectory: Trajectory) -> list[float]:
        wanted = counting[trajectory.prompt.source]
        return [value for name, value in trajectory.parts.items() if name in wanted]

    answers = [gold(record) for record in records]
    right = _judged(records, answers, judge)
    failures = [
        GoldFailure(record.id, record.target, answer, trajectory.parts)
        for record, answer, trajectory in zip(records, answers, right, strict=True)
        if any(not value >= 1.0 - 1e-6 for value in marks(trajectory)) or not trajectory.parts
    ]
    swapped = [(records[i], answers[i - 1]) for i in range(len(records)) if answers[i - 1] != answers[i]]
    wrong = _judged([record for record, _ in swapped], [answer for _, answer in swapped], judge)
    shares = [value for trajectory in wrong for value in marks(trajectory)]
    wrong_score = sum(shares) / len(shares) if shares else 0.0
    return GoldReport(task, len(records), failures, wrong_score, by_environment=not counting[task])


def _judged(records: Sequence[Record], answers: Sequence[str], judge: RewardRunner) -> list[Trajectory]:
    trajectories = [
        _spoken(n, record, answer) for n, (record, answer) in enumerate(zip(records, answers, strict=True))
    ]
    for start in range(0, len(trajectories), SLICE):
        judge(trajectories[start : start + SLICE])
    return trajectories


def _spoken(number: int, record: Record, answer: str) -> Trajectory:
    messages: list[Message] = record.messages
    prompt = Prompt(record.id, [], messages, record.target, record.source, columns=record.columns)
    return Trajectory(
        prompt=prompt, group=number, token_ids=[0], mask=[True], behavior=[0.0], finish="stop", answer=answer
    )
