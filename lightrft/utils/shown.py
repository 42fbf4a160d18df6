"""Text of strangers for people: what a model, a record or a folder says must neither move a cursor nor make a line of its own."""

from __future__ import annotations


def shown(text: object, *, lines: bool = True) -> str:
    r"""The text with its control characters written out (ESC as \x1b); new lines and tabs stay with `lines`."""
    kept = "\n\t" if lines else ""
    return "".join(_written(c) if c not in kept and _controls(c) else c for c in str(text))


def _controls(character: str) -> bool:
    return (
        character < " "
        or "\x7f" <= character <= "\x9f"
        or character in "\u2028\u2029\u202a\u202b\u202d\u202e\u2066\u2067\u2068"
    )


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode()
