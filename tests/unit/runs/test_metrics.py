"""metrics.jsonl, the timer, the terminal progress and the picture of the curves."""

from __future__ import annotations

import importlib.abc
import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lightrft.config import Config, LogConfig, ModelConfig, SFTConfig, TaskConfig
from lightrft.console.progress import (
    Progress,
    clock,
    phase_seconds,
    report,
    report_losses,
    sparkline,
)
from lightrft.console.samples import shorten
from lightrft.runs import curves
from lightrft.runs.curves import draw_curves, smooth, title_of
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.metrics import Logger, read_metrics, series
from lightrft.runs.summary import samples
from lightrft.utils.intervals import wilson

CONFIG = Config(model=ModelConfig(path="random:llama"), tasks=TaskConfig(train={"tiny": 1.0}))
METRICS = {
    "reward/mean": 0.5,
    "length/mean": 41.0,
    "seconds/rollout": 3.0,
    "seconds/train": 1.0,
    "seconds/step": 4.0,
}


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with Logger(tmp_path, tensorboard=False) as logger:
        logger.log(1, {"loss": 0.5, "kl": float("nan")})
        row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["step"] == 1
    assert row["loss"] == 0.5
    assert row["kl"] is None
    assert row["time"] > 0


def test_a_resumed_run_drops_the_lines_of_steps_it_will_take_again(tmp_path: Path) -> None:
    with Logger(tmp_path, tensorboard=False) as logger:
        for step in (1, 2, 3):
            logger.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with Logger(tmp_path, start_step=2, tensorboard=False) as logger:
        logger.log(3, {"loss": 30.0})
    assert series(read_metrics(tmp_path), "loss") == ([1, 2, 3], [1.0, 2.0, 30.0])


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log(1, {"loss": 0.5})
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_outside_a_terminal_each_step_is_one_line() -> None:
    out = io.StringIO()
    with Progress(CONFIG, 10, console=Console(file=out, width=80)) as progress:
        progress.phase("rollout")
        progress.responses(3, 16)
        progress.step(1, METRICS)
        progress.note("[saved]")
    lines = out.getvalue().splitlines()
    assert lines == [
        "random:llama · tiny · run",
        "step 1/10  reward 0.500  response length 41 tokens  4.0 s  0:36 left",
        "[saved]",
    ]


def test_in_a_terminal_the_picture_shows_step_phase_and_answers() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    progress = Progress(CONFIG, 10, console=console)
    assert progress.live
    progress.step(1, METRICS)
    progress.phase("rollout")
    progress.responses(3, 16)
    with console.capture() as captured:
        console.print(progress.render())
    picture = captured.get()
    for text in ("step 1 of 10", "0:36 left", "reward", "rollout 3.0 s", "3/16 responses"):
        assert text in picture


def test_a_step_of_supervised_fine_tuning_is_told_by_its_loss() -> None:
    out = io.StringIO()
    config = SFTConfig(model=ModelConfig(path="random:llama"), tasks=TaskConfig(train={"tiny": 1.0}))
    with Progress(config, 10, console=Console(file=out, width=200)) as progress:
        progress.step(1, {"nll": 2.5, "length/mean": 41.0, "seconds/step": 4.0})
    assert (
        out.getvalue().splitlines()[1]
        == "step 1/10  loss per token 2.500  response length 41 tokens  4.0 s  0:36 left"
    )


