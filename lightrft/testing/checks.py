"""How a list of checks is run and told: each check by name, and in words what was seen where one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

B = TypeVar("B")


class LackingError(AssertionError):
    """Something that a part of a user's does not do."""


@dataclass
class Checked:
    """What became of each check."""

    passed: list[str] = field(default_factory=list)
    lacking: dict[str, str] = field(default_factory=dict)
    """Check -> what was seen instead."""

    @property
    def ok(self) -> bool:
        """Whether all was as it should be."""
        return not self.lacking

    def __str__(self) -> str:
        lines = [f"  {name}" for name in self.passed]
        lines += [f"! {name}: {seen}" for name, seen in self.lacking.items()]
        return "\n".join(lines)


def lacks(condition: bool, told: str) -> None:
    """LackingError with what was seen, if the condition holds."""
    if condition:
        raise LackingError(told)


def run_checks(checks: Sequence[Callable[[B], None]], bench: B) -> Checked:
    """Runs every check on the bench; a check is called by its function's name."""
    found = Checked()
    for check in checks:
        name = str(check.__name__).replace("_", " ")
        try:
            check(bench)
            found.passed.append(name)
        except Exception as error:  # what is checked may fail in ways of its own
            told = str(error) if isinstance(error, LackingError) else f"{type(error).__name__}: {error}"
            found.lacking[name] = told
    return found
