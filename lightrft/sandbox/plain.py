"""Plain values as bytes, and back: all that passes between a program and its tests. Sent as text into both boxes, imports nothing.

A value is a tag, a length or a count, a colon, and what it holds: `i2:42`, `l2:i1:1s2:hi`. What is read is made of Python's own types
exactly, so that no method of the other side's ever runs here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_VALUES, MOST_BYTES, DEEPEST = 200_000, 1 << 24, 200
HANDLE = "o"


class Handle:
    """An object of the program that is no plain value: it equals nothing, and only its truth and its methods are known."""

    def __init__(self, number: int, truth: bool) -> None:
        self.number = number
        self.truth = truth


class Writer:
    """Makes bytes of a value; `keep`: what to do with an object that is not plain, a number and its truth."""

    def __init__(self, keep: Callable[[Any], tuple[int, bool]]) -> None:
        self.keep = keep
        self.parts: list[bytes] = []
        self.left = MOST_VALUES

    def text(self, tag: str, content: bytes) -> None:
        """A tag and a text of this length."""
        self.parts.append(f"{tag}{len(content)}:".encode() + content)

    def many(self, tag: str, values: list[Any], depth: int) -> None:
        """A tag and so many values."""
        self.parts.append(f"{tag}{len(values)}:".encode())
        for value in values:
            self.put(value, depth + 1)

    def put(self, value: Any, depth: int = 0) -> None:
        """Adds a value. ValueError for one that is too large or too deep."""
        self.left -= 1
        if self.left < 0 or depth > DEEPEST:
            raise ValueError("a value is too large or too deep")
        if value is None or value is True or value is False:
            self.text("c", repr(value).encode())
        elif isinstance(value, int):
            self.text("i", b"%x" % int(value) if int(value) >= 0 else b"-%x" % -int(value))
        elif isinstance(value, float):
            self.text("f", float.__repr__(value).encode())
        elif isinstance(value, complex):
            self.many("z", [value.real, value.imag], depth)
        elif isinstance(value, str):
            self.text("s", str.encode(value, "utf-8", "surrogatepass"))
        elif isinstance(value, bytes | bytearray):
            self.text("b", bytes(value))
        else:
            self.container(value, depth)

    def container(self, value: Any, depth: int) -> None:
        """Adds what holds others, or a handle of what is not plain."""
        for kind, tag in ((list, "l"), (tuple, "t"), (set, "u"), (frozenset, "v")):
            if isinstance(value, kind):
                return self.many(tag, list(value), depth)
        if isinstance(value, dict):
            return self.many("d", [part for pair in value.items() for part in pair], depth)
        if isinstance(value, range):
            return self.many("r", [value.start, value.stop, value.step], depth)
        if isinstance(value, Handle):
            return self.many(HANDLE, [value.number, value.truth], depth)
        return self.other(value, depth)

    def other(self, value: Any, depth: int) -> None:
        """Adds the items of what can be gone through once or seen through, or a handle."""
        if hasattr(type(value), "__next__"):
            return self.many("n", [item for item, _ in zip(value, range(MOST_VALUES), strict=False)], depth)
        if type(value).__name__ in ("dict_keys", "dict_values", "dict_items", "deque"):
            return self.many("l", list(value), depth)
        return self.many(HANDLE, list(self.keep(value)), depth)


class Reader:
    """Makes a value of bytes; `handle`: what to make of an object that is not plain."""

    def __init__(self, content: bytes, handle: Callable[[int, bool], Any]) -> None:
        self.content, self.place, self.handle, self.left = content, 0, handle, 2 * MOST_VALUES

    def value(self, depth: int = 0) -> Any:
        """The next value. ValueError for what no Writer has made."""
        self.left -= 1
        if self.left < 0 or depth > DEEPEST:
            raise ValueError("a value is too large or too deep")
        colon = self.content.index(b":", self.place, self.place + 20)
        tag, size = chr(self.content[self.place]), int(self.content[self.place + 1 : colon])
        if not 0 <= size <= MOST_BYTES:
            raise ValueError("a value says a wrong length")
        self.place = colon + 1
        if tag in "cifsb":
            self.place += size
            return self.simple(tag, self.content[colon + 1 : colon + 1 + size])
        held = [self.value(depth + 1) for _ in range(size)]
        if tag == HANDLE:
            return self.handle(int(held[0]), bool(held[1]))
        makers: dict[str, Callable[[list[Any]], Any]] = {
            "l": list,
            "t": tuple,
            "u": set,
            "v": frozenset,
            "n": iter,
            "r": lambda x: range(*x),
            "z": lambda x: complex(*x),
        }
        return dict(zip(held[::2], held[1::2], strict=True)) if tag == "d" else makers[tag](held)

    def simple(self, tag: str, content: bytes) -> Any:
        """A value that holds no others."""
        if tag == "c":
            return {b"None": None, b"True": True, b"False": False}[content]
        if tag == "b":
            return content
        text = content.decode("utf-8", "surrogatepass")
        return text if tag == "s" else int(text, 16) if tag == "i" else float(text)


def send(descriptor: int, content: bytes) -> None:
    """A message of this length, all of it."""
    import os

    left = memoryview(b"%08x" % len(content) + content)
    while left:
        left = left[os.write(descriptor, left) :]


def receive(descriptor: int) -> bytes:
    """The next message. EOFError where the other side is gone, ValueError for one that is too long."""
    import os

    def exactly(size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = os.read(descriptor, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    size = int(exactly(8), 16)
    if not 0 <= size <= MOST_BYTES:
        raise ValueError("a message is too long")
    return exactly(size)
