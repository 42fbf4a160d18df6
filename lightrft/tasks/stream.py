"""The training rows of task `file` as a stream (tasks.stream_block): read when their turn has come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from lightrft.config import TaskConfig
from lightrft.datasets.shards import is_there
from lightrft.datasets.sources import BadRecords, Located, is_file, is_local, read, streamed
from lightrft.tasks.base import Records, media_folder, records
from lightrft.tasks.table import check_split, row_format

NAME = "file"
"""The one task whose rows can be streamed."""


class FileStream:
    """Where the rows are, and what becomes of them."""

    def __init__(self, config: TaskConfig, data: str) -> None:
        """ValueError where task `file` could not be loaded either, and for an unknown format."""
        check_split("train", config)
        place = config.train_file
        if data and is_local(place) and not is_there(place):
            place = str(Path(data) / place)
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
