"""Which fields of a row are asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fields:
    """Fields of a row that somebody asks for by name."""

    required: frozenset[str]
    """Those that must be there."""
    optional: frozenset[str] = frozenset()
    """Those that are taken where they are there."""
