"""Unified diffs, applied to files in memory as `git apply` would: every line of context must be there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
NOWHERE = "/dev/null"


class PatchError(ValueError):
    """A patch that is none, or does not fit the files."""


@dataclass
class Hunk:
    """Lines of a file before and after, from a line on."""

    line: int
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


@dataclass
class Change:
    """What a patch does to one file; the names are equal unless it is made, deleted or renamed."""

    old: str
    new: str
    hunks: list[Hunk] = field(default_factory=list)


def patched(files: Mapping[str, bytes], patch: str) -> dict[str, bytes]:
    """The files after a patch. PatchError, naming file and line, where it is no unified diff of text or does not apply."""
    found = dict(files)
    for change in changes(patch):
        if change.old == NOWHERE and change.new in found:
            raise PatchError(f"{change.new} is there already.")
        if change.old != NOWHERE and change.old not in found:
            raise PatchError(f"{change.old} is not there.")
        text = "" if change.old == NOWHERE else _text(change.old, found.pop(change.old))
        lines = _after(change, re.findall(r"[^\n]*\n|[^\n]+$", text))
        if change.new != NOWHERE:
            found[change.new] = "".join(lines).encode("utf-8", "surrogateescape")
    return found


def touched(patch: str) -> set[str]:
    """Names of all files that a patch makes, changes, renames or deletes."""
    return {name for change in changes(patch) for name in (change.old, change.new)} - {NOWHERE}


def changes(patch: str) -> list[Change]:
    """The changes of a patch, file by file. PatchError for one that is no unified diff of text."""
    found: list[Change] = []
    lines, place, named = re.split(r"(?<=\n)", patch), 0, ""
    while place < len(lines):
        word, following = (line.rstrip("\r\n") for line in [*lines[place : place + 2], ""][:2])
        place += 1
        if word.startswith(("GIT binary patch", "Binary files ")):
            raise PatchError("it changes a file that is no text.")
        if word.startswith("diff --git a/"):  # both names are the same wherever this one is used
            named = word[13 : 13 + (len(word) - 16) // 2]
        elif match := HUNK.match(word):
            if not found:
                raise PatchError(f"'{word}' belongs to no file.")
            hunk, place = _hunk(match, lines, place)
            found[-1].hunks.append(hunk)
        elif (one := _change(word, following, named)) and one not in found[-1:]:
            found.append(one)
    if not found and patch.strip():
        raise PatchError("it is no unified diff.")
    return found


def _change(word: str, following: str, named: str) -> Change | None:
    """The change that a line and the one after it begin; a file may be told of by two such lines."""
    if word.startswith("--- ") and following.startswith("+++ "):
        return Change(_name(word), _name(following))
    if word.startswith("rename from ") and following.startswith("rename to "):
        return Change(word[12:], following[10:])
    if word.startswith("new file mode ") and named:
        return Change(NOWHERE, named)
    return Change(named, NOWHERE) if word.startswith("deleted file mode ") and named else None


def _name(line: str) -> str:
    name = line[4:].split("\t")[0].strip()
    return name if name == NOWHERE else re.sub(r"^[ab]/", "", name)


def _hunk(match: re.Match[str], lines: Sequence[str], place: int) -> tuple[Hunk, int]:
    """The lines of a hunk, as many as its head says, and the place behind them."""
    old, new = (1 if match[n] is None else int(match[n]) for n in (2, 4))
    hunk = Hunk(int(match[1]) + (old == 0))
    while len(hunk.before) < old or len(hunk.after) < new:
        line = lines[place] if place < len(lines) else ""
        mark = " " if line in ("\n", "\r\n") else line[:1]
        if not mark or mark not in " +-":
            raise PatchError(f"'{match[0]}' is followed by '{line.rstrip()[:60]}', which is no line of it.")
        place += 1
        text = line if line in ("\n", "\r\n") else line[1:]
        sides = [hunk.before] * (mark in " -") + [hunk.after] * (mark in " +")
        if place < len(lines) and lines[place].startswith("\\"):  # No newline at end of file
            place, text = place + 1, text.rstrip("\r\n")
        for side in sides:
            side.append(text)
    if (len(hunk.before), len(hunk.after)) != (old, new):
        raise PatchError(f"'{match[0]}' does not have as many lines as it says.")
    return hunk, place


def _after(change: Change, lines: list[str]) -> list[str]:
    """The lines of a file after the hunks of a change, each where its lines stand, nearest to where it says."""
    moved = 0
    for hunk in change.hunks:
        wanted = hunk.line - 1 + moved
        places = [n for n in range(len(lines) - len(hunk.before) + 1) if _stand(hunk.before, lines, n)]
        if not places:
            raise PatchError(f"{change.old} has not the lines that the patch expects at line {hunk.line}.")
        place = min(places, key=lambda n: abs(n - wanted)) if hunk.before else min(max(wanted, 0), len(lines))
        lines[place : place + len(hunk.before)] = hunk.after
        moved = place - (hunk.line - 1) + len(hunk.after) - len(hunk.before)
    return lines


def _stand(wanted: Sequence[str], lines: Sequence[str], place: int) -> bool:
    return bool(not wanted or wanted[0] == lines[place]) and list(wanted) == list(
        lines[place : place + len(wanted)]
    )


def _text(name: str, content: bytes) -> str:
    if b"\0" in content:
        raise PatchError(f"{name} is no text.")
    return content.decode("utf-8", "surrogateescape")
