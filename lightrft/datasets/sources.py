"""Raw rows from json, jsonl, csv and parquet files or from the hub, each with the place it came from."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from lightrft.datasets import response_file
from lightrft.datasets.rollouts import read_rollouts, rollouts_folder
from lightrft.datasets.shards import fetched, is_address, is_pattern, read_saved, saved_set, shards
from lightrft.utils.hub import unreachable
from lightrft.utils.paths import expanded

Row = dict[str, Any]
Located = tuple[str, Row]
"""Where a row stands ("train.jsonl:17"), and the row."""

FLAT = 64
"""A line with fewer opening brackets cannot be nested too deeply for anyone."""

log = logging.getLogger("lightrft")


class BadRecords:
    """What becomes of a row that cannot be used: the first one stops the run, or each is counted and logged.

    tasks.on_bad_record chooses. `skipped` is the count so far; the first few are logged one by one.
    """

    SHOWN = 5

    def __init__(self, policy: Literal["raise", "skip"] = "raise") -> None:
        self.policy = policy
        self.skipped = 0

    def __call__(self, problem: str) -> None:
        """Raises ValueError with the problem and the cure, or counts it."""
        if self.policy == "raise":
            raise ValueError(
                f"{problem}\n  Fix the row, or set tasks.on_bad_record=skip to skip such rows (skips are counted)."
            )
        self.skipped += 1
        if self.skipped <= self.SHOWN:
            log.warning("skipped a bad record: %s", problem)
        if self.skipped == self.SHOWN:
            log.warning("further bad records are counted, not shown")


def is_file(place: str) -> bool:
    """Whether a name means files, here or at an address, rather than a hub data set ("owner/name" or "owner/name:subset")."""
    path = expanded(place, "data file")
    if is_address(place) or is_pattern(place):
        return True
    return _kind(path) in READERS or path.exists() or place.startswith((".", "~", "/"))


def is_local(place: str) -> bool:
    """Whether a name means files of this machine."""
    return is_file(place) and not is_address(place)


def read(place: str, split: str, bad: BadRecords) -> Iterator[Located]:
    """Every row of a local file, a folder or a pattern of files, or files at an address, of one split of a data set of the hub or on
    the disk, or of some steps of a run, in the order it has there.

    A broken row is handed to `bad`. Raises ValueError for a missing file, an unknown kind of file, or a data set
    that the hub does not give.
    """
    if not is_file(place):
        return _hub(place, split)
    if is_address(place):
        return _each(fetched(place, _readable), bad)
    path = expanded(place, "data file")
    rollouts = rollouts_folder(place)
    if rollouts is not None:
        return read_rollouts(place, rollouts, split, lambda file: _saved(file, bad), bad)
    saved = saved_set(place)
    if saved is not None:
        named = enumerate(stored(read_saved(saved, split)))
        return ((f"{saved.name}/{split}[{number}]", row) for number, row in named)
    if path.is_dir() or is_pattern(place):
        return _each(shards(place, _readable), bad)
    if not path.is_file():
        raise ValueError(f"no data file '{place}' (looked for {path.resolve()}).")
    reader = READERS.get(_kind(path))
    if reader is None:
        raise ValueError(
            f"{place}: cannot read this kind of file. There are: {', '.join(sorted(READERS))}, each but .parquet also as .gz."
        )
    return reader(path, bad)


def _each(files: Iterable[tuple[str, Path]], bad: BadRecords) -> Iterator[Located]:
    """The rows of files one after the other, each row named by its file's name among them."""
    for name, path in files:
        for where, row in READERS[_kind(path)](path, bad):
            yield name + where.removeprefix(path.name), row


def _readable(name: str) -> bool:
    return _kind(Path(name)) in READERS


