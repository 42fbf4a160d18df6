"""The plan of runs that learn from given responses, against the parts that such a run makes."""

import contextlib
import json
import time

import pytest

from lightrft.build import dpo, reward, sft
from lightrft.cli import main
from lightrft.commands.plan.offline import Hardware, plan
from lightrft.config import RUNS, layers
from lightrft.runs.folder import new_run
from lightrft.strategy.memory import Phase

BUILD = {"sft": sft.build_run, "reward": reward.build_run, "dpo": dpo.build_run}
GIB = 2**30


def settings(command, *more):
    words = [f"{command}_tiny", *(word for word in more if word == "lora")]
    flags = [
        "--strategy.device",
        "cpu",
        "--log.progress",
        "false",
        *(word for word in more if word != "lora"),
    ]
    return layers.load([*words, *flags], RUNS[command])


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("sft", []),
        ("reward", []),
        ("dpo", []),
        ("dpo", ["lora"]),
        ("dpo", ["--loss", "simpo", "--options", "gamma", "1"]),
    ],
)
def test_the_plan_has_the_bytes_of_the_parts_that_a_run_makes(tmp_path, monkeypatch, command, more):
    monkeypatch.chdir(tmp_path)
    config = settings(command, *more)
    found = plan(config, Hardware(1, 8.0), 32, 8)
    planned = {item.name: item.bytes for item in found.items}
    with contextlib.ExitStack() as stack:
        made = BUILD[command](config, new_run(config, command), stack, started=time.perf_counter())
        parts = {name: part.nbytes() for name, (part, _) in made.memory_plan._rows.items()}
    if command == "sft":
        assert parts.pop("engine cache") == 0 < planned["engine cache"], (
            "it is there while something is sampled"
        )
    assert {name: planned[name] for name in parts} == parts
    assert ("reference weights" in planned) == (command == "dpo" and not more)


def test_two_responses_that_are_compared_are_read_together():
    tokens = ["--update.tokens-per-micro-batch", "64"]
    found = {c: plan(settings(c, *tokens), Hardware(1, 8.0), 50, 100).tokens for c in RUNS if c in BUILD}
    assert found == {"sft": 150, "reward": 250, "dpo": 250}


def test_the_largest_batch_just_fits_and_what_does_not_is_told():
    config = settings("reward")
    small = Hardware(1, 0.05, reserve=0.0)
    largest = plan(config, small, 32, 8).largest_batch
    sizes = [
        plan(settings("reward", "--update.tokens-per-micro-batch", str(n)), small, 32, 8)
        for n in (largest, largest + 1)
    ]
    assert [max(one.sums.values()) <= one.usable for one in sizes] == [True, False]
    assert sizes[0].problems == []
    assert f"Lower update.tokens_per_micro_batch to {largest:,} or less" in sizes[1].problems[0]
    assert "batch_size=16" in plan(config, Hardware(3, 8.0), 32, 8).problems[-1]


def test_the_command_says_it_for_programs_too(capsys):
    assert main(["plan", "reward", "reward_tiny", "--gpus", "1", "--gpu-memory", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["memory"]["sums"].keys() == {Phase.SCORE.value, Phase.TRAIN.value}
    assert said["batch"]["largest"] > said["batch"]["tokens"] > 0
    assert main(["plan", "dpo", "dpo_tiny", "--gpus", "1", "--gpu-memory", "8"]) == 0
    assert "reference weights" in capsys.readouterr().out