def test_the_curves_of_supervised_fine_tuning_are_titled_with_its_losses(tmp_path: Path) -> None:
    summary = {"steps": 4, "held_out_nll": {"before": 2.5, "after": 1.25}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert title_of(tmp_path) == f"{tmp_path.name}: held-out loss 2.500 before, 1.250 after 4 steps"


def test_the_picture_can_be_switched_off_and_other_ranks_are_silent() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    config = Config(log=LogConfig(progress=False))
    assert not Progress(config, 10, console=console).live
    assert Progress(CONFIG, 10, show=False).console.quiet


def test_time_left_starts_from_the_step_a_run_was_resumed_at() -> None:
    progress = Progress(CONFIG, 10, start_step=6, show=False)
    assert progress.seconds_left() is None
    progress.step(7, {"seconds/step": 2.0})
    assert progress.seconds_left() == 6.0


def test_small_things_that_are_shown() -> None:
    assert sparkline([0, 1, 2], 10) == "▁▅█"
    assert sparkline([1, 1], 10) == "▄▄"
    assert sparkline([0, 0, 2, 2], 2) == "▁█"
    assert (clock(65), clock(3725)) == ("1:05", "1:02:05")
    assert list(phase_seconds({"seconds/train": 1.0, "seconds/step": 3.0, "seconds/rollout": 2.0})) == [
        "rollout",
        "train",
    ]
    assert shorten("x" * 700).startswith("x" * 300 + "\n[... 100 characters ...]")


def test_wilson_interval_of_half_of_a_hundred() -> None:
    low, high = wilson(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert wilson(0.0, 10)[0] == 0.0


def test_the_report_of_supervised_fine_tuning_shows_losses_and_what_comes_next(tmp_path: Path) -> None:
    out = io.StringIO()
    summary = {"seconds": 65.0, "steps": 4, "held_out_nll": {"before": 2.5, "after": 1.25}}
    report_losses(summary, tmp_path, console=Console(file=out, width=200))
    text = out.getvalue()
    assert "4 steps in 1:05" in text
    assert "held-out loss before: 2.5000 nats per token" in text
    assert "held-out loss after: 1.2500 nats per token" in text
    assert f"lightrft train LAYERS... --model {tmp_path / 'model'}" in text


def test_the_report_shows_scores_answers_and_what_comes_next(tmp_path: Path) -> None:
    out = io.StringIO()
    summary = {"seconds": 65.0, "steps": 4, "evaluation": {"before": 0.25, "after": 0.5, "questions": 100}}
    sample = {
        "question": "1 + 1?",
        "target": "2",
        "before": "three",
        "after": "two",
        "before_reward": 0.0,
        "after_reward": 1.0,
    }
    report(summary, [sample], tmp_path, console=Console(file=out, width=200))
    for text in ("4 steps in 1:05", "25.0%", "50.0%", "40.4% to 59.6%", "lightrft view"):
        assert text in out.getvalue()
    assert ["1 + 1?", "2", "three", "0", "two", "1"] in [
        re.split(r" {2,}", line.strip()) for line in out.getvalue().splitlines()
    ]


def test_long_samples_have_a_table_each_and_an_empty_response_says_so(tmp_path: Path) -> None:
    out = io.StringIO()
    sample = {
        "question": "Why?",
        "target": None,
        "before": "",
        "after": "Because. " * 9,
        "before_reward": 0.0,
        "after_reward": 0.5,
    }
    report({"seconds": 5.0, "steps": 4}, [sample, sample], tmp_path, console=Console(file=out, width=200))
    assert out.getvalue().count("(nothing)") == 2
    assert out.getvalue().count("after  (reward 0.5)") == 2
    assert "reference" not in out.getvalue()


def test_samples_are_those_that_gained_most_of_each_target_first(tmp_path: Path) -> None:
    """Gains 0.9, 0.8, 0.7 and 0.1 of targets a, a, b and c."""
    files = EvaluationFolder(RunFolder(tmp_path).evaluation)
    for when, rewards in (("before", [0.1, 0.0, 0.1, 0.1]), ("after", [1.0, 0.8, 0.8, 0.2])):
        rows = [
            {
                "messages": [{"role": "user", "content": f"q{n}"}],
                "target": "aabc"[n],
                "response": when,
                "reward": reward,
            }
            for n, reward in enumerate(rewards)
        ]
        files.write(when, {}, rows)
    assert [one["question"] for one in samples(tmp_path)] == ["q0", "q2", "q3"]
    assert [one["question"] for one in samples(tmp_path, 4)] == ["q0", "q2", "q3", "q1"]


def test_a_run_without_evaluation_has_a_report_too(tmp_path: Path) -> None:
    out = io.StringIO()
    report({"seconds": 5.0, "steps": 4, "evaluation": {}}, [], tmp_path, console=Console(file=out, width=200))
    assert "4 steps in 0:05\n" in out.getvalue()
    assert "score\n" not in out.getvalue(), "there was none"
    assert "tensorboard" not in out.getvalue(), "it wrote no events"
    (tmp_path / "tensorboard").mkdir()
    report({"seconds": 5.0, "steps": 4, "evaluation": {}}, [], tmp_path, console=Console(file=out, width=200))
    assert f"tensorboard --logdir {tmp_path.parent}" in out.getvalue()


def test_curves_are_drawn_from_the_log_alone(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) is None
    with Logger(tmp_path, tensorboard=False) as logger:
        logger.log(0, {"evaluation/mean": 0.2})
        for step in (1, 2):
            logger.log(
                step, {"reward/mean": 0.1 * step, "entropy": 1.0, "kl": 0.0, "mismatch/mean_abs": 1e-4}
            )
    picture = draw_curves(tmp_path)
    assert picture == tmp_path / "curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_no_picture_is_drawn_and_the_report_says_how_to_see_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Logger(tmp_path, tensorboard=False) as logger:
        logger.log(1, {"reward/mean": 0.1})
    for name in [known for known in sys.modules if known.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without("matplotlib"), *sys.meta_path])
    monkeypatch.setattr(curves, "installed", lambda package: "" if package == "matplotlib" else "1")
    assert draw_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()
    out = io.StringIO()
    report({"seconds": 5.0, "steps": 1, "evaluation": {}}, [], tmp_path, console=Console(file=out, width=300))
    assert f"lightrft view {tmp_path} --web" in out.getvalue()
    (tmp_path / "config.yaml").write_text("log: {curves: false}\n")
    assert curves.where_drawn(tmp_path) == ""


def test_a_resumed_run_that_draws_no_curves_keeps_none_of_before(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(b"of the steps before")
    curves.finish_curves(tmp_path, wanted=False)
    assert not (tmp_path / "curves.png").exists()
    assert curves.where_drawn(tmp_path) == ""


class Without(importlib.abc.MetaPathFinder):
    """Imports as if a package were not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def test_smoothing_takes_the_mean_of_what_came_before() -> None:
    assert smooth([2.0, 4.0, 6.0], 2) == [2.0, 3.0, 5.0]


@pytest.mark.parametrize(("task", "is_whole"), [("tiny", True), ("inline:rows", False)])
def test_commands_to_go_on_with_are_those_that_the_settings_can_be_read_for(tmp_path, task, is_whole) -> None:
    files, out = RunFolder(tmp_path), io.StringIO()
    files.config.write_text(f"tasks: {{train: {{'{task}': 1.0}}}}")
    report({"seconds": 5.0, "steps": 4, "evaluation": {}}, [], tmp_path, console=Console(file=out, width=200))
    told = [line.strip() for line in out.getvalue().splitlines()]
    evaluated = f"lightrft evaluate TASK {files.config} " if is_whole else "lightrft evaluate TASK --model"
    assert any(line.startswith(evaluated) for line in told)
    assert any(line.startswith(f"lightrft train {files.config}") for line in told) == is_whole
