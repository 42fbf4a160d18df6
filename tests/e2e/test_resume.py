"""A run that is killed or stopped at any moment goes on to the very same end."""

from __future__ import annotations

import random
import re
import signal
import time

import pytest

from lightrft.runs.live import described, status
from tests.e2e.runs import PLAIN, Lightrft, Started, assert_same_run, model_bytes, rows, steps, wait_until

SMALL = ["--rollout.max-tokens", "6", "--rollout.prompts-per-step", "2", "--evaluate.limit", "6"]
VARIANTS = {
    "plain": ["--steps", "8", "--checkpoint.every-steps", "3", "--evaluate.every-steps", "2"],
    "updates": [
        "--steps",
        "6",
        "--update.num-minibatches",
        "2",
        "--update.epochs",
        "2",
        "--optimizer.schedule",
        "cosine",
        "--optimizer.warmup-steps",
        "3",
    ],
    "lora": ["lora", "--steps", "5", "--optimizer.learning-rate", "0.01"],
    "critic": [  # with a value of the cost as well
        *("ppo", "--steps", "5", "--critic.warmup-steps", "2", "--rollout.prompts-per-step", "8"),
        *("--constraint.cost", "length", "--constraint.limit", "0.001"),
    ],
    "bf16": ["bf16", "--steps", "5"],
    "memory": [
        *("grpo", "--steps", "6", "--checkpoint.every-steps", "2", "--rollout.prompts-per-step", "3"),
        *(
            "--algorithm.group-filter",
            "mixed_outcomes",
            "--rollout.extra-groups",
            "carry_over",
            "--replay.groups-per-step",
            "2",
        ),
        *("--algorithm.kl-target", "0.001", "--algorithm.reference-update-steps", "2"),
        *("--algorithm.reference-update-rate", "0.5", "--rewards.normalise", "shift_and_scale"),
        *("--constraint.cost", "length", "--constraint.limit", "0.001"),
    ],
    "reference": [
        "grpo",
        "--steps",
        "5",
        "--algorithm.group-filter",
        "mixed_outcomes",
        "--checkpoint.every-steps",
        "1",
    ],
    "late": [
        *("grpo", "--steps", "6", "--checkpoint.every-steps", "2", "--rollout.max-tokens-per-step", "5"),
        *("--rollout.overlap-rewards", "true", "--rewards.workers", "1"),
    ],
    "resting": [
        *("grpo", "--steps", "8", "--checkpoint.every-steps", "2", "--tasks.train-limit", "7"),
        *(
            "--rollout.rest-passes",
            "1",
            "--algorithm.group-filter",
            "mixed_outcomes",
            "--rollout.group-size",
            "2",
        ),
        *("--rollout.extra-groups", "carry_over", "--replay.groups-per-step", "1"),
    ],
    "resting_late": [
        *("grpo", "--steps", "8", "--checkpoint.every-steps", "2", "--tasks.train-limit", "7"),
        *("--rollout.rest-passes", "1", "--rollout.max-tokens-per-step", "5", "--rollout.group-size", "2"),
        *("--rollout.overlap-rewards", "true", "--rewards.workers", "1"),
    ],
    "values": ["a_star_po", "--steps", "5", "--tasks.train-limit", "7", "--algorithm.value-samples", "3"],
    "surveyed": ["--algorithm.loss", "m2po", "--replay.groups-per-step", "1", "--steps", "5"],
}


def arguments(variant):
    layers = [x for x in VARIANTS[variant] if x in ("lora", "bf16", "grpo", "ppo", "a_star_po")]
    return ["train", "tiny", *layers, *PLAIN, *SMALL, *(x for x in VARIANTS[variant] if x not in layers)]


