"""Rows that lie in several files, in a data set saved by `datasets`, or at an address: what is there, in one order for all."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lightrft.datasets.rollouts import rollouts_folder
from lightrft.utils.imports import require
from lightrft.utils.paths import expanded, with_home

SAVED = ("dataset_dict.json", "state.json")
"""A file of these is in a folder that datasets.save_to_disk wrote."""
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}
"""How an address begins -> the package by which fsspec reads it."""
WILD = "*?["


def is_address(place: str) -> bool:
    """Whether a place is an address that fsspec reads, such as s3://bucket/rows.jsonl."""
    return "://" in place


def is_pattern(place: str) -> bool:
    """Whether a place is a pattern of file names."""
    return any(sign in place for sign in WILD) and not expanded(place, "data file").exists()


def is_there(place: str) -> bool:
    """Whether a place of this machine has a file."""
    path = expanded(place, "data file")
    return path.exists() or (is_pattern(place) and bool(glob.glob(str(path), recursive=True)))


def base_of(place: str) -> Path:
    """The folder that the rows of a place lie in, by which relative paths of pictures and sounds go."""
    path = expanded(place, "data file")
    while any(sign in str(path) for sign in WILD) and not path.exists():
        path = path.parent
        if not any(sign in str(path) for sign in WILD):
            return path
    return path if path.is_dir() and rollouts_folder(place) is None else path.parent


def saved_set(place: str) -> Path | None:
    """The folder of a data set that `datasets` saved, if a place is one."""
    path = expanded(place, "data file")
    return path if any((path / name).is_file() for name in SAVED) else None


def read_saved(folder: Path, split: str) -> Any:
    """The rows of a saved data set, of one split if it has several."""
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever the files make it
        raise ValueError(f"{folder}: datasets cannot read it: {error}") from error
    if not isinstance(found, DatasetDict):
        return found
    if split not in found:
        raise ValueError(f"{folder} has no split '{split}'; it has: {', '.join(sorted(found))}.")
    return found[split]


def shards(place: str, readable: Callable[[str], bool]) -> list[tuple[str, Path]]:
    """The files of a pattern or a folder with their names below its fixed part, sorted. ValueError if there are none, or if a folder
    holds files of several kinds, of which only some may be rows."""
    base = base_of(place)
    if is_pattern(place):
        files = [Path(found) for found in glob.glob(str(expanded(place, "data file")), recursive=True)]
        files = [file for file in files if file.is_file()]
        unread = sorted(file.name for file in files if not readable(file.name))
        if unread:
            raise ValueError(
                f"{place}: cannot read {unread[0]}. Name a pattern of json, jsonl, csv or parquet files alone."
            )
    else:
        files = [
            f
            for f in base.rglob("*")
            if f.is_file() and readable(f.name) and not _hidden(f.relative_to(base))
        ]
        kinds = sorted(
            {"".join(file.suffixes[-2:] if file.suffix == ".gz" else file.suffixes[-1:]) for file in files}
        )
        if len(kinds) > 1:
            raise ValueError(
                f"{place}: the folder holds {' and '.join(kinds)} files, and not all may be rows. Name one kind: {base / f'**/*{kinds[0]}'}"
            )
    if not files:
        raise ValueError(
            f"{place}: no json, jsonl, csv or parquet file is there (looked in {base.resolve()})."
        )
    return sorted((file.relative_to(base).as_posix(), file) for file in files)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def fetched(place: str, readable: Callable[[str], bool]) -> Iterator[tuple[str, Path]]:
    """The files at an address, one at a time in a folder that is gone when the next is asked for; named as in `shards`."""
    kind, place = place.partition("://")[0], with_home(place)
    import fsspec

    if kind in PACKAGES:
        require(PACKAGES[kind], PACKAGES[kind])
    try:
        system, path = fsspec.url_to_fs(place)
        names = _names(system, path, readable)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{place}: the address cannot be read: {error}") from error
    if not names:
        raise ValueError(f"{place}: no json, jsonl, csv or parquet file is at this address.")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="lightrft-rows-") as folder:
            own = Path(folder, PurePosixPath(name).name)
            try:
                system.get_file(name, str(own))
            except OSError as error:
                raise ValueError(f"{place}: {name} cannot be fetched: {error}") from error
            yield _below(path, name), own


def _names(system: Any, path: str, readable: Callable[[str], bool]) -> Sequence[str]:
    if any(sign in path for sign in WILD):
        return sorted(str(name) for name in system.glob(path))
    if system.isdir(path):
        return sorted(str(name) for name in system.find(path) if readable(str(name)))
    return [path]


def _below(path: str, name: str) -> str:
    """A file's name below the fixed part of an address, in which no file has the name of another."""
    fixed = PurePosixPath(path).parts
    own = PurePosixPath(name).parts
    same = 0
    while same < min(len(fixed), len(own) - 1) and fixed[same] == own[same]:
        same += 1
    return "/".join(own[same:])
