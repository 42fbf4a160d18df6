"""The columns of saved responses in Arrow: plain fields, JSON for what has no fixed form, and lists with an entry for each token.

Numbers of tokens are decimals of DIGITS places, in four bytes before they are packed. Log-probs that differ little from those at
sampling are kept as that difference, which packs to a quarter; `NAME_minus_behavior` says so in its name. Differences have all DIGITS
places, since they are what shows whether engine and trainer agree; log-probs at sampling and entropies, which are only looked at, have
fewer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Row = dict[str, Any]
DIGITS = 5
"""Decimal places of log-probs, entropies, advantages and their like; significant digits of weights."""
UNIT = 10**DIGITS
MOST_UNITS = 10**9 - 1
"""What a decimal of four bytes holds."""
COARSE = {"behavior": 4, "entropy": 3}
"""Decimal places of columns that have fewer."""
TOKEN, BESIDE = "token_", "_minus_behavior"
BESIDE_BEHAVIOR = ("old", "new", "ref", "teacher")
PLAIN: dict[str, Any] = {
    "place": pa.int32(),
    "step": pa.int32(),
    "group": pa.int64(),
    "prompt_id": pa.string(),
    "source": pa.string(),
    "response": pa.string(),
    "length": pa.int32(),
    "finish": pa.string(),
    "reward": pa.float64(),
    "origin": pa.string(),
    "use": pa.string(),
    "weight_version": pa.int64(),
}
"""Fields of a response that every row has."""
JSON = ("messages", "target", "parts")
MORE = "more"
"""JSON of the fields that few responses have, and of text that is no Unicode: half of a character."""
FIELDS = (*PLAIN, *JSON, MORE)


def table(rows: Sequence[Row], sizes: Sequence[int]) -> Any:
    """Responses as an Arrow table; `tokens` of a row holds lists or arrays of its (L,) columns by name. `sizes`: how many rows go into
    each row group."""
    more = [_more(row) for row in rows]
    columns = {name: pa.array([_legible(row[name]) for row in rows], kind) for name, kind in PLAIN.items()}
    columns |= {name: pa.array([_json(row[name]) for row in rows], pa.string()) for name in JSON}
    columns[MORE] = pa.array([_json(one) if one else None for one in more], pa.string())
    return pa.table(columns | _token_columns([row.get("tokens") for row in rows], sizes))


def rows_of(found: Any) -> list[Row]:
    """The responses of a table, as `table` was given them, numbers rounded; without tokens if it has none of their columns."""
    fields = {name: found.column(name).to_pylist() for name in FIELDS}
    made: list[Row] = []
    for n in range(found.num_rows):
        row = {name: fields[name][n] for name in PLAIN}
        made.append(row | {name: json.loads(fields[name][n]) for name in JSON})
    names = [name for name in found.column_names if name.startswith(TOKEN)]
    if names:
        for row, tokens in zip(made, _tokens(found, names), strict=True):
            row["tokens"] = tokens
    for row, text in zip(made, fields[MORE], strict=True):
        kept = json.loads(text) if text else {}
        if "pieces" in kept:
            row.get("tokens", {})["pieces"] = kept.pop("pieces")
        row |= kept
    return made


def _more(row: Row) -> Row:
    found = {
        name: value for name, value in row.items() if name not in PLAIN and name not in (*JSON, "tokens")
    }
    found |= {
        name: row[name] for name in PLAIN if isinstance(row[name], str) and _legible(row[name]) != row[name]
    }
    pieces = row.get("tokens", {}).get("pieces", ())
    return found | ({"pieces": list(pieces)} if any(_legible(one) != one for one in pieces) else {})


def _legible(value: Any) -> Any:
    """A text as UTF-8 can have it, `?` for half of a character; anything else as it is."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if _legible(text) == text else json.dumps(value, default=str)


def _token_columns(tokens: Sequence[Mapping[str, Any] | None], sizes: Sequence[int]) -> dict[str, Any]:
    """A list column for each name that any response has; null where a response has it not."""
    columns = {}
    behavior = [one for one in tokens if one is not None and "behavior" in one]
    is_decimal = _fits(_units(_flat(behavior, "behavior"), DIGITS))
    for name in dict.fromkeys(name for one in tokens for name in one or ()):
        having: list[Mapping[str, Any]] = [one for one in tokens if one is not None and name in one]
        if name == "pieces":
            having = [*_news(tokens, sizes)]
        counts = [len(one[name]) if one is not None and name in one else None for one in tokens]
        beside = name in BESIDE_BEHAVIOR and is_decimal and all("behavior" in one for one in having)
        kind, values = _encoded(name, having, beside=beside)
        columns[TOKEN + kind] = _lists(values, counts)
    return columns


def _encoded(name: str, having: Sequence[Mapping[str, Any]], *, beside: bool) -> tuple[str, Any]:
    """The column's name in the file, and its entries over all responses that have it; `beside`: as a difference, if it can be."""
    if name in EXACT:
        entries = [value for one in having for value in one[name]]
        return name, pa.array(
            [_legible(value) for value in entries] if name == "pieces" else entries, EXACT[name]
        )
    values = _flat(having, name)
    if name == "weight":
        return name, pa.array(values.astype(np.float32), mask=~np.isfinite(values))
    digits = COARSE.get(name, DIGITS)
    units = _units(values, digits)
    if beside:
        differences = units - _units(_flat(having, "behavior"), DIGITS)
        unknown = np.isnan(differences) & ~np.isnan(units)
        if not unknown.any() and _fits(differences):
            return name + BESIDE, _decimals(differences, digits)
    if _fits(units):
        return name, _decimals(units, digits)
    return name, pa.array(values, mask=~np.isfinite(values))


