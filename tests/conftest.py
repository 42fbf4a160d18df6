"""Settings of the whole suite."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from tests.costs import Costs

# The models here are so small that a second thread only waits; on a shared machine it waits at everybody's cost.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

if find_spec("torchvision") is not None:
    # Compiled for CUDA, as PyPI has it, torchvision cannot load its operators beside a torch for CPUs, and stops when it
    # describes them. The media processors use none of them.
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))

EXTENDED = tuple(Path(__file__).with_name("extended.txt").read_text().splitlines())
"""Beginnings of the ids of tests that `make test` leaves out and `make test-all` runs: a claim that a test beside them makes each time, on
another kind of run, model, backend, moment or number of processes, where that takes long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--costs", type=int, default=0, metavar="N", help="CPU time of the N dearest files and tests"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.costs:
        config.pluginmanager.register(Costs(config.option.costs), "costs")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks those that are left out, before pytest looks at the marks."""
    for item in items:
        if item.nodeid.startswith(EXTENDED):
            item.add_marker("extended")
