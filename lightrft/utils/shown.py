"""Text of strangers for people: what a model, a record or a folder says must neither move a cursor nor make a line of its own."""

from __future__ import annotations


def shown(text: object, *, lines: bool = True) -> str:
    r"""The text with its control characters written out (ESC as \x1b); new lines and tabs stay with `lines`."""
    return str(text).translate(_WRITTEN if lines else _WRITTEN | _WRITTEN_LINES)


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode()


_WRITTEN_LINES = {ord(c): _written(c) for c in "\n\t"}
_WRITTEN = {
    n: _written(chr(n))
    for n in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x2028,
        0x2029,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    )
    if n not in _WRITTEN_LINES
}
