"""A hook sees each step of a run as it is on the disk, can change nothing, and stops nothing."""

import asyncio
import logging
import random

import pytest

import lightrft
from lightrft.parallel.status import STATUS
from lightrft.runs.hooks import StepHook
from lightrft.utils.inline import held
from tests.made_runs import learning_run


def watch(step, metrics, run):
    seen.append((step, metrics, run))


seen = []


def called(name, function, folder, steps=(1, 2, 3)):
    with held({f"inline:{name}": function}), StepHook(f"inline:{name}", folder) as hook:
        for step in steps:
            hook(step, {"reward/mean": 0.1 * step})
    return hook


def test_it_gets_step_metrics_and_the_run_read_only(tmp_path):
    seen.clear()
    folder = learning_run(tmp_path / "run", steps=2, groups=2, siblings=2)
    called("watch", watch, folder, [2])
    ((step, metrics, run),) = seen
    assert (step, dict(metrics)) == (2, {"reward/mean": 0.2})
    assert isinstance(run, lightrft.Run)
    assert len(run.responses(step)) == 4
    with pytest.raises(TypeError):
        metrics["reward/mean"] = 1.0


def test_a_failing_hook_is_told_once_and_counted(tmp_path, caplog):
    folder = learning_run(tmp_path / "run", steps=1, groups=1, siblings=2)

    def fails(step, metrics, run):
        if step > 1:
            raise SystemExit("no plot\nmore of it")

    with caplog.at_level(logging.WARNING, "lightrft"):
        hook = called("fails", fails, folder)
    assert (hook.calls, hook.failed) == (3, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "log.on_step=inline:fails: failed at step 2 (SystemExit: no plot); the run goes on, and further failures are counted",
        "log.on_step=inline:fails: 2 of 3 calls failed",
    ]


def test_any_failure_but_ctrl_c_is_counted_and_the_phase_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(STATUS, "phase", "train")
    folder = learning_run(tmp_path / "run", steps=1, groups=1, siblings=2)

    def cancelled(step, metrics, run):
        assert STATUS.phase == "log.on_step"
        raise asyncio.CancelledError

    def pressed(step, metrics, run):
        raise KeyboardInterrupt

    assert called("cancelled", cancelled, folder).failed == 3
    assert STATUS.phase == "train"
    with pytest.raises(KeyboardInterrupt):
        called("pressed", pressed, folder)


def test_a_hook_that_draws_numbers_changes_none_of_the_run(tmp_path):
    folder = learning_run(tmp_path / "run", steps=1, groups=1, siblings=2)
    random.seed(7)
    wanted = random.random()
    random.seed(7)
    called("draws", lambda step, metrics, run: random.random(), folder)
    assert random.random() == wanted


@pytest.mark.parametrize(
    ("thing", "told"),
    [
        (
            lambda step: None,
            r"it is called as thing\(step, metrics, run\), and too many positional arguments",
        ),
        (7, "a int is no function"),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_run(tmp_path, thing, told):
    with held({"inline:thing": thing}), pytest.raises(ValueError, match=told):
        StepHook("inline:thing", tmp_path)


def test_a_run_calls_it_and_ends_as_one_without(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def looks(step, metrics, run):
        seen.append((step, metrics["reward/mean"], len(run.responses(step)), random.random()))
        if step == 2:
            raise RuntimeError("not mine")

    def train(name, **log):
        settings = {"log": {"progress": False, "tensorboard": False, "curves": False, **log}}
        return lightrft.train(
            layers="tiny", steps=2, evaluate=False, run=name, rewards={"same_kind": 1.0}, **settings
        )

    seen.clear()
    run, plain = train("looked", on_step=looks), train("plain")
    steps, rewards = run.series("reward/mean")
    assert [one[:3] for one in seen] == [
        (step, reward, 16) for step, reward in zip(steps, rewards, strict=True)
    ]
    assert rewards == plain.series("reward/mean")[1]
    assert [r["response"] for r in run.responses(2)] == [r["response"] for r in plain.responses(2)]
    assert "RuntimeError: not mine" in (run.folder / "log.txt").read_text()
