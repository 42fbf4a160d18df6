"""Files of many rows as Arrow tables, so that columns are looked at and not rows. Whatever is not plain is left to datasets/sources.py, which
reads row by row and tells what is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ArrowException, parquet
from pyarrow import json as arrow_json

from lightrft.datasets.rollouts import rollouts_folder
from lightrft.datasets.shards import is_address, is_pattern, read_saved, saved_set, shards
from lightrft.utils.paths import expanded

WHERE = "\0where"
"""The column that says where a row stands, as datasets.sources.read does; a file with one of this name is left to that."""
PLAIN = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
"""Kinds of values that a line of JSON may hold, which Arrow and Python's json read alike."""
BLOCK = 16 * 2**20
"""Bytes that are parsed at a time; a longer line is left to the reader by rows."""
LEAST = 10
"""Bytes of the shortest line with a field."""
Suits = Callable[[pa.Schema], bool]
"""Whether columns of these names and types are wanted as columns: asked before rows are read."""
Wanted = Collection[str] | None
"""Names of the columns to read, see `read_of`; None: all."""


def read_table(
    place: str, split: str, at_least: int, suits: Suits = lambda _: True, wanted: Wanted = None
) -> pa.Table | None:
    """The rows of local jsonl or parquet files, or of a data set that `datasets` saved, with WHERE, in the order that datasets.sources.read has, their
    texts as large_string, of which a column may hold more than 2 GiB; of other columns than those `wanted` parquet files and saved data sets are not read. None for fewer than
    `at_least` of them, for other places, for columns that do not suit, and where Arrow might not give just what that gives."""
    try:
        saved = None if is_address(place) else saved_set(place)
        if saved is not None:
            found = _saved(saved, split, suits, wanted)
        else:
            files = _files(place)
            if files is None or not _may_have(files, at_least):
                return None
            found = _of_files(files, suits, wanted)
    except (OSError, ValueError, RecursionError, ArrowException):
        return None  # the reader by rows says what is wrong
    return found if found is not None and found.num_rows >= at_least else None


def read_of(names: Sequence[str], wanted: Wanted) -> list[str]:
    """The columns of these names to read: those wanted, or all where one of them is not there, so that whoever misses it can say what is."""
    return [name for name in names if name in wanted] if wanted and set(wanted) <= set(names) else list(names)


def _saved(folder: Path, split: str, suits: Suits, wanted: Wanted) -> pa.Table | None:
    rows = read_saved(folder, split)
    if not suits(rows.features.arrow_schema):
        return None
    rows = rows.select_columns(read_of(rows.column_names, wanted))
    return _located(_sound(rows.with_format("arrow")[:]), f"{folder.name}/{split}[", 0, "]")


def _of_files(files: Sequence[tuple[str, Path]], suits: Suits, wanted: Wanted) -> pa.Table | None:
    tables = []
    for name, path in files:
        table = _named(READERS[path.suffix](path, suits, wanted), path.suffix, name)
        if table is None:
            return None
        tables.append(table)
    return pa.concat_tables(tables)


def _files(place: str) -> Sequence[tuple[str, Path]] | None:
    """The files of a place of this machine, with their names as rows are called by; None if any is of another kind."""
    if is_address(place) or rollouts_folder(place) is not None:
        return None
    path = expanded(place, "data file")
    if path.is_dir() or is_pattern(place):
        files = shards(place, lambda name: Path(name).suffix in (*READERS, ".gz", ".json", ".csv", ".tsv"))
    else:
        files = [(path.name, path)]
    return files if all(path.suffix in READERS and path.is_file() for _, path in files) else None


def _may_have(files: Sequence[tuple[str, Path]], rows: int) -> bool:
    """Whether so many rows may be in these files, by what is quickly seen."""
    counts = (
        parquet.read_metadata(path).num_rows if path.suffix == ".parquet" else path.stat().st_size // LEAST
        for _, path in files
    )
    return sum(counts) >= rows


def _named(table: pa.Table | None, suffix: str, name: str) -> pa.Table | None:
    """The table of a file with where each row stands: NAME:1 for the first line, NAME[0] for the first row of parquet."""
    return _located(table, f"{name}:", 1, "") if suffix == ".jsonl" else _located(table, f"{name}[", 0, "]")


def _located(table: pa.Table | None, before: str, first: int, behind: str) -> pa.Table | None:
    if table is None:
        return None
    numbers = pc.cast(pa.array(range(first, first + table.num_rows), pa.int64()), pa.large_string())
    return table.append_column(WHERE, joined(before, numbers, behind))


def joined(*pieces: str | pa.Array, between: str = "") -> pa.Array:
    """Texts of these pieces, one for each place of the arrays among them, which are of large_string: Arrow joins no others with such."""
    wide = [pa.scalar(one, pa.large_string()) if isinstance(one, str) else one for one in (*pieces, between)]
    return pc.binary_join_element_wise(*wide)


def _sound(table: pa.Table) -> pa.Table | None:
    """The table, if all its texts are Unicode and each column has a name of its own, other than WHERE."""
    if len({*table.column_names, WHERE}) <= len(table.column_names):
        return None
    table.validate(full=True)
    wide = [
        field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(wide))


def _jsonl(path: Path, suits: Suits, _wanted: Wanted) -> pa.Table | None:
    """Lines of objects of texts, whole numbers and truth values that all have the same fields. Each is read whole: whether they all have them shows
    by that alone."""
    with path.open("rb") as file:
        first = json.loads(file.readline(BLOCK).decode())
        if not isinstance(first, dict) or not first:
            return None
        schema = [(name, PLAIN.get(type(value))) for name, value in first.items()]
        if any(kind is None for _, kind in schema) or not suits(pa.schema(schema)):
            return None
        file.seek(0)
        lines = _lines_of_objects(file)
    if not lines:
        return None
    found = arrow_json.read_json(
        path,
        read_options=arrow_json.ReadOptions(block_size=BLOCK),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=pa.schema(schema), unexpected_field_behavior="error"
        ),
    )
    if found.num_rows != lines or any(column.null_count for column in found.columns):
        return None
    return _sound(found)


def _lines_of_objects(file: Any) -> int:
    """Lines of a file if each begins with an object's bracket, else 0. Where so many objects of plain values are read, each line is one."""
    begun = lines = 0
    last = b"\n"
    while chunk := file.read(BLOCK):
        begun += (last + chunk).count(b"\n{")
        lines += chunk.count(b"\n")
        last = chunk[-1:]
    lines += last != b"\n"
    return lines if begun == lines else 0


def _parquet(path: Path, suits: Suits, wanted: Wanted) -> pa.Table | None:
    with parquet.ParquetFile(path) as file:
        if not suits(file.schema_arrow):
            return None
        names = file.schema_arrow.names
        if len({*names, WHERE}) <= len(names):  # two columns of one name, or one of ours
            return None
        return _sound(file.read(columns=read_of(names, wanted)))


READERS: dict[str, Callable[[Path, Suits, Wanted], pa.Table | None]] = {
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
