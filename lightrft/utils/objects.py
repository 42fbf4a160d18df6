"""JSON objects in prose: finding the first one, and comparing values by kind. Linear in the text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_OPENING = re.compile(r"\{\s{0,200}[\"}]")
_TRIES = 100
"""Broken objects that are passed over; whoever writes more has given no answer."""


def first_json_object(answer: str) -> dict[str, Any] | None:
    """The first JSON object in a text, parsed; None if there is none. Braces that begin no object are passed over."""
    decoder, opening = json.JSONDecoder(), _OPENING.search(answer)
    for _ in range(_TRIES):
        if opening is None:
            break
        try:
            found, _ = decoder.raw_decode(answer, opening.start())
        except json.JSONDecodeError as error:
            # What lies before the error belongs to the broken object, and is no answer of its own.
            opening = _OPENING.search(answer, max(error.pos, opening.end() - 1))
        except (ValueError, RecursionError):  # a number of too many digits, brackets without end
            return None
        else:
            assert isinstance(found, dict)  # it began with a brace
            return found
    return None


def same_json(one: Any, other: Any) -> bool:
    """Whether two parsed JSON values are the same; true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)