def _kind(path: Path) -> str:
    return (
        path.with_suffix("").suffix
        if path.suffix == ".gz" and path.with_suffix("").suffix != ".parquet"
        else path.suffix
    )


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _jsonl(path: Path, bad: BadRecords) -> Iterator[Located]:
    name = path.name
    with _open(path) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            where = f"{name}:{number}"
            if not line.strip():
                continue
            try:
                row = _parsed(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                bad(f"{where}: not JSON ({_told(error)}): {_glimpse(line)}")
                continue
            if not isinstance(row, dict):
                bad(f"{where}: expected an object like {{...}}, found {_glimpse(line)}")
            elif _is_plain(line):
                yield where, row
            else:
                yield from _sound(where, row, bad)


def _is_plain(line: bytes) -> bool:
    """Whether `_sound` could find nothing in a line that was decoded: no escape that makes a lone surrogate, no deep nesting."""
    return b"\\u" not in line and line.count(b"[") + line.count(b"{") < FLAT


BROKEN = (EOFError, gzip.BadGzipFile)
"""What reading a broken or cut off gzip file raises."""


def _lines(file: IO[bytes], path: Path, broken: tuple[type[Exception], ...] = BROKEN) -> Iterator[bytes]:
    # `broken` is its own, since a stream may be open until the interpreter ends, when modules have lost their names.
    try:
        yield from file
    except broken as error:
        raise ValueError(f"{path}: broken or cut off gzip file ({error}). Copy it again.") from None


def _json(path: Path, bad: BadRecords) -> Iterator[Located]:
    with _open(path) as file:
        try:
            rows = _parsed(b"".join(_lines(file, path)).decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: not JSON ({_told(error)}). If it holds one object per line, name it .jsonl."
            ) from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects [{{...}}, ...], found {type(rows).__name__}.")
    for number, row in enumerate(rows):
        where = f"{path.name}[{number}]"
        if isinstance(row, dict):
            yield from _sound(where, row, bad)
        else:
            bad(f"{where}: expected an object like {{...}}, found {_glimpse(json.dumps(row).encode())}")


def _csv(path: Path, bad: BadRecords) -> Iterator[Located]:
    with _open(path) as file:
        lines = _Lines(_lines(file, path))
        rows = csv.reader(lines, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
        header = _header(path, rows)
        while True:
            begins = lines.number + 1
            try:
                cells = next(rows, None)
            except csv.Error as error:
                bad(f"{path.name}:{begins}: cannot be read as csv ({error}).")
                rows = csv.reader(lines, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
                continue
            where = f"{path.name}:{lines.number}"
            if cells is None:
                return
            if cells and len(cells) != len(header):
                bad(f"{where}: has more or fewer columns than the header ({', '.join(header)}).")
            elif cells:
                yield from _sound(where, dict(zip(header, cells, strict=True)), bad)


class _Lines:
    """The lines of a file as text, one by one, so that a broken one is named; what is no UTF-8 stays as lone surrogates."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.number, self._lines = 0, lines

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8", "surrogateescape")


def _header(path: Path, rows: Iterator[list[str]]) -> list[str]:
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise ValueError(f"{path}:1: cannot be read as csv ({error}).") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}:1: the header names the column '{twice[0]}' twice. Rename one of them.")
    return header


def _parquet(path: Path, bad: BadRecords) -> Iterator[Located]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield from _sound(f"{path.name}[{number}]", row, bad)
                number += 1
    except (OSError, ArrowException, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: cannot be read as parquet from row {number} on ({_told(error)})."
        ) from None


def _saved(path: Path, bad: BadRecords) -> Iterator[Located]:
    """Responses that a run has saved, without their tokens."""
    if path.suffix != response_file.SUFFIX:
        yield from _jsonl(path, bad)
        return
    for number, row in enumerate(response_file.read(path, tokens=False)):
        yield from _sound(f"{path.name}[{number}]", row, bad)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


_parsed = json.JSONDecoder(object_pairs_hook=_once).decode  # json.loads would make one for each line


def _sound(where: str, row: Row, bad: BadRecords) -> Iterator[Located]:
    """The row, unless some text in it is no Unicode: no tokenizer takes a lone surrogate, and no file."""
    try:
        lone = _surrogate(row)
    except RecursionError:
        bad(f"{where}: nested too deeply.")
        return
    if lone is None:
        yield where, row
    else:
        bad(
            f"{where}: the text of a field is not Unicode, {_shown(lone)}: a lone half of a character, or bytes that are no UTF-8."
        )


def _surrogate(value: Any) -> str | None:
    """A text inside of a value that cannot be written as UTF-8; None if there is none."""
    if isinstance(value, str):
        return value if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value) else None
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return next((found for one in value if (found := _surrogate(one)) is not None), None)
    return None


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:80] + "...")


def _told(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    first = str(error).split("\n")[0]
    return first if len(first) < 300 else first[:300] + "..."


def _hub(name: str, split: str) -> Iterator[Located]:
    rows = _of_hub(name, split, streaming=False)
    return ((f"{name}/{split}[{number}]", row) for number, row in enumerate(stored(rows)))


def streamed(name: str, split: str, start: int) -> Iterator[Located]:
    """The rows of a data set of the hub behind the first `start`, fetched as they are asked for. ValueError as from `read`, also where
    one of them cannot be fetched."""
    rows = _of_hub(name, split, streaming=True).skip(start)
    number = start
    try:
        for row in stored(rows):
            yield f"{name}/{split}[{number}]", row
            number += 1
    except Exception as error:  # unrelated types, as in _of_hub
        raise ValueError(
            f"the hub gives no row {number} of the data set '{name}', split '{split}': {unreachable() or _told(error)}. Try again later (a run is gone "
            "on with by --resume), or download the data and name the files in tasks.train_file."
        ) from error


def _of_hub(name: str, split: str, *, streaming: bool) -> Any:
    from datasets import load_dataset

    owner, _, subset = name.partition(":")
    try:
        return load_dataset(owner, subset or None, split=split, streaming=streaming)
    except Exception as error:
        # The hub client raises many unrelated types: no such name, no network, no such split, no permission.
        why = unreachable() or str(error)
        raise ValueError(
            f"the hub gives no data set '{name}' with split '{split}': {why}. Look at the name and the split; data on your disk is named by its path (train.jsonl), "
            "and built-in tasks look for theirs in the folder of the option data=FOLDER."
        ) from error


def stored(rows: Any) -> Iterator[Row]:
    """The rows of a datasets.Dataset as they are stored: pictures and sounds undecoded, {"bytes": ..., "path": ...}."""
    for batch in rows.with_format("arrow").iter(batch_size=64):
        yield from batch.to_pylist()


def given(rows: Any, name: str, bad: BadRecords) -> Iterator[Located]:
    """The rows that a program holds, a datasets.Dataset or any sequence of dicts, each with its place: NAME[7]."""
    for number, row in enumerate(stored(rows) if hasattr(rows, "with_format") else rows):
        where = f"{name}[{number}]"
        if isinstance(row, dict) and all(isinstance(key, str) for key in row):
            yield from _sound(where, row, bad)
        else:
            bad(f"{where}: expected a dict of fields, found {_shown(repr(row))}")


def _glimpse(line: bytes) -> str:
    """The beginning of a line, control characters shown: an error text is one line, and moves no cursor."""
    text = line[:400].decode("utf-8", "backslashreplace").strip()
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 80 else text[:80] + "..."


READERS: dict[str, Callable[[Path, BadRecords], Iterator[Located]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
