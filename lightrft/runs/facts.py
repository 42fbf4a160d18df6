"""What the rules of advice look at: a run's metrics, settings, scores and last responses, and how a course is read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Mapping[str, Any]
Level = Literal["alarm", "advice"]
Course = Sequence[tuple[int, float]]
"""Steps and values of a metric."""
LAST = 3
"""Steps at the end that have to agree before a rule speaks."""
FEWEST = 10
"""Steps that a rule about a course needs."""


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    rows: Sequence[Row]
    """Lines of metrics.jsonl."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings by dotted name."""
    intervals: Sequence[tuple[str, float, float]] = ()
    """Held-out evaluations in order: when, and the lowest and highest score of the 95 % interval."""
    responses: Sequence[Row] = ()
    """Some of the last saved step, with response, reward and finish."""

    def course(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of a metric where it is known."""
        return [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name) is not None]

    def last(self, name: str, count: int = LAST) -> list[tuple[int, float]]:
        """The last values of a metric; none if there are fewer."""
        course = self.course(name)
        return course[-count:] if len(course) >= count else []

    @property
    def updates(self) -> int:
        """Updates in a step, by the settings."""
        return int(self.config.get("update.num_minibatches") or 1) * int(
            self.config.get("update.epochs") or 1
        )


Found = tuple[Level, str, str] | None
"""Level, sentence and evidence; None where the rule has nothing to say."""


def rises(course: Course) -> float:
    """How far the line through a course rises from its first to its last step, in standard errors of that; 0 for fewer than 4 points.

    The textbook's least squares: slope / standard error, the latter from what is left around the line.
    """
    if len(course) < 4:
        return 0.0
    xs, ys = [float(x) for x, _ in course], [y for _, y in course]
    slope, intercept = statistics.linear_regression(xs, ys)
    left = sum((y - intercept - slope * x) ** 2 for x, y in course)
    middle = statistics.fmean(xs)
    spread = sum((x - middle) ** 2 for x in xs)
    error = math.sqrt(left / (len(xs) - 2) / spread)
    if error <= 1e-12 * max(map(abs, ys), default=0.0):
        return 0.0 if abs(slope) <= 1e-12 else (100.0 if slope > 0 else -100.0)
    return slope / error


def is_flat(course: Course) -> bool:
    """Whether the line through a course rises by less than two standard errors; a falling one counts as flat."""
    return rises(course) < 2.0


def mean(course: Course) -> float:
    """The mean of a course that is not empty."""
    return statistics.fmean(value for _, value in course)


def named(course: Course) -> str:
    """The steps of a course, in words."""
    return f"steps {course[0][0]}-{course[-1][0]}" if len(course) > 1 else f"step {course[0][0]}"
