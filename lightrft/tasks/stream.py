"""The rows of task `file` otherwise than as a list of records: as a stream (tasks.stream_block), read when their turn has come, or as columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import islice

from lightrft.config import TaskConfig
from lightrft.datasets.arrow_rows import read_table
from lightrft.datasets.sources import BadRecords, Located, is_file, read, streamed
from lightrft.datasets.text_records import TextRecords, may_be_plain, plain
from lightrft.tasks.base import Records, Split, media_folder, own_rows, records
from lightrft.tasks.table import check_split, row_format

NAME = "file"
"""The one task whose rows can be streamed."""


class FileStream:
    """Where the rows are, and what becomes of them."""

    def __init__(self, config: TaskConfig, data: str) -> None:
        """ValueError where task `file` could not be loaded either, and for an unknown format."""
        check_split("train", config)
        place, _ = own_rows("train", config, data)
        self.config, self.place = config, place
        self._form, self._folder = row_format(config.format), media_folder(place)
        self._bad = BadRecords(config.on_bad_record)

    def rows(self, start: int) -> Iterator[Located]:
        """The rows behind the first `start`, in the order that the data has."""
        if is_file(self.place):
            return islice(read(self.place, self.config.train_split, self._bad), start, None)
        return streamed(self.place, self.config.train_split, start)

    def records(self, rows: Sequence[Located]) -> Records:
        """What these rows ask."""
        made = partial(records, source=NAME, instruction="", folder=self._folder)
        return made(rows, self._form, self.config, self._bad)


def text_records(
    split: Split, config: TaskConfig, data: str, at_least: int, fields: Collection[str] | None = None
) -> TextRecords | None:
    """The records of task `file` as columns; None where fewer than `at_least`, or where its rows are not so plain that they would be just
    those that are made row by row. `fields`: those of a row that anybody asks for besides its prompt and target; None: all."""
    check_split(split, config)
    own = filter(None, (config.prompt_field, config.target_field))
    wanted = None if fields is None else {*fields, *own}
    place = own_rows(split, config, data)
    table = read_table(*place, at_least, lambda schema: may_be_plain(schema, config), wanted)
    if table is None or not plain(table, config):
        return None
    found = TextRecords(table, config, NAME)
    return found[: config.train_limit] if split == "train" and config.train_limit else found
