"""Reading of flags before the parser does: a name that is no option, a value that is missing or is none of its kind, a stray word.

The parser's own errors about these stand in a frame and name Python's functions; here each is one sentence with an example.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin

from lightrft.config.answers import answer

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
"""Type -> what an error says is expected."""
EMPTY: dict[Any, str] = {list: "[]", dict: "{}"}
"""How YAML writes that there is nothing in one."""
EXAMPLES: dict[Any, str] = {int: "8", float: "0.5", bool: "true", str: "TEXT"}


@dataclass(frozen=True)
class Flag:
    """A flag, and the words up to the next one."""

    written: str
    """--rollout.group-size, as it was written."""
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """The option's dotted name."""
        return self.written.removeprefix("--").replace("-", "_")


def read(flags: Sequence[str]) -> Iterator[Flag]:
    """Flags with their values. A word with a leading minus is a value if it is a number; `\\-x` is the text -x."""
    written = ""
    values: list[str] = []
    for word in flags:
        if _is_flag(word):
            if written or values:
                yield Flag(written, tuple(values))
            written, equals, value = word.partition("=")
            values = [value] if equals else []
        else:
            values.append(word)
    if written or values:
        yield Flag(written, tuple(values))


def without_empty(flags: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """The words, without a `[]` or `{}` that is the only value of an option that takes several: so YAML writes, and the help shows, that there
    are none. A text of these two characters is a value in a file."""
    found = []
    for before, word, after in zip(["", *flags], flags, [*flags[1:], "--end"], strict=False):
        name, equals, value = word.partition("=")
        if equals and value == _empty(name, hints) and _is_flag(after):
            found.append(name)
        elif word != _empty(before, hints) or not _is_flag(after):
            found.append(word)
    return found


def _is_flag(word: str) -> bool:
    return re.match(r"--[A-Za-z]", word) is not None


def _empty(flag: str, hints: Mapping[str, Any]) -> str | None:
    """How YAML writes that an option has no values; None for one that takes a single value, and for what is no option."""
    kind = get_origin(hints.get(Flag(flag, ()).name)) if _is_flag(flag) else None
    return EMPTY.get(kind)


def refuse_unreadable(words: Sequence[str], hints: Mapping[str, Any], layers: Collection[str]) -> None:
    """ValueError for the first flag or word that means nothing. `hints`: type by dotted name; `layers`: names of shipped ones."""
    flags = [flag for flag in read(words) if flag.written != "--help"]
    for flag in flags:
        if flag.written and flag.name not in hints:
            told = answer(flag.written, list(hints), flags=True) or "--help-all lists all options."
            raise ValueError(f"no option {flag.written}. {told}")
    _refuse_strays(words, flags, hints, layers)
    for flag in flags:
        refuse_value(
            flag.values, hints[flag.name], " ".join([flag.written, *flag.values]), f"{flag.written} "
        )


def refuse_value(values: Sequence[str], hint: Any, told: str, written: str) -> None:
    """ValueError unless these words are a value of type `hint`.

    `told`: the option with its value, for the beginning of the error; `written`: the option as the example has it, up to its value.
    """
    kinds = get_args(hint)

    def refuse(expected: str, example: str) -> NoReturn:
        what = "needs a value" if not values else f"expected {expected}"
        raise ValueError(f"{told}: {what}. For example: {written}{example}")

    if get_origin(hint) is dict:
        example = f"NAME {EXAMPLES[kinds[1]]}"
        if len(values) % 2 or not all(_is(kinds[1], value) for value in values[1::2]):
            refuse(f"names, each followed by {NAMES[kinds[1]]}", example)
    elif get_origin(hint) is list:
        if not all(_is(kinds[0], value) for value in values):
            refuse(f"words, each {NAMES[kinds[0]]}", EXAMPLES[kinds[0]])
    elif get_origin(hint) is Literal:
        if len(values) != 1 or values[0] not in map(str, kinds):
            refuse(f"one of {', '.join(map(str, kinds))}", str(kinds[0]))
    elif hint in NAMES and (len(values) != 1 or not _is(hint, values[0])):
        refuse(NAMES[hint], EXAMPLES[hint])


def _refuse_strays(
    words: Sequence[str], flags: Sequence[Flag], hints: Mapping[str, Any], layers: Collection[str]
) -> None:
    """ValueError for layers that stand behind flags, and for words that belong to no option."""
    strays = [word for flag in flags for word in _strays(flag, hints)]
    found = [word for word in strays if word in layers or word.endswith((".yaml", ".yml"))]
    if found:
        rest = list(words)
        for word in found:
            rest.remove(word)
        one = f"the layer '{found[0]}' stands" if len(found) == 1 else f"the layers {', '.join(found)} stand"
        raise ValueError(f"{one} behind flags. Layers come first: {' '.join([*found, *rest])}")
    if strays:
        raise ValueError(
            f"'{strays[0]}' belongs to no option: the one before it takes one value. Write --NAME VALUE."
        )


def _strays(flag: Flag, hints: Mapping[str, Any]) -> Sequence[str]:
    """The words behind a flag that are too many for its option."""
    kind = get_origin(hints.get(flag.name))
    if kind is list:
        return ()
    if kind is dict:
        return flag.values[len(flag.values) // 2 * 2 :] if len(flag.values) > 1 else ()
    return flag.values[1 if flag.written else 0 :]


def _is(kind: Any, word: str) -> bool:
    """Whether a word can be read as a value of this type."""
    if kind is bool:
        return word.lower() in ("true", "false")
    reads: Callable[[str], Any] = kind
    try:
        reads(word)
    except ValueError:
        return False
    return True
