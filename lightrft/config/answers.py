"""What to say to a name that is no option: ours for a foreign or an earlier one, else the nearest of the likeliest sections first."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_type_hints

from lightrft.config.foreign_names import ABSENT, FOREIGN, RENAMED

FIRST = (
    "",
    "rollout",
    "algorithm",
    "optimizer",
    "update",
    "model",
    "tasks",
    "rewards",
    "evaluate",
    "checkpoint",
    "log",
    "strategy",
)
"""Sections in which a name without one is looked for first."""
MOST = 3
"""Near names that are told."""


def answer(name: str, names: Sequence[str], *, flags: bool = False) -> str:
    """One sentence about `name`, which is none of the options `names` (dotted). `flags`: names are written as on a command line."""
    name = name.removeprefix("--").replace("-", "_")
    written = _flag if flags else str
    section, _, last = name.rpartition(".")
    if last in ABSENT:
        return ABSENT[last]
    renamed = RENAMED.get(name)
    if renamed and (now := f"{section}.{renamed}".lstrip(".")) in names:
        return f"{written(name)} is called {written(now)} now."
    known = FOREIGN.get(".".join(name.split(".")[-2:])) or FOREIGN.get(last) or ()
    ours = next((one for one in ([known] if isinstance(known, str) else known) if one in names), name)
    if ours != name:
        return f"In LightRFT this is {written(ours)}."
    close = near(name, names)
    return f"Perhaps you meant: {', '.join(map(written, close))}." if close else ""


def near(name: str, names: Sequence[str]) -> list[str]:
    """The options nearest to a name, at most MOST: the same last part first, by section; then by spelling."""
    section, _, last = name.rpartition(".")
    same = [known for known in names if known.rpartition(".")[2] == last]
    if same:
        return sorted(same, key=_rank)[:MOST]
    inside = [known for known in names if known.rpartition(".")[0] == section] if section else []
    lasts = sorted({known.rpartition(".")[2] for known in inside or names})
    found = difflib.get_close_matches(last, lasts, n=1, cutoff=0.65)
    close = sorted((known for known in inside or names if known.rpartition(".")[2] in found), key=_rank)
    return close[:MOST] or difflib.get_close_matches(name, names, n=1, cutoff=0.75)


def keywords_answer(
    cls: type[Any], section: str, refuse: Callable[[type[Any], str, dict[str, Any]], None]
) -> None:
    """Lets a class of options answer a keyword that is none of its fields, as YAML and flags do, and `refuse` values of another kind."""
    make = cls.__init__
    known = [f"{section}.{field.name}".lstrip(".") for field in dataclasses.fields(cls)]

    @functools.wraps(make)
    def checked(self: Any, *args: Any, **settings: Any) -> None:
        for name in settings:
            dotted = f"{section}.{name}".lstrip(".")
            if dotted not in known:
                raise TypeError(f"{cls.__name__} has no option '{name}'. {answer(dotted, known)}".rstrip())
        refuse(cls, section, settings)
        make(self, *args, **settings)

    cls.__init__ = checked


def sections(cls: type[Any], prefix: str = "") -> Iterable[tuple[str, type[Any]]]:
    """Dotted name and class of every section below a class of options; itself first, without a name."""
    yield prefix, cls
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from sections(hint, f"{prefix}.{name}".lstrip("."))  # type: ignore[arg-type]  # a class, by the type hint


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _rank(name: str) -> tuple[int, int]:
    section = name.rpartition(".")[0]
    return (FIRST.index(section) if section in FIRST else len(FIRST)), name.count(".")
