"""Conversations with an environment on two ranks: what one process would have had."""

from pathlib import Path

import pytest

from lightrft.runs import trajectories
from tests.distributed.pair import ranks
from tests.e2e.runs import PLAIN, steps

pytestmark = pytest.mark.timeout(120)
TALKERS = Path(__file__).parents[1] / "unit/environments/talkers.py"


def test_two_ranks_talk_as_one_process_does_and_count_together(lightrft, tmp_path):
    """Conversations of one rank end in other turns than those of the other; one conversation fails and is left out."""
    flags = [
        *PLAIN,
        *("--environment.turn-tokens", "4", "--environment.workers", "1", "--steps", "2"),
        *(
            "--rollout.max-tokens",
            "120",
            "--rollout.prompts-per-step",
            "4",
            "--rewards.functions",
            "environment",
            "1",
        ),
        *("--environment.name", f"{TALKERS}:Moody", "--environment.options", "kind", "raise"),
        *("--environment.on-failure", "drop", "--environment.retries", "0", "--log.token-columns", "true"),
    ]
    two = ["--strategy.backend", "fsdp", "--strategy.device", "cpu", "--run", "two"]
    done = [rank.wait() for rank in ranks(lightrft, "train", "tiny", "mt_grpo", *flags, *two)]
    assert [d.status for d in done] == [0, 0], done[0].output + done[1].output
    lightrft("train", "tiny", "mt_grpo", *flags, "--run", "one")
    rows = trajectories.load(tmp_path / "one", 1)
    assert {row["use"] for row in rows} == {"trained", "failed"}
    for row in rows:
        assert (row["use"] == "failed") == bool(int(row["prompt_id"][-1]) % 2) == bool(row.get("failed"))
        assert row["use"] == "failed" or row["parts"] == {"environment": sum(row["step_rewards"])}
    found = [
        sorted(
            (row["group"], row["tokens"]["ids"], row["use"]) for row in trajectories.load(tmp_path / name, 1)
        )
        for name in ("one", "two")
    ]
    assert found[0] == found[1]
    told = [
        {
            k: v
            for k, v in row.items()
            if k.startswith(("environment/", "rollout/turns", "length/", "grad_norm"))
        }
        for name in ("one", "two")
        for row in steps(tmp_path / name)[:1]
    ]
    for row in told:
        row.pop("environment/seconds")
    assert told[0] == pytest.approx(told[1], rel=1e-3)
    assert "rollout/turns" in told[0]
