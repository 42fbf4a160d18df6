"""PODS, end to end: the few responses of a group that are learned from are compared among themselves."""

from statistics import fmean, pvariance, stdev

import pytest

from lightrft.runs.reader import Run
from tests.e2e.runs import PLAIN

RUN = ["tiny", "pods", *PLAIN, "--steps", "2", "--rollout.group-size", "6", "--checkpoint.every-steps", "0"]
OFF = ["--evaluate.before-and-after", "false", "--evaluate.every-steps", "0"]


def advantage_of(row):
    (number,) = set(row["tokens"]["advantages"])
    return number


def test_those_that_are_learned_from_are_compared_among_themselves(lightrft, tmp_path):
    lightrft("train", *RUN, *OFF, "--run", "run")
    run, unequal = Run(tmp_path / "run"), 0
    for step in run.steps:
        for group in run.groups(step):
            kept = [row for row in group.responses if row["use"] == "trained"]
            assert len(group.responses) == 6
            assert len(kept) == 4
            rewards = [row["reward"] for row in kept]
            assert pvariance(rewards) >= pvariance([row["reward"] for row in group.responses])
            unequal += len(set(rewards)) > 1
            for row in kept:
                expected = (row["reward"] - fmean(rewards)) / (stdev(rewards) + 1e-6)
                assert advantage_of(row) == pytest.approx(expected, abs=2e-3)
    assert unequal > 1


def test_fewer_than_two_cannot_be_compared(lightrft):
    told = lightrft("train", *RUN, "--algorithm.options", "responses_to_learn_from", "1", status=2)
    assert "algorithm.options.responses_to_learn_from=1: must be at least 2" in told
