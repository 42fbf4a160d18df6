"""Values that a program gives to a class of options: of the right kind, or one sentence about them. Words of layers and flags are read in
words.py."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lightrft.config.words import EXAMPLES, NAMES


def refuse_values(cls: type[Any], section: str, settings: dict[str, Any]) -> None:
    """ValueError for the first value that is not of its option's kind, naming option, value and an example."""
    hints = get_type_hints(cls)
    for name, value in settings.items():
        hint = hints[name]
        if not _is(hint, value):
            dotted = f"{section}.{name}".lstrip(".")
            raise ValueError(
                f"{dotted}={value!r:.200}: expected {_expected(hint)}. For example: {_example(name, hint, value)}"
            )


def _is(hint: Any, value: Any) -> bool:
    """Whether a value is of this kind; a whole number is a number, and true and false are none."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        counts = all(isinstance(kind, int) for kind in kinds)
        return _is(int, value) if counts else value in kinds  # how large it may be is said by ranges.py
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(
            _is(kinds[0], k) and _is(kinds[1], v) for k, v in value.items()
        )
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is(kinds[0], entry) for entry in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is int and isinstance(value, float):
        return not math.isfinite(value)  # ranges.py has the better word for it
    return isinstance(value, (int, float) if hint is float else hint)


def _expected(hint: Any) -> str:
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if get_origin(hint) is dict:
        return f"a dict of names, each with {NAMES[kinds[1]]}"
    if get_origin(hint) is list:
        return f"a list, each entry {NAMES[kinds[0]]}"
    return NAMES.get(hint) or f"the section's own class, {hint.__name__}"


def _example(name: str, hint: Any, value: Any) -> str:
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return f"{name}={kinds[0]!r}"
    if get_origin(hint) is dict:
        return f"{name}={{'NAME': {_literal(kinds[1])}}}"
    if get_origin(hint) is list:
        return f"{name}=[{_literal(kinds[0])}]"
    if dataclasses.is_dataclass(hint):
        options = [field.name for field in dataclasses.fields(hint)]
        if isinstance(value, str) and "path" in options:
            return f"{name}={hint.__name__}(path={value!r})"  # type: ignore[union-attr]  # a class, by the type hint
        return f"{name}={hint.__name__}({options[0]}=...), with any of: {', '.join(options)}"  # type: ignore[union-attr]
    return f"{name}={_literal(hint)}"


def _literal(kind: Any) -> str:
    example = EXAMPLES[kind]
    return repr(example) if kind is str else example.capitalize()
