"""`lightrft init`: what it writes passes its own check, as it stands."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lightrft.cli import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("kind", ["reward", "task"])
def test_what_is_written_passes_its_own_check(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    assert main(["init", kind, "my_own"]) == 0
    assert "cd my_own && python -m pytest" in capsys.readouterr().out
    folder = tmp_path / "my_own"
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-own"
    assert sorted(file.name for file in folder.iterdir()) == ["my_own.py", "pyproject.toml", "test_my_own.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_broken_reward_does_not_pass_the_check_that_came_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["init", "reward", "mine"])
    (tmp_path / "mine" / "mine.py").write_text("def mine(answer):\n    return 1.0\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "mine",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "! the better answer gets more" in done.stdout


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
