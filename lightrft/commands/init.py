"""`lightrft init`: a small package for a reward or a task of one's own, which passes its own check from the start."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

PROJECT = """\
[project]
name = "{package}"
version = "0.1.0"
description = "A {kind} for LightRFT"
requires-python = ">=3.11"
dependencies = ["lightrft"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
include = ["{name}.py"]

[tool.pytest.ini_options]
testpaths = ["test_{name}.py"]
pythonpath = ["."]
"""
REWARD = '''\
"""A reward: `lightrft train LAYERS --rewards.functions {name}:{name} 1.0`."""


def {name}(answer: str, target: str) -> float:
    """1 if the last word of the response is the target, else 0. Write your own rule here.

    A parameter is filled by its name: answer, target, prompt, messages, source, finish, num_tokens.
    """
    words = answer.split()
    return float(bool(words) and words[-1].strip(".,!?") == str(target))
'''
REWARD_TEST = """\
from lightrft.testing import Example, check_reward

EXAMPLES = [
    Example(question="What is 2 + 3?", target="5", right="It is 5.", wrong="It is 6."),
    Example(question="What is the capital of France?", target="Paris", right="Paris", wrong="Rome"),
]


def test_it_does_what_every_reward_must():
    found = check_reward("{name}:{name}", EXAMPLES)
    assert found.ok, str(found)
"""
TASK = '''\
"""A task: `lightrft train LAYERS --tasks.train {name}:{name} 1.0`."""

from lightrft.tasks.table import Records, Task
from lightrft.types import Message, Record


def load(split, config, data, seed):
    """Prompts of a split ("train" or "evaluate"). Read your own rows here; no prompt may be in both splits."""
    numbers = range(100) if split == "train" else range(100, 120)
    return Records(
        [
            Record(
                id=f"{name}/{{n}}",
                messages=[Message(role="user", content=f"What is {{n}} + {{n}}?")],
                target=str(n + n),
                source="{name}",
            )
            for n in numbers
        ]
    )


{name} = Task(
    name="{name}",
    load=load,
    rewards={{"number": 1.0}},
    gold=lambda record: f"It is {{record.target}}.",
    extract=lambda answer: answer.split()[-1].strip(".") if answer.split() else "",
)
'''
TASK_TEST = """\
from {name} import {name}

from lightrft.testing import check_task


def test_it_does_what_every_task_must():
    found = check_task({name})
    assert found.ok, str(found)
"""
KINDS = {"reward": (REWARD, REWARD_TEST), "task": (TASK, TASK_TEST)}


def init(args: Sequence[str]) -> int:
    """Write a package for a reward or a task of your own: lightrft init reward|task NAME."""
    if {"-h", "--help"} & set(args):
        print(dedent(init.__doc__ or ""))
        print(f"Kinds: {', '.join(KINDS)}. NAME: a Python name; the package is written to the folder NAME.")
        return 0
    if len(args) != 2 or args[0] not in KINDS:
        raise ValueError(f"init wants a kind and a name: lightrft init {'|'.join(KINDS)} NAME")
    folder = write_package(args[0], args[1])
    print(f"wrote {folder}: pyproject.toml, {args[1]}.py, test_{args[1]}.py")
    print(f"next: cd {folder} && python -m pytest, then change {args[1]}.py and its test")
    return 0


def write_package(kind: str, name: str, parent: Path = Path()) -> Path:
    """The folder NAME below `parent`, with module, test and pyproject.toml. ValueError if it exists or NAME is no name."""
    if not name.isidentifier() or keyword.iskeyword(name) or name in ("lightrft", "load"):
        raise ValueError(
            f"'{name}' cannot be the name of a module. Take letters, digits and _, as in: my_{kind}"
        )
    folder = parent / name
    if folder.exists():
        raise ValueError(f"{folder} exists already. Take another name, or remove it.")
    folder.mkdir(parents=True)
    module, test = KINDS[kind]
    given = {"name": name, "kind": kind, "package": name.replace("_", "-")}
    for file, text in {"pyproject.toml": PROJECT, f"{name}.py": module, f"test_{name}.py": test}.items():
        (folder / file).write_text(text.format(**given), encoding="utf-8")
    return folder
