"""Nested states (tensors, numbers, texts in dicts, lists and tuples) in one file, read back without running code.

The file is one of `torch.save` that `torch.load(weights_only=True)` accepts, so that a checkpoint from elsewhere can
do no more harm than a wrong number.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy
import torch
from torch import Tensor

_NUMPY = "\0numpy"
"""The only key of a dict that stands for a numpy array."""
_CHUNK = 1 << 24
_BARE: dict[type, Callable[[Any], Any]] = {int: int, float: float, str: str.__str__}
"""How a number or a text of a subclass becomes one of the plain type."""


def write_state(path: Path, state: Any) -> str:
    """Writes `state` and returns the CRC-32 of the file, 8 hexadecimal digits.

    numpy arrays come back as such, numpy numbers as Python numbers, subclasses of dict, list and tuple as the plain
    type. ValueError naming the place of anything else.
    """
    with path.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(plain(state), watched)  # type: ignore[arg-type]  # torch only calls write and flush
        except RuntimeError:
            if watched.error is not None:  # torch hides it behind an error about the position in the file
                raise watched.error from None
            raise
    return f"{watched.crc:08x}"


def read_state(path: Path) -> Any:
    """What `write_state` wrote, on the CPU, in memory of its own.

    Not mapped from the file: an optimizer keeps the tensors it is given, and a checkpoint that is still mapped when
    rotation removes it would hold its disk space (and on NFS could not be removed). ValueError if it is torn or was
    changed.
    """
    try:
        return _restore(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path} is not as it was written, or is no file of ours: {error}") from error


def file_crc(path: Path) -> str:
    """The CRC-32 of a file, 8 hexadecimal digits."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def plain(value: Any, where: str = "state") -> Any:
    """`value` in the few types that are loaded without running code. ValueError naming `where` it has another."""
    if value is None or isinstance(value, bool | bytes):
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc":
        return {_NUMPY: torch.from_numpy(value.copy())}
    if isinstance(value, numpy.generic):
        return plain(value.item(), where)
    for kind, bare in _BARE.items():
        if isinstance(value, kind):
            return bare(value)
    return _plain_container(value, where)


def _plain_container(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {plain(k, f"a key of {where}"): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise ValueError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved. "
        "A state holds tensors, numpy arrays, numbers, texts, None, and dicts, lists and tuples of these."
    )


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_NUMPY}:
            return value[_NUMPY].numpy()
        return {k: _restore(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_restore(v) for v in value]
    return tuple(_restore(v) for v in value) if isinstance(value, tuple) else value


class _Watched:
    """A file for torch.save that sums up what passes and remembers the error that stopped it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.crc = file, 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
