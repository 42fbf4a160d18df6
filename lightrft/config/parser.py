"""The one parser of words into a class of options, and its rules; what the class itself refuses comes out as its own sentence."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, TypeVar

C = TypeVar("C")


class ImpossibleError(ValueError):
    """Settings that cannot work together, in the words of the class that holds them."""


def parse(args: Sequence[str], cls: type[C], *, prog: str, description: str) -> C:
    """One call of the parser. ImpossibleError for what the classes of options refuse; their sentences need no frame."""
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                cls,
                args=list(args),
                prog=prog,
                description=description or None,
                config=(tyro.conf.FlagConversionOff,),
                registry=_registry(),
            )
    except SystemExit as stop:
        cause = stop.__context__
        while cause is not None:  # tyro puts what a section refuses in errors of its own
            if isinstance(cause, ValueError) and _is_of_options(cause):
                raise ImpossibleError(str(cause)) from None
            cause = cause.__context__
        print(printed.getvalue(), end="", file=sys.stderr)
        raise


def _is_of_options(error: ValueError) -> bool:
    """Whether a class of options has raised it, and not the parser over a word that it cannot read."""
    return any("__post_init__" in frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))


def _registry() -> Any:
    """tyro's rules for words: true and false as YAML writes them, and a backslash before a leading '-'."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    def boolean(word: str) -> bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, not '{word}'")
        return word.lower() == "true"

    @registry.primitive_rule
    def bool_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
        if info.type is not bool:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="true|false",
            instance_from_str=lambda words: boolean(words[0]),
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(value).lower()],
        )

    @registry.primitive_rule
    def text_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
        if info.type is not str:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="TEXT",
            instance_from_str=lambda words: _unescape(words[0]),
            is_instance=lambda value: isinstance(value, str),
            str_from_instance=lambda value: [value],
        )

    return registry


def _unescape(word: str) -> str:
    return word[1:] if re.match(r"\\+-", word) else word
