"""Fields of a row that are asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fields:
    """Fields of a row that somebody asks for by name."""

    required: frozenset[str]
    """Fields that must be there."""
    optional: frozenset[str] = frozenset()
    """Fields that are taken where they are there."""
