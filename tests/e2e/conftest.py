from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.runs import PLAIN, Lightrft, Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def lightrft(server: Server, tmp_path: Path) -> Lightrft:
    """Runs command lines in processes of their own, in the test's folder."""
    return Lightrft(server, tmp_path)


@pytest.fixture(scope="session")
def tiny_run(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run of the layer `tiny` that tests read and never change."""
    folder = tmp_path_factory.mktemp("tiny")
    Lightrft(server, folder)("train", "tiny", *PLAIN, "--run", "run")
    return folder / "run"
