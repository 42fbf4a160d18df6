"""Further arguments of another program, by its own names: each a text that is read as YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml


def read_further(
    setting: str,
    options: Mapping[str, str],
    ours: Mapping[str, str] | None = None,
    prepare: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Values by name, of texts as `prepare` makes them. `ours`: names that are given already -> what says so here, a setting, or why there is none.

    ValueError for a text that is not YAML, and for a name of `ours`.
    """
    found = {}
    for name, text in options.items():
        if ours and name in ours:
            raise ValueError(f"{setting}.{name}={text!r}: that is not for you to give here. {ours[name]}")
        try:
            found[name] = yaml.safe_load(prepare(text))
        except yaml.YAMLError as error:
            raise ValueError(f"{setting}.{name}={text!r} is not YAML: {error}") from None
    return found


def taken_by(section: str, settings: Iterable[str], reasons: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """For read_further: names that are `settings` of the section, and others by the reason why they are not given."""
    return {
        **{name: f"Set {section}.{name}." for name in settings},
        **{name: reason for reason, names in reasons.items() for name in names},
    }
