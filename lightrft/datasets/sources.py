"""Raw rows from json, jsonl, csv and parquet files or from the hub, each with the place it came from."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

Row = dict[str, Any]
Located = tuple[str, Row]
"""Where a row stands ("train.jsonl:17"), and the row."""

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
    """Whether a name means a local file rather than a hub data set ("owner/name" or "owner/name:subset")."""
    path = Path(place).expanduser()
    return _kind(path) in READERS or path.exists() or place.startswith((".", "~", "/"))


def read(place: str, split: str, bad: BadRecords) -> Iterator[Located]:
    """Every row of a local file, or of one split of a hub data set, in the order it has there.

    A broken row is handed to `bad`. Raises ValueError for a missing file, an unknown kind of file, or a data set
    that the hub does not give.
    """
    if not is_file(place):
        return _hub(place, split)
    path = Path(place).expanduser()
    if not path.is_file():
        raise ValueError(f"no data file '{place}' (looked for {path.resolve()}).")
    reader = READERS.get(_kind(path))
    if reader is None:
        raise ValueError(
            f"{place}: cannot read this kind of file. There are: {', '.join(sorted(READERS))}, each but .parquet also as .gz."
        )
    return reader(path, bad)


def _kind(path: Path) -> str:
    return (
        path.with_suffix("").suffix
        if path.suffix == ".gz" and path.with_suffix("").suffix != ".parquet"
        else path.suffix
    )


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _jsonl(path: Path, bad: BadRecords) -> Iterator[Located]:
    with _open(path) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                bad(f"{where}: not JSON ({error}): {_glimpse(line)}")
                continue
            if isinstance(row, dict):
                yield where, row
            else:
                bad(f"{where}: expected an object like {{...}}, found {_glimpse(line)}")


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: broken or cut off gzip file ({error}). Copy it again.") from None


def _json(path: Path, bad: BadRecords) -> Iterator[Located]:
    with _open(path) as file:
        try:
            rows = json.loads(b"".join(_lines(file, path)).decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: not JSON ({error}). If it holds one object per line, name it .jsonl."
            ) from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects [{{...}}, ...], found {type(rows).__name__}.")
    for number, row in enumerate(rows):
        where = f"{path.name}[{number}]"
        if isinstance(row, dict):
            yield where, row
        else:
            bad(f"{where}: expected an object like {{...}}, found {_glimpse(json.dumps(row).encode())}")


def _csv(path: Path, bad: BadRecords) -> Iterator[Located]:
    with _open(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows = csv.DictReader(text, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
        try:
            for row in rows:
                where = f"{path.name}:{rows.line_num}"
                if None in row or None in row.values():
                    bad(
                        f"{where}: has more or fewer columns than the header ({', '.join(rows.fieldnames or [])})."
                    )
                else:
                    yield where, row
        except (csv.Error, UnicodeDecodeError, EOFError) as error:
            raise ValueError(f"{path}:{rows.line_num + 1}: cannot be read as csv ({error}).") from None


def _parquet(path: Path, bad: BadRecords) -> Iterator[Located]:
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as parquet ({error}).") from None
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            yield f"{path.name}[{number}]", row
            number += 1


def _hub(name: str, split: str) -> Iterator[Located]:
    from datasets import load_dataset

    owner, _, subset = name.partition(":")
    try:
        rows = load_dataset(owner, subset or None, split=split)
    except Exception as error:
        # The hub client raises many unrelated types: no such name, no network, no such split, no permission.
        raise ValueError(
            f"the hub gives no data set '{name}' with split '{split}': {error}\n"
            "  Is the name right, and the network there? Data on your disk is named by its path (train.jsonl), "
            "and built-in tasks look for theirs in the folder of the option data=FOLDER."
        ) from error
    return ((f"{name}/{split}[{number}]", row) for number, row in enumerate(stored(rows)))


def stored(rows: Any) -> Iterator[Row]:
    """The rows of a datasets.Dataset as they are stored: pictures and sounds undecoded, {"bytes": ..., "path": ...}."""
    for batch in rows.with_format("arrow").iter(batch_size=64):
        yield from batch.to_pylist()


def _glimpse(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace").strip()
    return text if len(text) <= 80 else text[:80] + "..."


READERS: dict[str, Callable[[Path, BadRecords], Iterator[Located]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
