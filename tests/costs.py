"""What tests cost: CPU time of the test process and of all that it has started, which other work on the machine changes far less than the clock.

`pytest --costs 20` prints the sum of each file, and the 20 dearest tests. A test pays for the fixtures that are made for it first.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """User and system time of this process and all below it, ended or alive; outside Linux, of itself and those that ended."""
    if not Path("/proc/self/task").exists():
        return sum(os.times()[:4])
    ticks, waiting = 0, [str(os.getpid())]
    while waiting:
        process = Path("/proc", waiting.pop())
        try:
            # Behind the name in parentheses; utime, stime, and both of the children that were waited for.
            ticks += sum(
                int(field) for field in (process / "stat").read_text().rpartition(")")[2].split()[11:15]
            )
            for thread in (process / "task").iterdir():
                waiting += (thread / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended; its parent counts it
    return ticks / TICKS


class Costs:
    """A plugin of each test process, and of the one that reports."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last = cpu_seconds()
        self._of_tests: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """Adds to the report of a phase what was spent since the last; reports of other processes come with their attributes."""
        report = yield
        now = cpu_seconds()
        report.cpu_seconds, self._last = now - self._last, now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._of_tests[report.nodeid] += getattr(report, "cpu_seconds", 0.0)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        files: Counter[str] = Counter()
        for test, seconds in self._of_tests.items():
            files[test.partition("::")[0]] += seconds
        terminalreporter.section(f"CPU time, {sum(files.values()):.0f} s")
        for table in (files, self._of_tests):
            for name, seconds in table.most_common(self._most):
                terminalreporter.write_line(f"{seconds:8.1f} s  {name}")
            terminalreporter.write_line("")
