"""Objects of the Python program that began a run, which its settings name as inline:NAME.

A function that a person wrote in a notebook has no file to import it from. It is kept here while its run goes on, and travels pickled to
the processes that call it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

PREFIX = "inline:"
_HELD: dict[str, Any] = {}
"""inline:NAME -> the object."""


@contextmanager
def held(objects: Mapping[str, Any]) -> Iterator[None]:
    """Inside, these objects (by full name) are found in place of those that were held before."""
    before = dict(_HELD)
    _HELD.clear()
    _HELD.update(objects)
    try:
        yield
    finally:
        _HELD.clear()
        _HELD.update(before)


def is_inline(name: str) -> bool:
    """Whether a name in the settings means an object of the program that began the run."""
    return name.startswith(PREFIX)


def missing(names: Sequence[str]) -> list[str]:
    """The names among these that mean an object which this program does not hold."""
    return [name for name in names if is_inline(name) and name not in _HELD]


def find(name: str, what: str) -> Any:
    """The object called inline:NAME. ValueError saying what is missing where this program does not hold it."""
    if name in _HELD:
        return _HELD[name]
    raise ValueError(
        f"{what} '{name}' was given from Python by the program that began the run, and this one does not hold it. Go on from Python with "
        "the same object, e.g. lightrft.train(resume='RUN', ...), or put it into a file and name that: path/to/file.py:NAME."
    )


def packed(names: Sequence[str], what: str) -> dict[str, bytes]:
    """The objects among the names, pickled for another process. ValueError for one that does not pickle."""
    return {name: _pickled(name, what) for name in names if is_inline(name)}


def unpack(objects: Mapping[str, bytes]) -> None:
    """Takes over what another process packed, until this process ends."""
    if objects:
        import cloudpickle

        _HELD.update({name: cloudpickle.loads(content) for name, content in objects.items()})


def _pickled(name: str, what: str) -> bytes:
    import cloudpickle

    found = find(name, what)
    module = sys.modules.get(getattr(found, "__module__", None) or "")
    by_value = module is not None and not _is_found_elsewhere(module)
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        pickled: bytes = cloudpickle.dumps(found)
    except Exception as error:  # whatever an object's own parts raise
        told = str(error).split("\n")[0]
        raise ValueError(
            f"{what} '{name}' cannot be sent to the process that is to call it ({type(error).__name__}: {told}). Open files, locks and "
            "connections inside the function instead of outside."
        ) from None
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return pickled


def _is_found_elsewhere(module: ModuleType) -> bool:
    """Whether a new process with the same paths could import the module: not the program itself, nor a file loaded under a name of ours."""
    return module.__name__ == "__main__" or PathFinder.find_spec(module.__name__.split(".")[0]) is not None