@pytest.fixture(scope="session")
def whole(server, tmp_path_factory):
    """Variant -> the folder of its uninterrupted run, made when first asked for, and how long it took."""
    made = {}

    def of(variant):
        if variant not in made:
            folder, start = tmp_path_factory.mktemp(variant), time.monotonic()
            Lightrft(server, folder)(*arguments(variant), "--run", "run")
            made[variant] = folder / "run", time.monotonic() - start
        return made[variant]

    return of


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment_a_run_goes_on_to_the_same_end(lightrft, whole, tmp_path, seed):
    expected, seconds = whole("plain")
    running = lightrft.start(*arguments("plain"), "--run", "run")
    wait_until(lambda: (tmp_path / "run" / "config.yaml").exists(), running=running)
    time.sleep(random.Random(seed).uniform(0, 0.9 * seconds))
    running.send(signal.SIGKILL)
    assert running.wait().status in (-signal.SIGKILL, 0)
    lightrft("train", "--resume", "run")
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
def test_killed_after_a_random_step_any_kind_of_run_goes_on_to_the_same_end(
    lightrft, whole, tmp_path, variant
):
    expected, _ = whole(variant)
    running = lightrft.start(*arguments(variant), "--run", "run")
    after = random.Random(variant).randrange(1, len(steps(expected)))
    kill_after_step(running, tmp_path / "run", after)
    lightrft("train", "--resume", "run")
    assert_same_run(tmp_path / "run", expected)


def test_killed_again_and_again_a_run_still_arrives(lightrft, whole, tmp_path):
    expected, _ = whole("plain")
    running = lightrft.start(*arguments("plain"), "--run", "run")
    for step in (2, 4, 7):
        kill_after_step(running, tmp_path / "run", step)
        assert re.fullmatch(
            r"ended without a word in .+ of step \d of \d \(killed\?\)", described(status(tmp_path / "run"))
        )
        running = lightrft.start("train", "--resume", "run")
    assert running.wait().status == 0
    assert_same_run(tmp_path / "run", expected)


def test_killed_before_the_first_checkpoint_a_run_begins_again(lightrft, whole, tmp_path):
    expected, _ = whole("plain")
    running = lightrft.start(*arguments("plain"), "--run", "run")
    kill_after_step(running, tmp_path / "run", 1)
    output = lightrft("train", "--resume", "run")
    assert "begins again" in output
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_a_run_saves_and_says_so_and_goes_on_to_the_same_end(
    lightrft, whole, tmp_path, number, code
):
    expected, _ = whole("plain")
    running = lightrft.start(*arguments("plain"), "--run", "run")
    wait_for_step(running, tmp_path / "run", 2)
    running.send(number)
    stopped = running.wait()
    assert stopped.status == code, stopped.output
    assert f"stopped by {number.name} after step" in stopped.output
    assert status(tmp_path / "run")["state"] == "stopped"
    assert "lightrft train --resume run" in stopped.output
    last = steps(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{last:06d}").is_dir()
    lightrft("train", "--resume", "run")
    assert_same_run(tmp_path / "run", expected)


def test_asked_to_stop_during_an_evaluation_a_run_makes_up_for_it(lightrft, tmp_path):
    settings = [
        *arguments("plain"),
        "--evaluate.limit",
        "120",
        "--rollout.native.max-sequences",
        "2",
        "--steps",
        "3",
    ]
    running = lightrft.start(*settings, "--run", "run")
    wait_for_step(running, tmp_path / "run", 2)
    running.send(signal.SIGTERM)
    assert running.wait().status == 143
    assert not [row for row in rows(tmp_path / "run") if row["step"] == 2 and "evaluation/mean" in row]
    lightrft("train", "--resume", "run")
    lightrft(*settings, "--run", "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_asked_to_stop_during_the_first_evaluation_a_run_can_go_on(lightrft, tmp_path):
    settings = [
        *arguments("plain"),
        "--evaluate.limit",
        "120",
        "--rollout.native.max-sequences",
        "2",
        "--steps",
        "1",
    ]
    running = lightrft.start(*settings, "--run", "run")
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), running=running)
    time.sleep(0.3)
    running.send(signal.SIGTERM)
    assert running.wait().status in (143, -signal.SIGTERM)
    lightrft("train", "--resume", "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 1]


def test_a_torn_checkpoint_is_passed_over(lightrft, whole, tmp_path):
    """The power went while the newest was written: the one before it is taken, and the end is the same."""
    expected, _ = whole("plain")
    running = lightrft.start(*arguments("plain"), "--run", "run")
    kill_after_step(running, tmp_path / "run", 7)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    output = lightrft("train", "--resume", "run")
    assert f"{newest.name} is not used" in output
    assert_same_run(tmp_path / "run", expected)


def test_when_every_checkpoint_is_torn_the_run_is_not_begun_again_in_silence(lightrft, tmp_path):
    lightrft(*arguments("plain"), "--run", "run", "--steps", "1")
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.pt"):
        state.write_bytes(b"")
    before = model_bytes(tmp_path / "run")
    output = lightrft("train", "--resume", "run", status=2)
    assert "complete" in output
    assert model_bytes(tmp_path / "run") == before


def test_settings_given_at_a_resume_stay_for_the_next_one(lightrft, tmp_path):
    lightrft(*arguments("plain"), "--run", "run", "--steps", "2")
    before = (tmp_path / "run" / "config.yaml").read_text()
    lightrft("train", "--resume", "run", "--steps", "3")
    assert "steps: 3" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "config-until-step-000002.yaml").read_text() == before
    now = (tmp_path / "run" / "config.yaml").read_text()
    told = lightrft("train", "--resume", "run", "--optimizer.learning-rate", "0.5")
    assert "no step is left to learn with other settings: config.yaml stays as it was" in told
    assert (tmp_path / "run" / "config.yaml").read_text() == now, "they made nothing"


