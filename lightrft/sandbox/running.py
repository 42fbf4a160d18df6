"""The side of a repository's tests: runs them with pytest and reports which of them passed. Sent compiled; the program is run beside it,
in one process, so nothing that the program could change in passing is trusted: not the exit code, what was printed, nor pytest itself.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

GUARDED = frozenset(["_pytest", "builtins", "pluggy", "pytest", "unittest"])
"""Packages whose functions and classes must be what they were before the first line of the program."""
PASSED_OR_NOT = (0, 1)
"""Exit codes of a pytest that has run its tests."""


class Watch:
    """A plugin that knows what became of each test, and whether pytest was changed meanwhile."""

    def __init__(self) -> None:
        self.good: set[str] = set()
        self.bad: set[str] = set()
        self.failed = False
        self.sound = True
        self.parts: dict[tuple[str, ...], Any] = {}
        self.plugins: set[Any] = set()

    def pytest_collection(self, session: Any) -> None:
        """Remembers what is there before any file of the repository is read."""
        self.manager = session.config.pluginmanager
        self.parts, self.plugins = dict(parts()), set(self.manager.get_plugins())

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Remembers a step of a test: its beginning, itself, or its end."""
        self.failed |= report.outcome == "failed"
        right = report.outcome == "passed" and not hasattr(report, "wasxfail")
        if not right:
            self.bad.add(report.nodeid)
        elif report.when == "call":
            self.good.add(report.nodeid)
        self.look()

    def look(self) -> None:
        """Whether all is as it was; files called conftest.py are the repository's own, and may add themselves."""
        now = dict(parts())
        self.sound &= all(same(now.get(key), part) for key, part in self.parts.items())
        more = set(self.manager.get_plugins()) - self.plugins
        self.sound &= all(str(getattr(one, "__file__", "")).endswith("/conftest.py") for one in more)


def parts() -> Iterator[tuple[tuple[str, ...], Any]]:
    """What is called in the guarded packages: (where it is, itself and its code)."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in GUARDED:
            continue
        for key, value in list(vars(module).items()):
            if callable(value):
                yield (name, key), _part(value)
            if isinstance(value, type) and value.__module__ == name:
                for inner, part in list(vars(value).items()):
                    if callable(part) or isinstance(part, property | staticmethod | classmethod):
                        yield (name, key, inner), _part(part)


def _part(value: Any) -> tuple[Any, Any]:
    return value, value.__code__ if type(value) is type(parts) else None


def same(now: tuple[Any, Any] | None, before: tuple[Any, Any]) -> bool:
    """Whether they are the same objects, whatever equals what."""
    return now is not None and now[0] is before[0] and now[1] is before[1]


def run(tests: Sequence[str], packages: Sequence[str], secret: int, report: int) -> None:
    """Runs the files of these tests, and reports a word that only the judge knows, then 1 or 0 for each test; or ! and why there is no
    pytest. Ends the process."""
    word = os.read(secret, 64)
    os.close(secret)
    sys.path[:] = [*(p for p in sys.path if p), *packages, os.getcwd()]
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", HOME=os.getcwd(), TMPDIR=os.getcwd())
    try:
        __import__("unittest.mock")  # pytest may do so later, when it could be another one
        import pytest
    except ImportError as error:
        os.write(report, f"!{error}".encode())
        os._exit(1)
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    here = [file for file in files if os.path.exists(file)]
    options = ["-p", "no:cacheprovider", "-p", "no:terminal", "--import-mode=append", "--rootdir=."]
    watch = Watch()
    leave, write = os._exit, os.write
    try:
        code = int(pytest.main([*options, *here], plugins=[watch])) if here else 0
    except BaseException:
        leave(1)
    sound = watch.sound and code in PASSED_OR_NOT and (code == 1) == watch.failed
    marks = "".join("01"[sound and test in watch.good and test not in watch.bad] for test in tests)
    write(report, word + marks.encode())
    leave(0)
