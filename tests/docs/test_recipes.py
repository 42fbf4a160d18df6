"""Recipes for containers and clusters: they parse, and every command of ours in them has options that exist. None is run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lightrft.config import Config, layers

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
FILES = sorted(file for file in RECIPES.iterdir() if file.is_file())


def shells(file: Path) -> list[str]:
    """The shell texts of a recipe."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".sh":
        return [text]
    if file.suffix == ".yaml":
        return [found for document in yaml.safe_load_all(text) for found in scripts(document)]
    return [re.sub(r"\\\n", " ", found) for found in re.findall(r"^RUN ((?:.*\\\n)*.*)$", text, re.MULTILINE)]


def scripts(tree: object) -> list[str]:
    """Texts of several lines below a tree."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [found for one in tree for found in scripts(one)]
    return [tree] if isinstance(tree, str) and "\n" in tree else []


def test_there_is_a_recipe_for_each_kind_of_place() -> None:
    assert [file.name for file in FILES] == ["Dockerfile", "kubernetes.yaml", "skypilot.yaml", "slurm.sh"]
    assert all("Not run here" in file.read_text(encoding="utf-8") for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_its_shell_can_be_read(file: Path) -> None:
    assert shells(file)
    for text in shells(file):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_it_trains_is_a_configuration(file: Path) -> None:
    text = re.sub(r"\\\n", " ", file.read_text(encoding="utf-8"))
    asked = re.findall(r"(?:\b|\")((?:grpo|tiny)\b[^\"'\n;)]*)", text)
    assert asked
    for words in asked:
        flags = [word for word in words.split() if not word.startswith("$")]
        if flags[-1] == "--run":
            flags.append("runs/x")
        if "--run" in flags and flags[flags.index("--run") + 1].startswith("--"):
            flags.insert(flags.index("--run") + 1, "runs/x")
        layers.load(flags, Config)


def test_torchrun_is_asked_for_options_that_it_has() -> None:
    from torch.distributed.run import get_args_parser

    known = {name for action in get_args_parser()._actions for name in action.option_strings}
    for file in FILES:
        text = re.sub(r"\\\n", " ", file.read_text(encoding="utf-8"))
        for command in re.findall(r"torchrun (.*?) -m lightrft", text):
            given = re.findall(r"(--[\w-]+)", command)
            assert given, command
            assert {name for name in given if name not in known} == set(), file.name


def test_the_container_asks_for_extras_that_there_are() -> None:
    import tomllib

    root = RECIPES.parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    text = (RECIPES / "Dockerfile").read_text(encoding="utf-8")
    asked = {extra for found in re.findall(r"EXTRAS=([\w,]+)", text) for extra in found.split(",")}
    assert asked
    assert asked <= extras.keys()
