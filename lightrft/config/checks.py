"""Checks that sections share: options of something that is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


def refuse_idle_before(evaluate: Any) -> None:
    """ValueError where `before` has nothing to leave out."""
    if not evaluate.before_and_after:
        because, cure = "evaluate.before_and_after=false", "set evaluate.before_and_after=true"
        refuse_idle("evaluate", evaluate, ["before"], because=because, cure=cure)


def refuse_idle(section: str, options: Any, names: Sequence[str] = (), *, because: str, cure: str) -> None:
    """Raises ValueError for the first of these options (of all, if none is named) that is set to no effect."""
    for f in fields(options):
        value = getattr(options, f.name)
        default = f.default if f.default is not MISSING else f.default_factory()  # type: ignore[operator]
        if value != default and (not names or f.name in names):
            told, back = (
                ("", "Leave it out") if is_dataclass(value) else (f"={value}", f"Set it to {default!r}")
            )
            raise ValueError(f"{section}.{f.name}{told} has no effect with {because}. {back}, or {cure}.")
