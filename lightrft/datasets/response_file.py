"""A file of saved responses: Parquet, with whole groups in each row group and an index in its footer, so that one is read by itself.

Any program that reads Parquet reads it; docs/run_folder.md names its columns.
"""

from __future__ import annotations

import base64
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from lightrft.datasets.response_columns import EXACT, TOKEN, Row, rows_of, table
from lightrft.utils.failures import first_line

SUFFIX = ".parquet"
TOKENS_TOGETHER = 16_384
"""Groups share a row group until they have so many tokens, about 100 KB in the file: each costs 2 KB to describe."""
LEVEL, SELDOM = 15, 4
INDEX, INDEXED = "lightrft.responses", ("place", "group", "use", "origin", "finish", "length", "reward")
"""Key of the index in the footer, and the fields that it repeats of each response."""


def write(file: IO[bytes], rows: Sequence[Row]) -> None:
    """Writes a step's responses of a rank; a reader gets them in the order of `rows`, whose `place` they have in the file."""
    order, sizes = _row_groups(rows)
    inside = [{"place": place} | rows[place] for place in order]
    index = {name: [row[name] for row in inside] for name in INDEXED}
    packed = base64.b85encode(zlib.compress(json.dumps(index, separators=(",", ":")).encode(), 9))
    whole, start = table(inside, sizes), 0
    with parquet.ParquetWriter(file, whole.schema, **_options(whole)) as writer:
        for size in sizes:
            writer.write_table(whole.slice(start, size), row_group_size=size)
            start += size
        writer.add_key_value_metadata({INDEX: packed})


def read(path: Path, places: Sequence[int] | None = None, *, tokens: bool = True) -> list[Row]:
    """The responses at these places in this order, or all; only the row groups that they lie in are read.

    `tokens`: with the columns of their tokens, if they were saved. ValueError naming a file that is broken.
    """
    with _opened(path) as file:
        order = _index(file)["place"]
        wanted = range(len(order)) if places is None else places
        row_of = {place: n for n, place in enumerate(order)}
        groups = _groups_with(file.metadata, [row_of[place] for place in wanted])
        columns = [name for name in file.schema_arrow.names if tokens or not name.startswith(TOKEN)]
        found = rows_of(file.read_row_groups(groups, columns=columns)) if groups else []
        by_place = {row.pop("place"): row for row in found}
    return [by_place[place] for place in wanted]


def index(path: Path) -> list[Row]:
    """INDEXED of each response, in the order of their places; reads the footer alone. ValueError naming a file that is broken."""
    with _opened(path) as file:
        found = _index(file)
    rows = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    return sorted(rows, key=lambda row: row["place"])


def _row_groups(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Places of the responses, those of a group together, and how many go into each row group of the file."""
    members: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        members.setdefault(row["group"], []).append(place)
    sizes, tokens = [0] * bool(rows), 0
    for places in members.values():
        if tokens >= TOKENS_TOGETHER:
            sizes, tokens = [*sizes, 0], 0
        sizes[-1] += len(places)
        tokens += sum(
            len(row["tokens"]["ids"]) if "tokens" in (row := rows[p]) else row["length"] for p in places
        )
    return [place for places in members.values() for place in places], sizes


def _options(whole: Any) -> dict[str, Any]:
    """How the columns are packed: by a dictionary where values come again, byte by byte where numbers are all different."""
    split = {}
    for name in whole.column_names:
        values = whole.column(name).combine_chunks()
        values = values.values if pa.types.is_list(values.type) else values
        values = values.view(pa.int32()) if pa.types.is_decimal(values.type) else values
        is_number = name.startswith(TOKEN) and name.removeprefix(TOKEN) not in EXACT
        if is_number and len(values.unique()) > len(values) // SELDOM:
            split[name + ".list.element" * name.startswith(TOKEN)] = "BYTE_STREAM_SPLIT"
    leaves = [name + ".list.element" * name.startswith(TOKEN) for name in whole.column_names]
    return {
        "compression": "zstd",
        "compression_level": LEVEL,
        "use_dictionary": [name for name in leaves if name not in split],
        "column_encoding": split or None,
        "write_statistics": ["group"],
        "store_schema": False,
        "store_decimal_as_integer": True,
    }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with parquet.ParquetFile(path) as file:
            if INDEX.encode() not in (file.metadata.metadata or {}):
                raise ValueError(f"{path}: the file holds no responses that a run has saved.")
            yield file
    except (pa.ArrowException, zlib.error) as error:
        raise ValueError(f"{path}: the file is broken ({first_line(error)}).") from None


def _index(file: Any) -> dict[str, list[Any]]:
    """Each of INDEXED as a list, in the order of the rows in the file."""
    found: dict[str, list[Any]] = json.loads(
        zlib.decompress(base64.b85decode(file.metadata.metadata[INDEX.encode()]))
    )
    return found


def _groups_with(metadata: Any, rows: Sequence[int]) -> list[int]:
    """The row groups that these rows lie in."""
    ends = list(accumulate(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)))
    return sorted({bisect_right(ends, row) for row in rows})
