"""`lightrft init`: what it writes passes its own check, as it stands."""

import contextlib
import io
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lightrft.cli import main

ROOT = Path(__file__).resolve().parents[3]
ONE_BY_ONE = """
import os, sys
import pytest, lightrft.testing

for folder in sys.argv[1:]:
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.dup2(os.open("said.txt", os.O_WRONLY | os.O_CREAT), 1)
        sys.path.insert(0, folder)  # as python -m pytest does
        os._exit(pytest.main(["-q", "-p", "no:cacheprovider"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""Imports once, and forks for the tests of each folder."""


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Name of what was made -> its folder, what `lightrft init` said, the status of its own tests, and what these said."""
    place = tmp_path_factory.mktemp("made")
    names, told = {"reward": "my_own", "task": "my_task", "broken": "mine"}, []
    with contextlib.chdir(place):
        for kind, name in names.items():
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert main(["init", "task" if kind == "task" else "reward", name]) == 0
            told.append(said.getvalue())
    folders = [place / name for name in names.values()]
    made = [sorted(file.name for file in folder.iterdir()) for folder in folders]
    (place / "mine" / "mine.py").write_text("def mine(answer):\n    return 1.0\n")
    line = [sys.executable, "-c", ONE_BY_ONE, *map(str, folders)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    output = [(folder / "said.txt").read_text() for folder in folders]
    return dict(
        zip(names, zip(folders, told, made, map(int, done.stdout.split()), output, strict=True), strict=True)
    )


@pytest.mark.parametrize("kind", ["reward", "task"])
def test_what_is_written_passes_its_own_check(checked, kind):
    folder, told, files, status, said = checked[kind]
    name = folder.name
    assert f"cd {name} && python -m pytest" in told
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == name.replace("_", "-")
    assert files == sorted([f"{name}.py", "pyproject.toml", f"test_{name}.py"])
    assert status == 0, said
    assert "1 passed" in said


def test_a_broken_reward_does_not_pass_the_check_that_came_with_it(checked):
    *_, status, said = checked["broken"]
    assert status == 1
    assert "! the better answer gets more" in said


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "lightrft init reward|task NAME"),
        (["judge", "mine"], "lightrft init reward|task NAME"),
        (["reward", "my-own"], "'my-own' cannot be the name of a module"),
        (["task", "there"], "there exists already"),
    ],
)
def test_what_cannot_be_written_is_told(tmp_path, monkeypatch, capsys, args, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main(["init", *args]) == 2
    assert told in capsys.readouterr().err
