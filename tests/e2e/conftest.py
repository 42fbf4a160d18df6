from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.runs import DRAWING, GIVEN_PICTURES, PLAIN, Lightrft, Server


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
    Lightrft(server, folder)("train", "tiny", *PLAIN, "--log.curves=true", "--run", "run")
    return folder / "run"


@pytest.fixture(scope="session")
def drawn_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that was hardly taught, for tests to which it does not matter what it draws."""
    from lightrft.models.tiny_pictures import Recipe, make_pipeline

    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")
    folder = tmp_path_factory.mktemp("digits") / "pipeline"
    make_pipeline(folder, Recipe(updates=5))
    return folder


@pytest.fixture(scope="session")
def drawing_run(server: Server, drawn_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of a model that draws, of which the second is captured."""
    place = tmp_path_factory.mktemp("pictures")
    flags = ["--model.path", drawn_pipeline, "--run", "run", "--steps", "3", "--log.capture-steps", "2"]
    Lightrft(server, place)("train", *DRAWING, *flags)
    return place / "run"


@pytest.fixture(scope="session")
def taught_to_draw(server: Server, drawn_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of a model that learns to draw given pictures."""
    place = tmp_path_factory.mktemp("given")
    flags = ["--model.path", drawn_pipeline, "--steps", "4", "--run", "run", "--log.held-out-prompts", "2"]
    Lightrft(server, place)("sft", *GIVEN_PICTURES, *flags)
    return place / "run"