def test_a_critic_goes_on_with_the_values_that_it_has(lightrft, tmp_path):
    """One is of the cost, where there is a constraint."""
    lightrft(
        "train", "tiny", "ppo", *PLAIN, *SMALL, "--steps", "1", "--constraint.cost", "length", "--run", "run"
    )
    (row,) = steps(tmp_path / "run")
    assert row["critic/cost_value"] == 0.0, "it begins at 0"
    assert row["critic/cost_explained_variance"] <= 0.0
    refused = lightrft("train", "--resume", "run", "--constraint.cost=", "--steps", "2", status=2)
    assert (
        "constraint.cost='': the run has learned with constraint.cost=length up to the checkpoint of step 1"
        in refused
    )
    refused = lightrft(
        "train", "--resume", "run", "--constraint.cost", "repetition", "--steps", "2", status=2
    )
    assert "constraint.cost=repetition: the run has learned with constraint.cost=length" in refused
    lightrft("train", "tiny", "ppo", *PLAIN, *SMALL, "--steps", "1", "--run", "without")
    refused = lightrft(
        "train", "--resume", "without", "--constraint.cost", "length", "--steps", "2", status=2
    )
    assert (
        "constraint.cost=length: the run has learned with constraint.cost='' up to the checkpoint of step 1"
        in refused
    )
    idle = lightrft("train", "tiny", "ppo", *PLAIN, "--critic.cost-output", "cost", status=2)
    assert "critic.cost_output=cost has no effect with constraint.cost=''" in idle


def test_resuming_what_is_no_run_names_the_folder(lightrft):
    assert "is not a run folder" in lightrft("train", "--resume", "nowhere", status=2)


def test_resuming_with_other_data_is_refused(lightrft, tmp_path):
    lightrft(*arguments("plain"), "--run", "run", "--steps", "1")
    output = lightrft("train", "--resume", "run", "--steps", "2", "--tasks.train-limit", "5", status=2)
    assert "training data of 'tiny' changed" in output


def test_resuming_with_another_model_is_refused(lightrft, tmp_path):
    lightrft(*arguments("plain"), "--run", "run", "--steps", "1")
    output = lightrft("train", "--resume", "run", "--steps", "2", "--model.path", "random:qwen2", status=2)
    assert "another model" in output


def wait_for_step(running: Started, run, step):
    def reached():
        return (run / "metrics.jsonl").exists() and any(row["step"] >= step for row in steps(run))

    wait_until(reached, running=running)


def kill_after_step(running: Started, run, step):
    """SIGKILL once the line of this step is written; what comes after it in the step is hit by chance."""
    wait_for_step(running, run, step)
    running.send(signal.SIGKILL)
    running.wait()
