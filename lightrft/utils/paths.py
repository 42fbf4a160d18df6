"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path


def expanded(text: str | Path, setting: str) -> Path:
    """The path with ~ written out. ValueError naming the setting if there is no such user."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"{setting}={text}: there is no user called {path.parts[0][1:] or 'so'} whose folder this could be. Write the whole path."
        ) from None
