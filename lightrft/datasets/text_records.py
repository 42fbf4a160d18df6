"""Records of questions that are one text each, a million of them: kept as columns, checked as columns, made when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightrft.config import TaskConfig
from lightrft.datasets.arrow_rows import WHERE, joined
from lightrft.datasets.formats import ALPACA, SYSTEM, UNREAD_OF_ROW, columns
from lightrft.datasets.media import COLUMNS
from lightrft.types import Message, Record

READ = frozenset({ALPACA, "history", *SYSTEM, *UNREAD_OF_ROW, *COLUMNS})
"""Fields beside a question that format `columns` looks at: rows with any of them are asked one by one."""
AT_A_TIME = 8192
"""Rows of which texts are put together at a time."""


class TextRecords(Sequence[Record]):
    """What `tasks.base.records` makes of the rows of a table by format `columns`, where every question is a text that stands alone."""

    def __init__(self, table: pa.Table, config: TaskConfig, source: str) -> None:
        """`table`: rows of which `plain` is true, with WHERE; all its columns are the records' fields."""
        self.config, self.source = config, source
        self._table = table
        self._fields = [name for name in table.column_names if name != WHERE]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> TextRecords: ...
    def __getitem__(self, place: int | slice) -> Record | TextRecords:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step == 1:  # of which nothing is copied
                return self._of(self._table.slice(start, max(0, stop - start)), self._fields)
            return self._of(self._table.take(pa.array(range(start, stop, step), pa.int64())), self._fields)
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return next(self._made(self._table.slice(place % len(self), 1)))

    def __iter__(self) -> Iterator[Record]:
        for batch in self._table.to_batches(AT_A_TIME):
            yield from self._made(batch)

    def where(self, stay: NDArray[np.bool_]) -> TextRecords:
        """The records at whose place `stay` is true."""
        return self._of(self._table.filter(pa.array(stay)), self._fields)

    def places(self, names: Collection[str]) -> dict[str, int]:
        """The ids among these names, with the last place of each; no record is made."""
        before = f"{self.source}/"
        asked = [name for name in names if name.startswith(before)]
        wanted = pa.array([name.removeprefix(before) for name in asked], pa.large_string())
        found = pc.index_in(self._table.column(WHERE), value_set=wanted)
        numbers = pc.fill_null(found, -1).to_numpy()
        return {asked[numbers[place]]: int(place) for place in np.flatnonzero(numbers >= 0)}

    def with_fields(self, names: Collection[str] | None) -> TextRecords:
        """The records with these fields of their rows alone; None: with all."""
        if names is None:
            return self
        fields = [name for name in self._fields if name in names]
        own = {self.config.prompt_field, self.config.target_field, WHERE, *fields}
        return self._of(
            self._table.select([name for name in self._table.column_names if name in own]), fields
        )

    def sizes(self, most: Callable[[str], int]) -> NDArray[np.int64]:
        """The most tokens that the texts of each can have, as `most` counts them: of ASCII its length and two more for each blank."""
        around = sum(most(text) for text in (self.config.system,) if text)
        found = [np.zeros(0, np.int64)]
        for batch in self._table.to_batches(AT_A_TIME):
            texts = self._contents(batch)
            length = pc.binary_length(texts)
            sizes = pc.add(length, pc.multiply(pc.count_substring(texts, " "), 2)).to_numpy(False)
            sizes = sizes.astype(np.int64)
            wide = np.flatnonzero(pc.not_equal(length, pc.utf8_length(texts)).to_numpy(False))
            sizes[wide] = [most(text) for text in texts.take(pa.array(wide, pa.int64())).to_pylist()]
            found.append(sizes + around)
        return np.concatenate(found)

    def told(self) -> Iterator[memoryview]:
        """The bytes by which a checkpoint knows these records again: those that datasets.loader makes of records one by one."""
        config = self.config
        begins = f"\0system\0{config.system}\0user\0" if config.system else "\0user\0"
        for batch in self._table.to_batches(AT_A_TIME):
            ids = joined(f"{self.source}/", batch.column(WHERE))
            whole = joined(ids, begins, self._contents(batch), "\0", self._targets(batch), "\0")
            yield memoryview(whole.buffers()[2])[: pc.sum(pc.binary_length(whole)).as_py() or 0]

    def _of(self, table: pa.Table, fields: Sequence[str]) -> TextRecords:
        made = TextRecords(table, self.config, self.source)
        made._fields = list(fields)
        return made

    def _contents(self, rows: pa.RecordBatch) -> pa.Array:
        """What the user says in each."""
        texts = rows.column(self.config.prompt_field)
        if not self.config.instruction:
            return texts
        return joined(texts, self.config.instruction, between="\n")

    def _targets(self, rows: pa.RecordBatch) -> pa.Array:
        """The targets as datasets.loader writes them: texts as they are, all else as a list of its JSON."""
        if not self.config.target_field:
            return pa.array([str([json.dumps(None)])] * rows.num_rows, pa.large_string())
        found = rows.column(self.config.target_field)
        if _is_text(found.type):
            return found
        return pa.array([str([json.dumps(one)]) for one in found.to_pylist()], pa.large_string())

    def _made(self, rows: pa.Table | pa.RecordBatch) -> Iterator[Record]:
        """The records of some rows."""
        config = self.config
        before = [Message(role="system", content=config.system)] if config.system else []
        targets: Sequence[Any] = [None] * rows.num_rows
        if config.target_field:
            targets = rows.column(config.target_field).to_pylist()
        fields = rows.select(self._fields).to_pylist() if self._fields else [{}] * rows.num_rows
        texts = rows.column(config.prompt_field).to_pylist()
        for where, text, target, row in zip(
            rows.column(WHERE).to_pylist(), texts, targets, fields, strict=True
        ):
            content = f"{text}\n{config.instruction}" if config.instruction else text
            messages = [*map(Message.copy, before), Message(role="user", content=content)]
            yield Record(f"{self.source}/{where}", messages, target, self.source, row)


