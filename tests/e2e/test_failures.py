"""What can go wrong while a run is under way: the disk, the rewards, the answers themselves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections import Counter

import psutil
import pytest
import torch

from lightrft.models.export import save_model
from lightrft.runs import trajectories
from lightrft.runs.reader import Run
from lightrft.testing import tiny_folder, tiny_model, tiny_processor
from tests.e2e.runs import PLAIN, answers, assert_same_run, rows, steps, wait_until

SMALL = [*PLAIN, "--evaluate.before-and-after=false", "--rollout.max-tokens", "5"]
WORKER = ["--rewards.workers", "1"]
REWARDS = '''
import math, time

STEP_2 = range(4, 8)  # a group is numbered by the place of its question in the draws of the run: 4 to a step

def is_bad(t):
    """The second answer of each group in step 2."""
    return t.group in STEP_2

def counted(bad):
    """A reward over groups that does something bad to the second answer of each group of step 2."""
    def reward(trajectories):
        seen, values = {}, []
        for t in trajectories:
            seen[t.group] = seen.get(t.group, 0) + 1
            values.append(bad() if is_bad(t) and seen[t.group] == 2 else float(len(t) + sum(t.token_ids) % 7))
        return values
    return reward

def raises_():
    raise KeyError("no such answer")

raising = counted(raises_)
hanging = counted(lambda: time.sleep(1000))
nan = counted(lambda: math.nan)
infinite = counted(lambda: -math.inf)
leaving = counted(lambda: __import__("os")._exit(3))

def by_answer(answer: str) -> float:
    if answer < "8":
        raise ValueError("an answer I do not like")
    return float(len(answer))

def equal(answer: str) -> float:
    return 0.1

def wrong_count(trajectories):
    return [0.0]

def text(answer: str) -> str:
    return "good"
'''


@pytest.fixture(autouse=True)
def rewards(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)


def reward(name):
    return ["--rewards.functions", f"rewards.py:{name}", "1"]


# -- rewards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raising", "KeyError: 'no such answer'"),
        ("hanging", "it took longer than rewards.timeout_seconds=2 and was killed"),
        ("nan", "it returned nan"),
        ("infinite", "it returned -inf"),
        ("leaving", "its process died (exit code 3)"),
    ],
)
def test_a_reward_that_fails_stops_the_run_which_was_saved_and_can_go_on(lightrft, tmp_path, name, reason):
    output = lightrft(
        "train",
        "tiny",
        *SMALL,
        *WORKER,
        "--run",
        "run",
        *reward(name),
        "--rewards.timeout-seconds",
        "2",
        status=2,
    )
    assert f"reward 'rewards.py:{name}' failed" in output
    assert reason in output
    assert "rewards.on_failure=drop" in output
    assert [row["step"] for row in steps(tmp_path / "run")] == [1]
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()


def test_after_the_reward_is_mended_the_run_goes_on_to_the_same_end(lightrft, tmp_path):
    lightrft("train", "tiny", *SMALL, "--run", "run", *reward("raising"), status=2)
    (tmp_path / "rewards.py").write_text(REWARDS.replace("bad() if is_bad(t)", "bad() if False"))
    lightrft("train", "--resume", "run")
    lightrft("train", "tiny", *SMALL, "--run", "whole", *reward("raising"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ["nan", "by_answer"])
def test_with_drop_answers_without_a_reward_are_left_out_and_counted(lightrft, tmp_path, name):
    output = lightrft("train", "tiny", *SMALL, "--run", "run", *reward(name), "--rewards.on-failure", "drop")
    assert "responses without a value" in output
    dropped = {row["step"]: row["counts/dropped_responses"] for row in steps(tmp_path / "run")}
    learned = {row["step"]: row["counts/responses"] for row in steps(tmp_path / "run")}
    assert all(learned[step] == 16 - dropped[step] for step in (1, 2, 3, 4))
    if name == "nan":
        assert dropped == {1: 0, 2: 4, 3: 0, 4: 0}
        assert steps(tmp_path / "run")[1]["counts/failed/nan"] == 4
    else:
        assert sum(dropped.values()) > 4
    saved = Run(tmp_path / "run").responses(2)
    uses = Counter(row["use"] for row in saved if row["reward"] is not None)
    assert uses["trained"] == learned[2]
    assert len(saved) == 16, "those without a reward are saved as failed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_reward_process_outlives_its_run(lightrft, tmp_path, number):
    """Not even one that hangs."""
    flags = [*SMALL, "--rewards.workers", "2", *reward("hanging"), "--rewards.timeout-seconds", "60"]
    running = lightrft.start("train", "tiny", *flags, "--run", "run")
    wait_until(
        lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(steps(tmp_path / "run")) == 1,
        running=running,
    )
    workers = psutil.Process(running.pid).children(recursive=True)
    assert workers
    running.send(number)
    if number == signal.SIGTERM:
        running.send(number)  # the second does not wait for the reward
    running.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def test_when_all_answers_are_dropped_the_step_says_so(lightrft, tmp_path):
    (tmp_path / "rewards.py").write_text("def broken(answer: str) -> float:\n    return 1 / 0\n")
    output = lightrft(
        "train", "tiny", *SMALL, "--run", "run", *reward("broken"), "--rewards.on-failure", "drop", status=2
    )
    assert "step 1: no group of responses is left to learn from" in output
    assert "16 responses dropped by failing rewards" in output
    assert "ZeroDivisionError" in output


def test_a_reward_that_does_not_exist_is_named_before_anything_is_loaded(lightrft):
    output = lightrft("train", "tiny", *SMALL, "--run", "run", *reward("rasing"), status=2)
    assert "rasing" in output
    assert "raising" in output, "perhaps this was meant"
    assert "device memory by phase" not in output, "no weights were loaded"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("wrong_count", "1 values for 16 responses"), ("text", "'good', which is not a number")],
)
def test_a_reward_that_gives_something_else_than_a_number_per_answer_is_told(lightrft, name, complaint):
    assert complaint in lightrft("train", "tiny", *SMALL, "--run", "run", *reward(name), status=2)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["grpo", "dr_grpo", "rloo"])
def test_when_all_rewards_are_equal_advantages_are_zero_and_no_weight_moves(lightrft, tmp_path, layer):
    """Without the pull to a reference: then nothing is left that could move them."""
    flags = ["--steps", "2", "--algorithm.kl-coefficient", "0"]
    lightrft("train", "tiny", layer, *SMALL, "--run", "run", *reward("equal"), *flags)
    for row in steps(tmp_path / "run"):
        assert row["reward/mean"] == pytest.approx(0.1)
        assert row["reward/std"] == pytest.approx(0, abs=1e-12)
        assert row["reward/zero_std_fraction"] == 1
        assert row["grad_norm"] == 0
        assert row["loss"] == 0
        assert "counts/skipped_updates" not in row
    for saved in answers(tmp_path / "run").values():
        for row in saved:
            assert set(row["tokens"]["advantages"]) == {0.0}


def test_with_mixed_outcomes_and_no_difference_the_run_says_what_to_do(lightrft):
    output = lightrft(
        "train",
        "tiny",
        *SMALL,
        "--run",
        "run",
        *reward("equal"),
        "--algorithm.group-filter",
        "mixed_outcomes",
        status=2,
    )
    assert "no group of responses is left to learn from after 4 sampling rounds of 4 prompts" in output
    assert "algorithm.group_filter=all" in output


@pytest.mark.parametrize("updates", [1, 2])
def test_answers_that_stop_at_once_can_be_learned_from(lightrft, tmp_path, updates):
    """A model for which every token ends the answer."""
    folder = tiny_folder(tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": list(range(260))}))
    flags = ["--model", "model", "--steps", "2", "--update.num-minibatches", updates, "--capture-steps", "1"]
    lightrft("train", "tiny", *SMALL, "--run", "run", *flags)
    for row in steps(tmp_path / "run"):
        assert row["length/mean"] == 1
        assert row["length/truncated_fraction"] == 0
    lightrft("replay", "run", "--step", "1")


def test_answers_without_text_get_a_reward_like_any_other(lightrft, tmp_path):
    """A model that says nothing but its end token: each state has a large first component, which the head turns into that."""
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 100.0
        model.lm_head.weight[256, 0] = 10.0
    save_model(model, tiny_processor(), tmp_path / "model")
    lightrft("train", "tiny", *SMALL, "--model", "model", "--run", "run", "--steps", "2")
    for row in steps(tmp_path / "run"):
        assert row["length/max"] == 1
        assert row["reward/mean"] == row["grad_norm"] == 0
    assert {row["response"] for row in Run(tmp_path / "run").responses(1)} == {""}


def test_truncated_answers_can_be_left_out_of_the_loss(lightrft, tmp_path):
    """Nearly all are cut at 5 tokens; what is left is little or nothing, and no NaN."""
    lightrft("train", "tiny", *SMALL, "--run", "run", "--algorithm.truncated", "mask", "--steps", "3")
    for row in steps(tmp_path / "run"):
        assert row["length/truncated_fraction"] > 0.5
        assert row["loss"] == row["loss"]
        assert "counts/skipped_updates" not in row
    saved = trajectories.load(tmp_path / "run", 1)
    assert {row["finish"]: row["use"] for row in saved} == {"length": "masked", "stop": "trained"}


# -- the disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file.txt/run", "/proc/run"])
def test_a_run_folder_that_cannot_be_made_is_a_clear_error(lightrft, tmp_path, place):
    (tmp_path / "file.txt").write_text("")
    output = lightrft("train", "tiny", *SMALL, "--run", place, status=2)
    assert "lightrft: cannot write in" in output
    assert "--run" in output
    assert "Traceback" not in output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_without_the_right_to_write_is_a_clear_error(lightrft, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    output = lightrft("train", "tiny", *SMALL, "--run", "closed/run", status=2)
    assert "permission denied" in output


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for one checkpoint of `tiny` (1.1 MB) and a little."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_a_clear_error_and_leaves_the_last_checkpoint_to_go_on_from(
    lightrft, small_disk, tmp_path
):
    settings = [
        "train",
        "tiny",
        *SMALL,
        "--checkpoint.every-steps",
        "1",
        "--checkpoint.keep-last",
        "9",
        "--steps",
        "6",
    ]
    output = lightrft(*settings, "--run", "disk/run", status=2)
    assert "the disk is full" in output
    assert "disk/run" in output
    assert "Traceback" not in output
    whole = sorted(p.name for p in (small_disk / "run" / "checkpoints").iterdir())
    assert whole
    assert all(name.startswith("step-") for name in whole), "nothing unfinished is left behind"
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    lightrft("train", "--resume", "disk/run")
    lightrft(*settings, "--run", "whole")
    assert_same_run(small_disk / "run", tmp_path / "whole")


def test_a_disk_that_is_full_for_metrics_is_a_clear_error(lightrft, small_disk):
    """Not only checkpoints are written."""
    settings = ["train", "tiny", *SMALL, "--checkpoint.every-steps", "0", "--steps", "3"]
    lightrft(*settings, "--run", "disk/run", "--steps", "1")
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"0" * 512)
    output = lightrft("train", "--resume", "disk/run", "--steps", "3", status=2)
    assert "the disk is full" in output
    assert "Traceback" not in output
    (small_disk / "filler").unlink()
    lightrft("train", "--resume", "disk/run", "--steps", "3")
    assert [row["step"] for row in rows(small_disk / "run")] == [1, 2, 3]
