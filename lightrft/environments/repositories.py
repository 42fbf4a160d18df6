"""Files of a repository, from a folder or from git at a commit, with the links between them.

Imports no torch: worker processes run this.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

NAME = re.compile(r"\w[\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{7,64}")
MOST_LINKS = 40
"""Links that are followed for one path, as Linux does."""
LINK, FILE = "120000", ("100644", "100755")
"""Modes of git; what has another one (a repository within) is left out."""


@dataclass(frozen=True)
class Repository:
    """What a folder holds, by path from it."""

    files: dict[str, bytes]
    links: dict[str, str]
    """Symbolic links and where they point to."""

    def place(self, name: str) -> str:
        """Where a path leads when links are followed; where it goes round in circles, whichever of them comes last."""
        for _ in range(MOST_LINKS):
            parts = PurePosixPath(name).parts
            heads = ("/".join(parts[:end]) for end in range(1, len(parts) + 1))
            link = next((head for head in heads if head in self.links), None)
            if link is None:
                break
            rest = name[len(link) :].lstrip("/")
            name = posixpath.normpath(posixpath.join(posixpath.dirname(link), self.links[link], rest))
        return name

    def whole(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """These files, and for each link that leads to some of them copies in its place. A box holds no links, which could lead out."""
        found = dict(files)
        # Twice, for links in folders that links lead to. A link to a folder that it lies in shows that folder as it is without links.
        for link in [*self.links, *self.links]:
            place = self.place(link)
            if place in found:
                found[link] = found[place]
                continue
            inside = "" if place == "." else f"{place}/"
            held = files if link.startswith(inside) else found
            found |= {f"{link}/{name[len(inside) :]}": held[name] for name in held if name.startswith(inside)}
        return found


def of_folder(folder: Path) -> Repository:
    """What lies in a folder, git's own files left out."""
    files, links = dict[str, bytes](), dict[str, str]()
    for place in sorted(folder.rglob("*")):
        inside = place.relative_to(folder)
        if ".git" in inside.parts:
            continue
        if place.is_symlink():
            links[inside.as_posix()] = os.readlink(place)
        elif place.is_file():
            files[inside.as_posix()] = place.read_bytes()
    return Repository(files, links)


def of_commit(clone: Path, commit: str) -> Repository:
    """What a git repository holds at a commit, byte for byte: unlike `git archive`, which leaves out what .gitattributes exports not.

    ValueError where there is no such commit."""
    if not COMMIT.fullmatch(commit):
        raise ValueError(f"{clone.name}: base_commit={commit!r} is no commit.")
    listed = _git(clone, commit, b"", "ls-tree", "-r", "-z", "--full-tree", commit)
    entries = [line.partition(b"\t") for line in listed.split(b"\0") if line]
    kept = [
        (mode, number, os.fsdecode(name))
        for head, _, name in entries
        for mode, _, number in [head.decode().split(" ")]
        if mode in (LINK, *FILE)
    ]
    asked = "".join(f"{number}\n" for _, number, _ in kept).encode()
    told, place = _git(clone, commit, asked, "cat-file", "--batch"), 0
    files, links = dict[str, bytes](), dict[str, str]()
    for mode, _, name in kept:
        end = told.index(b"\n", place)
        kind, size = (
            told[place:end].split(b" ")[1:3] if told[place:end].count(b" ") == 2 else (b"missing", b"0")
        )
        if kind != b"blob":
            raise ValueError(f"{clone} cannot be read at {commit}: {name} is {kind.decode()}.")
        content = told[end + 1 : end + 1 + int(size)]
        place = end + 1 + int(size) + 1
        if mode == LINK:
            links[name] = os.fsdecode(content)
        else:
            files[name] = content
    return Repository(files, links)


def _git(clone: Path, commit: str, given: bytes, *words: str) -> bytes:
    command = ["git", "-C", str(clone), *words]
    done = subprocess.run(command, input=given, capture_output=True, timeout=60, check=False)
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip()[-200:]
        raise ValueError(f"{clone} cannot be read at {commit}: {why}")
    return done.stdout