def may_be_plain(schema: pa.Schema, config: TaskConfig) -> bool:
    """Whether rows with these columns can be `plain`."""
    names = set(schema.names)
    if config.format != "columns" or config.prompt_field not in names or names & READ:
        return False
    if "." in config.prompt_field:  # then other columns may stand beside it
        return False
    if config.target_field and config.target_field not in names:
        return False
    return all(
        _is_text(schema.field(place).type) for place in schema.get_all_field_indices(config.prompt_field)
    )


def plain(table: pa.Table, config: TaskConfig) -> bool:
    """Whether format `columns` asks each row's text by itself, and has a target for it, so that `TextRecords` may."""
    if not may_be_plain(table.schema, config):
        return False
    asked = table.column(config.prompt_field)
    if asked.null_count or not _all_say_something(asked):
        return False
    if config.target_field and not _are_targets(table.column(config.target_field)):
        return False
    listed = asked.filter(pc.match_substring_regex(asked, r"^[ \t\r\n]*\[")).to_pylist()
    alone = TaskConfig(prompt_field=config.prompt_field, target_field="")
    return all(_is_asked_as_it_is(text, alone) for text in listed)


def _is_asked_as_it_is(text: str, config: TaskConfig) -> bool:
    try:
        return isinstance(columns({config.prompt_field: text}, config).prompt, str)
    except Exception:  # a row of any shape: tasks.base.records tells of it, with its place
        return False


def alike(prompts: Sequence[Any]) -> Sequence[Any]:
    """The prompts that differ in more than in what they say: of TextRecords the first, as all have the same fields and no media."""
    return prompts[:1] if isinstance(prompts, TextRecords) else prompts


def _are_targets(found: pa.ChunkedArray) -> bool:
    if found.null_count:
        return False
    if _is_text(found.type):
        return _all_say_something(found)
    if pa.types.is_float32(found.type) or pa.types.is_float64(found.type):
        return not pc.any(pc.is_nan(found)).as_py()
    return bool(pa.types.is_integer(found.type) or pa.types.is_boolean(found.type))


def _all_say_something(texts: pa.ChunkedArray) -> bool:
    """Whether each text has more than white space, which Unicode has much of: only those without any ASCII sign are looked at one by one."""
    strange = texts.filter(pc.invert(pc.match_substring_regex(texts, "[!-~]")))
    return all(text.strip() for chunk in strange.chunks for text in chunk.to_pylist())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
