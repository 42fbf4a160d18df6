"""Runs from Python: rows and functions of a program, twice in a row, in a thread, and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

import lightrft
from lightrft import Config, cli
from lightrft.config import layers
from lightrft.datasets import deferred
from lightrft.runs.layout import RunFolder
from tests.e2e.runs import assert_same_run

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"prompt": f"Say {word}", "target": word, "weight": n} for n, word in enumerate("abcdefgh")]
SMALL = {
    "model": "random:llama",
    "data": ROWS,
    "algorithm": "grpo",
    "steps": 1,
    "rollout": {"prompts_per_step": 2, "group_size": 2, "max_tokens": 4},
    "log": {"progress": False, "tensorboard": False},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def of_step(run):
    """What a step logged, without times and memory."""
    return {
        k: v
        for k, v in run.metrics()[0].items()
        if not k.startswith(("time", "seconds", "memory", "rollout/", "train/", "phase"))
    }


def test_two_runs_in_a_row_the_second_in_a_thread_are_the_same_and_leave_the_process_as_it_was():
    weight = 2.0

    def vowels(answer: str) -> float:  # of this function alone: it reaches the worker pickled
        return weight * sum(c in "aeiou" for c in answer)

    told = []

    class Sink:
        def __init__(self, run):
            told.append((run.name, run.settings["steps"]))

        def log(self, step, metrics):
            told.append((step, metrics["reward/mean"]))

        def groups(self, step, rows):
            told.append((step, [row["reward"] for row in rows]))

        def close(self):
            told.append("closed")

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    runs = [lightrft.train(**SMALL | {"log": {**SMALL["log"], "to": [Sink]}}, rewards=vowels)]
    responses = runs[0].responses()
    first = [row["reward"] for row in responses if row["group"] == responses[0]["group"]]
    mean = runs[0].metrics()[0]["reward/mean"]
    assert told == [(runs[0].folder.name, 1), (1, mean), (1, first), "closed"]
    thread = threading.Thread(target=lambda: runs.append(lightrft.train(**SMALL, rewards=vowels)))
    thread.start()
    thread.join()
    assert len({run.folder for run in runs}) == 2
    assert of_step(runs[0]) == of_step(runs[1])
    assert [len(run.responses()) for run in runs] == [4, 4]
    assert all(
        row["reward"] == weight * sum(c in "aeiou" for c in row["response"]) for row in runs[1].responses()
    )
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_a_run_goes_on_from_python_and_the_command_line_says_what_is_missing(capsys):
    def short(answer: str, weight: int) -> float:  # of the row
        return -float(weight)

    run = lightrft.train(**SMALL, rewards={short: 0.5})
    assert {row["parts"]["short"] for row in run.responses()} <= {-float(row["weight"]) for row in ROWS}
    settings = yaml.safe_load(RunFolder(run.folder).config.read_text(encoding="utf-8"))
    assert settings["tasks"]["train"] == {"inline:rows": 1.0}
    assert settings["rewards"]["functions"] == {"inline:short": 0.5}
    assert cli.main(["train", "--resume", str(run.folder), "--steps", "2"]) == 2
    told = capsys.readouterr().err
    assert "tasks.train names inline:rows; rewards.functions names inline:short" in told
    assert f"lightrft.train(resume='{run.folder}', data=..., rewards=...)" in told
    again = lightrft.train(resume=run.folder, steps=2, data=ROWS, rewards={short: 0.5})
    assert again.folder == run.folder
    assert [row["step"] for row in again.metrics()] == [1, 2]
    assert (
        layers.load([str(RunFolder(run.folder).config)], Config).rollout.group_size == 2
    )  # of the run, not anew


def test_a_function_that_hangs_ends_by_its_time_limit_as_an_exception_of_one_line():
    def endless(answer: str) -> float:
        while True:
            pass

    with pytest.raises(RuntimeError) as raised:
        lightrft.train(**SMALL, rewards={"functions": [endless], "timeout_seconds": 1.0})
    assert (
        "'inline:endless' failed on responses of task 'rows': it took longer than rewards.timeout_seconds=1"
        in str(raised.value)
    )
    assert "\n" not in str(raised.value)


def test_a_reward_that_asks_for_what_no_row_has_is_refused_before_any_weight_loads(monkeypatch):
    monkeypatch.setattr("lightrft.build.rl.build_models", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(
        ValueError,
        match="reward 'inline:graded' asks for 'level', and rows/data.0. has no such field; it has: prompt, target",
    ):
        lightrft.train(**SMALL, rewards={"graded": lambda answer, level: 1.0})
    with pytest.raises(ValueError, match="asks for 'completion', which is called 'answer' here"):
        lightrft.train(**SMALL, rewards={"elsewhere": lambda completion: 1.0})


def test_the_notebook_of_the_examples_runs_from_its_first_cell_to_its_last(tmp_path):
    """In a process of its own, whose main module the cells are, as in a notebook."""
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    program = "import sys, json\nfor cell in json.load(sys.stdin):\n    exec(compile(cell, 'cell', 'exec'), globals())\n"
    program += "assert rewards[-1] > rewards[0] + 0.2\nassert run._repr_html_()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(cells),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_whole_config_trains_and_evaluation_fine_tuning_and_comparisons_take_rows():
    config = layers.load(
        ["tiny", "--steps", "1", "--evaluate.limit", "2", "--log.tensorboard", "false"], Config
    )
    run = lightrft.train(config)
    assert set(run.evaluations) == {"before", "after"}
    small = {
        "model": str(RunFolder(run.folder).model),
        "log": {"progress": False, "tensorboard": False},
        "steps": 1,
        "batch_size": 2,
    }
    talks = [{"prompt": row["prompt"], "response": row["target"]} for row in ROWS]
    taught = lightrft.sft(**small, data=talks, evaluate=talks[:2])
    assert {"nll", "held_out_nll/mean"} <= {name for row in taught.metrics() for name in row}
    pairs = [{"prompt": "Say a", "chosen": "a", "rejected": letter} for letter in "bcde"]
    assert "pairs/accuracy" in lightrft.dpo(**small, data=pairs).metrics()[0]
    assert "pairs/accuracy" in lightrft.reward(**small, data=pairs).metrics()[0]
    scores = lightrft.evaluate(
        model=taught.folder / "model",
        data=ROWS,
        rewards=lambda answer: 1.0,
        evaluate={"limit": 2, "max_tokens": 4},
    )
    assert scores["rows"]["score"]["mean"] == 1.0
    assert scores["rows"]["questions"] == 2


def test_prompts_that_are_tokenised_when_drawn_give_the_same_run_before_and_after_a_resume(monkeypatch):
    rows = [{"prompt": f"Say {word}" + "!" * n, "target": word} for n, word in enumerate("abcdefgh")]
    asked = SMALL | {"data": rows, "rewards": "majority", "steps": 3, "tasks": {"max_prompt_tokens": 90}}
    whole = lightrft.train(**asked)
    begun = lightrft.train(**asked | {"steps": 1})
    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    monkeypatch.setattr(deferred, "LONGEST", 1)
    late = lightrft.train(**asked)
    gone_on = lightrft.train(**asked, resume=begun.folder)
    assert_same_run(whole.folder, late.folder)
    assert_same_run(whole.folder, gone_on.folder)