EXACT = {"ids": pa.int32(), "mask": pa.bool_(), "pieces": pa.string()}


def _news(tokens: Sequence[Mapping[str, Any] | None], sizes: Sequence[int]) -> list[Row]:
    """The pieces of responses, None where the token had the same text the last time it came in the row group."""
    found, ends, last = [], set(accumulate(sizes)), dict[int, str]()
    for place, one in enumerate(tokens):
        if place in ends:
            last = {}
        if one is not None and "pieces" in one:
            news: list[str | None] = []
            for token, text in zip(one["ids"], one["pieces"], strict=True):
                news.append(None if last.get(token) == text else text)
                last[token] = text
            found.append({"pieces": news})
    return found


def _flat(tokens: Sequence[Mapping[str, Any] | None], name: str) -> NDArray[np.float64]:
    known = [np.asarray(one[name], np.float64) for one in tokens if one is not None and name in one]
    return np.concatenate(known) if known else np.zeros(0)


def _units(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """In units of the last place; NaN where a value is not finite."""
    return np.where(np.isfinite(values), np.rint(values * 10.0**digits), np.nan)


def _fits(units: NDArray[np.float64]) -> bool:
    return not (np.abs(units) > MOST_UNITS).any()


def _decimals(units: NDArray[np.float64], digits: int) -> Any:
    known = ~np.isnan(units)
    whole = np.where(known, units, 0).astype(np.int32)
    valid = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little").tobytes())
    return pa.Array.from_buffers(pa.decimal32(9, digits), len(whole), [valid, pa.py_buffer(whole.tobytes())])


def _lists(values: Any, counts: Sequence[int | None]) -> Any:
    """A list for each response; `counts` of its entries, None for no list."""
    ends = np.cumsum([0, *(count or 0 for count in counts)]).astype(np.int32)
    missing = pa.array([count is None for count in counts])
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=missing)


def _tokens(found: Any, names: Sequence[str]) -> list[Row]:
    """The columns of each response's tokens, those that it has."""
    whole = {name.removeprefix(TOKEN): found.column(name).combine_chunks() for name in names}
    columns: dict[str, list[Any]] = {}
    behavior = (
        [one if one is None else _decoded(one) for one in _each(whole["behavior"])]
        if "behavior" in whole
        else []
    )
    for name, lists in whole.items():
        parts = [None if one is None else _decoded(one) for one in _each(lists)]
        if name.endswith(BESIDE):
            parts = [None if a is None else a + b for a, b in zip(parts, behavior, strict=True)]
        columns[name.removesuffix(BESIDE)] = [None if one is None else _listed(name, one) for one in parts]
    if "pieces" in columns:
        _fill(columns["ids"], columns["pieces"])
    order = sorted(columns, key=lambda name: name == "pieces")
    return [
        {name: columns[name][n] for name in order if columns[name][n] is not None}
        for n in range(found.num_rows)
    ]


def _fill(ids: Sequence[list[int] | None], pieces: Sequence[list[str | None] | None]) -> None:
    """Puts the text that a token had before where it is left out."""
    last: dict[int, str] = {}
    for tokens, texts in zip(ids, pieces, strict=True):
        for place, token in enumerate(tokens or () if texts is not None else ()):
            assert texts is not None
            text = texts[place]
            if text is None:
                texts[place] = last[token]
            else:
                last[token] = text


def _each(lists: Any) -> list[Any]:
    """The entries of each response, as one array; None where it has none of the column."""
    ends, values = lists.offsets.to_numpy(), lists.values
    return [
        values.slice(a, b - a) if known else None
        for a, b, known in zip(ends, ends[1:], lists.is_valid().to_pylist(), strict=False)
    ]


def _decoded(values: Any) -> Any:
    """A decimal column in units of DIGITS places, as float64 with NaN for what is unknown; other columns as they are."""
    if not pa.types.is_decimal(values.type):
        return values
    width, start = values.type.bit_width // 32, values.offset
    raw = np.frombuffer(values.buffers()[1], np.int32)[start * width : (start + len(values)) * width : width]
    units = raw.astype(np.float64) * 10 ** (DIGITS - values.type.scale)
    if values.null_count:
        units[~values.is_valid().to_numpy(zero_copy_only=False)] = np.nan
    return units


def _listed(name: str, values: Any) -> list[Any]:
    if isinstance(values, np.ndarray):
        rounded = (values / UNIT).tolist()
        return (
            [None if math.isnan(value) else value for value in rounded] if np.isnan(values).any() else rounded
        )
    found: list[Any] = values.to_pylist()
    known: dict[float | None, float | None] = {}
    form: Callable[[float | None], float | None] = _significant if name == "weight" else _rounded
    if not pa.types.is_floating(values.type):
        return found
    for value in set(found):
        known[value] = form(value)
    return [known[value] for value in found]


def _significant(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
