"""Runs of two ranks: what they write once, what they count together, and work that does not come out even."""

import json
from collections import Counter

import pytest

from lightrft.runs import trajectories
from tests.distributed.pair import ranks
from tests.e2e.runs import PLAIN, steps

pytestmark = pytest.mark.timeout(120)
SMALL = [*PLAIN, "--rollout.max-tokens", "5", "--strategy.device", "cpu", "--steps", "2"]
REWARDS = """
import math

def on_one_rank(answers):
    # Group 0 of 4 is drawn by the first rank, 1 by the second, and so on: all answers of the first rank fail.
    return [math.nan if a.group % 2 == 0 else float(len(a.token_ids) + sum(a.token_ids) % 7) for a in answers]

def third(answers):
    return [math.nan if a.group % 4 == 3 else float(len(a.answer)) for a in answers]
"""


@pytest.fixture(autouse=True)
def files(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)


def run(lightrft, *args, status=0):
    done = [rank.wait() for rank in ranks(lightrft, *args)]
    assert [d.status for d in done] == [status] * 2, done[0].output + done[1].output
    return done


def test_ranks_write_one_run_and_count_together_and_name_the_slowest(lightrft, tmp_path):
    flags = ["--strategy.backend", "fsdp", "--rewards.on-failure", "drop"]
    run(lightrft, "train", "tiny", *SMALL, *flags, "--rewards.functions", "rewards.py:third", "1")
    (folder,) = (tmp_path / "runs").iterdir()
    for row in steps(folder):
        assert row["counts/responses"] + row["counts/dropped_responses"] == 16
        assert row["counts/dropped_responses"] == row["counts/failed/third"] == 4
        saved = trajectories.load(folder, row["step"])
        assert Counter(each["use"] for each in saved) == {"trained": row["counts/responses"], "failed": 4}
        assert len({each["group"] for each in saved}) == 4, "of both ranks"
        rewards = [each["reward"] for each in saved if each["use"] == "trained"]
        assert row["reward/mean"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-5)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in (line for line in lines if "reward/mean" in line):
        for phase in ("rollout", "score", "train"):
            assert row[f"seconds/{phase}"] <= row["seconds/step"]
            assert 1 <= row[f"straggler/{phase}"] <= 2
            assert row[f"straggler/rank/{phase}"] in (0, 1)
    assert len((folder / "evaluation" / "after.jsonl").read_text().splitlines()) == 16


@pytest.mark.parametrize("layer", ["ppo", "grpo"])
def test_a_rank_with_nothing_to_learn_from_keeps_step_with_the_others(lightrft, tmp_path, layer):
    flags = ["--strategy.backend", "fsdp", "--rewards.on-failure", "drop", "--run", "run"]
    layers = ["tiny", layer, "--rollout.prompts-per-step", "4"]
    run(lightrft, "train", *layers, *SMALL, *flags, "--rewards.functions", "rewards.py:on_one_rank", "1")
    for row in steps(tmp_path / "run"):
        assert row["counts/responses"] == row["counts/dropped_responses"]
        assert row["grad_norm"] > 0


OVERLAP = ["--rollout.overlap-rewards", "true", "--rewards.workers", "1"]
LATE = {
    "overlap": OVERLAP,
    "both": [*OVERLAP, "--rollout.max-tokens-per-step", "3"],
    "beside": ["--rollout.max-staleness", "1"],
}


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_late_answers_of_two_ranks_are_those_of_one(lightrft, tmp_path, late):
    flags = [*SMALL, *late, "--rollout.prompts-per-step", "4", "--steps", "4"]
    run(lightrft, "train", "tiny", "grpo", *flags, "--strategy.backend", "fsdp", "--run", "two")
    lightrft("train", "tiny", "grpo", *flags, "--run", "one")
    two, one = (
        [{k: row.get(k) for k in ("reward/mean", "rollout/groups_unfinished", "counts/responses", "grad_norm")} for row in steps(tmp_path / name)]
        for name in ("two", "one")
    )  # fmt: skip
    assert len(one) == 4
    for mine, right in zip(two, one, strict=True):
        assert mine == pytest.approx(right, rel=1e-3)


def test_fewer_held_out_questions_than_ranks_and_supervised_batches_that_do_not_come_out_even(
    lightrft, tmp_path
):
    flags = ["--strategy.backend", "fsdp", "--evaluate.limit", "1"]
    run(lightrft, "train", "tiny", *SMALL, *flags, "--run", "run")
    run(
        lightrft,
        "sft",
        "sft_tiny",
        "--log.progress=false",
        "--steps",
        "2",
        "--strategy.device",
        "cpu",
        *flags,
        "--run",
        "sft",
    )
    assert (tmp_path / "sft" / "summary.json").is_file()
    run(lightrft, "evaluate", "tiny", "--model", "run/model", "--evaluate.limit", "1", "--run", "scores")
    assert len((tmp_path / "scores" / "responses.jsonl").read_text().splitlines()) == 1
