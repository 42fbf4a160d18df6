"""A class of options as a JSON Schema, for editors that complete and check YAML layers, and for programs that make them."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lightrft.config.layers import EXTENDS, field_docs
from lightrft.config.ranges import ANY, RANGES, Range

KINDS = {int: "integer", float: "number", bool: "boolean", str: "string"}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(cls: type[Any], command: str) -> dict[str, Any]:
    """The JSON Schema of a layer for `lightrft COMMAND`: every option with its kind, default, range and meaning."""
    layer = _section(cls, "" if command == "train" else command)
    layers_below = {"type": "array", "items": {"type": "string"}}
    about = "Names of layers, or files, that this one stands on."
    layer["properties"][EXTENDS] = {"anyOf": [{"type": "string"}, layers_below], "description": about}
    return {"$schema": DIALECT, "title": f"lightrft {command}", **layer}


def _section(cls: type[Any], section: str, prefix: str = "") -> dict[str, Any]:
    """A section with all below it. `section`: its name in RANGES; `prefix`: what stands before the names of sections in it."""
    hints, docs, ranges = get_type_hints(cls), field_docs(cls), RANGES.get(section, {})
    properties = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            name = f"{prefix}{field.name}"
            properties[field.name] = _section(hint, name, f"{name}.")  # type: ignore[arg-type]  # a class, by the type hint
        else:
            found = {**_kind(hint, ranges.get(field.name, ANY)), "default": _default(field)}
            properties[field.name] = {**found, "description": docs.get(field.name, "")}
    about = " ".join((inspect.getdoc(cls) or "").split())
    return {"type": "object", "description": about, "additionalProperties": False, "properties": properties}


def _kind(hint: Any, numbers: Range) -> dict[str, Any]:
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return {"enum": list(kinds)}
    if get_origin(hint) is list:
        return {"type": "array", "items": _kind(kinds[0], numbers)}
    if get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _kind(kinds[1], numbers)}
    return {"type": KINDS[hint], **(_limits(numbers) if hint in (int, float) else {})}


def _limits(numbers: Range) -> dict[str, float]:
    limits = {}
    if math.isfinite(numbers.low):
        limits["exclusiveMinimum" if numbers.without_low else "minimum"] = numbers.low
    if math.isfinite(numbers.high):
        limits["exclusiveMaximum" if numbers.without_high else "maximum"] = numbers.high
    return limits


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
