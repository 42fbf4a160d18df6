"""Paths as people write them."""

from __future__ import annotations

import re
from pathlib import Path

BEGINS = r"(?:(?<![\w.~/-])|(?<=file://))"
"""Where a path can begin within a text."""
ENDS = r"(?![\w-]|\.\w)"


def expanded(text: str | Path, setting: str) -> Path:
    """The path with ~ written out. ValueError naming the setting if there is no such user."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"{setting}={text}: there is no user called {path.parts[0][1:] or 'so'} whose folder this could be. Write the whole path."
        ) from None


def without_home(text: str) -> str:
    """The text with the home folder of this user written as ~ wherever a path begins with it; the paths that `with_home` makes of it are the
    same ones.

    What is kept or passed on then tells neither who ran it nor where; programs find `~/models` as they found the whole path. The folder
    itself is ~/, since ~ alone is nothing in YAML.
    """
    for home in _homes():
        if home in text:
            text = re.sub(BEGINS + re.escape(home) + ENDS + "/?", "~/", text)
    return text


def with_home(text: str) -> str:
    """The text with ~/ written out wherever a path begins with it: for programs that take only whole paths."""
    homes = _homes()
    return re.sub(f"{BEGINS}~/", lambda _: f"{homes[0]}/", text) if homes else text


def _homes() -> list[str]:
    """The home folder as it is set, and as links lead to it; none where it is the root, with which every path begins."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        return []
    found = dict.fromkeys((str(home), str(home.resolve())))
    return [place for place in found if Path(place).is_absolute() and place != "/"]
