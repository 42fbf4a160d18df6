"""What the documents show is run: Python blocks, YAML blocks as layers, and command lines.

A Python or YAML block whose first line is a comment with a file name (`# rewards.py`) is written to that file, which the
page's other blocks and command lines may name.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lightrft import cli
from lightrft.cli import loading
from lightrft.cli.options import TrainOptions, taken
from lightrft.config import RUNS, Config, DPOConfig, RewardTrainingConfig, SFTConfig, layers
from lightrft.runs import trajectories
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.metrics import Logger
from lightrft.types import Prompt, Trajectory
from lightrft.utils.imports import load_file

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ["--steps", "1", "--log.progress", "false", "--log.tensorboard", "false", "--evaluate.limit", "4", "--rewards.workers", "0"]  # fmt: skip
"""Appended to command lines that are run, so that they take a second."""
RUN_PAGE = ROOT / "docs" / "extending.md"


class Block(NamedTuple):
    """A fenced block and where it stands."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file name in its first line, "" if there is none."""
        named = re.match(r"# ([\w/.]+\.(?:py|yaml))\n", self.text)
        return named[1] if named else ""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    (f"{block}: {line.split('#')[0].strip()}", block.page, line)
    for block in BLOCKS
    if block.language in ("sh", "")
    for line in block.text.splitlines()
    if line.startswith("lightrft ")
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(page: Path, folder: Path) -> None:
    """The page's named blocks as files of the folder."""
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def write_run(run: Path) -> None:
    """A run folder of one step, with a group whose responses differ and one whose responses do not."""
    logger = Logger(run, tensorboard=False)
    logger.log(1, {"reward/mean": 0.75, "length/mean": 2.0})
    logger.close()
    saved = []
    for group, rewards in enumerate([(1.0, 0.0), (1.0, 1.0)]):
        prompt = Prompt(f"q{group}", [1], [{"role": "user", "content": "2 + 3?"}], "5", "sums")
        for reward in rewards:
            t = Trajectory(prompt, group, [7, 8], [True] * 2, [-0.5, -1.0], "stop", answer="5", reward=reward)
            t.columns = {"advantages": torch.tensor([1.0, 1.0])}
            t.learned = {"new": torch.tensor([-0.5, -1.1])}
            saved.append(t)
    trajectories.save(run, 1, saved, pieces=lambda ids: ["5", "."][: len(ids)])
    scores = {"sums": {"questions": 1, "score": {"mean": 1.0}}}
    EvaluationFolder(RunFolder(run).evaluation).write("after", scores, [{"response": "5", "reward": 1.0}])


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_blocks_run(block: Block, folder: Path) -> None:
    write_files(block.page, folder)
    file = folder / (block.file or "block.py")
    file.write_text(block.text, encoding="utf-8")
    if block.page.name == "run_folder.md":
        write_run(folder / "RUN")
    load_file(str(file))


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_blocks_are_layers(block: Block, folder: Path) -> None:
    file = folder / (block.file or "block.yaml")
    file.write_text(block.text, encoding="utf-8")
    kinds = {"sft.md": SFTConfig, "reward_models.md": RewardTrainingConfig, "preferences.md": DPOConfig}
    layers.load([str(file)], kinds.get(block.page.name, Config))


@pytest.mark.parametrize(("page", "line"), [c[1:] for c in COMMANDS], ids=[c[0] for c in COMMANDS])
def test_command_lines_are_understood(page: Path, line: str, folder: Path) -> None:
    """The command exists; where it takes layers and flags, they make a configuration."""
    write_files(page, folder)
    for name in ("my.yaml", "my_run.yaml"):
        (folder / name).touch()
    (folder / "examples").symlink_to(Path(__file__).resolve().parents[2] / "examples")
    (folder / "RUN").mkdir()
    (folder / "RUN" / "config.yaml").touch()
    name, *args = shlex.split(line, comments=True)[1:]
    assert name in cli.COMMANDS
    if name not in (*RUNS, "check", "config", "evaluate") or "LAYERS" in args:
        return
    args = [arg for arg in args if arg not in ("--resume", "RUN", "--check")]
    if name == "evaluate":
        assert not args[0].startswith("-")
        args = args[1:]
    kind = next((one for one in RUNS if one == name or args[:1] == [one]), "train")
    args = args[1:] if args[:1] == [kind] else args
    _, args = taken(TrainOptions, name, args)
    loading.load_as(RUNS[kind], name, args)


RUN = [c for c in COMMANDS if c[1] == RUN_PAGE]


@pytest.mark.parametrize(("page", "line"), [c[1:] for c in RUN], ids=[c[0] for c in RUN])
def test_every_extension_works_as_shown(page: Path, line: str, folder: Path) -> None:
    write_files(page, folder)
    name, *args = shlex.split(line)[1:]
    assert cli.main([name, *args, *SMALL, *(["--run", "run"] if name == "train" else [])]) == 0
    assert name != "train" or (folder / "run" / "summary.json").is_file()
