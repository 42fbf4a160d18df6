"""Settings as they may be passed on: without the folders of this machine, and without an address that may be a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from lightrft.runs.media import base_name

ADDRESS = "notify"
"""The option whose address may let anybody write where it leads."""
PLACE = re.compile(r"(?:^|(?<=[.:/]))~?/(?!/)")
"""Where a path from the root begins in a name: alone, behind a section (tasks.train./a/b.py), a task (riddles//a/b.py) or random:."""


def shareable(settings: Any, name: str = "") -> Any:
    """Settings, nested or by dotted name, with the last part alone of every path from the root, and the host alone of log.notify."""
    if isinstance(settings, Mapping):
        return {_short(str(key)): shareable(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list):
        return [shareable(one, name) for one in settings]
    if not isinstance(settings, str):
        return settings
    if name.rpartition(".")[2] == ADDRESS and "://" in settings:
        parts = urlsplit(settings)
        return f"{parts.scheme}://{parts.hostname}/..."
    return _value(settings)


def _value(text: str) -> str:
    """A text that is a path as a whole; others, such as instructions, may have strokes that mean nothing of the kind."""
    if text.startswith(("/", "~/")) or PureWindowsPath(text).is_absolute():
        return f".../{base_name(text)}"
    drawn = "random:"
    return drawn + _value(text.removeprefix(drawn)) if text.startswith(drawn) else text


def _short(name: str) -> str:
    found = PLACE.search(name)
    if found is None or "://" in name:
        return name
    return f"{name[: found.start()]}.../{base_name(name[found.start() :])}"
