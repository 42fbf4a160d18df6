"""Saved answers, and reading them in the terminal."""

from __future__ import annotations

import io
from math import nan
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lightrft.console.view import Color, advantage_style, logprob_style, view
from lightrft.runs import trajectories
from lightrft.runs.layout import RunFolder
from lightrft.types import Prompt, Trajectory

PIECES = {1: "It", 2: " is", 3: " 7"}


def trajectory(group: int, reward: float, answer: str) -> Trajectory:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": f"What is 3 + {group}?"}]
    prompt = Prompt(id=f"q{group}", token_ids=[1, 2], messages=messages, target="7", source="sums")  # type: ignore[arg-type]
    return Trajectory(
        prompt=prompt,
        group=group,
        token_ids=[1, 2, 3],
        mask=[True, True, True],
        behavior=[-0.1, -1.0, -6.0],
        finish="stop",
        answer=answer,
        reward=reward,
        parts={"math": reward},
        columns={"advantages": torch.tensor([1.0, -0.5, 0.0])},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    answers = [trajectory(4, 1.0, "seven"), trajectory(4, 0.0, "nine"), trajectory(5, 0.5, "eight")]
    trajectories.save(tmp_path, 7, answers, pieces=lambda ids: [PIECES[i] for i in ids])
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 7, "time": 1.0, "reward/mean": 0.5, "length/mean": 3.0}\n'
    )
    return tmp_path


def shown(run: Path, *, color: Color = "none", **options: int) -> str:
    out = io.StringIO()
    view(run, console=Console(file=out, width=120), color=color, **options)  # type: ignore[arg-type]
    return out.getvalue()


def test_what_is_saved_comes_back(run: Path) -> None:
    row = trajectories.load(run, 7)[0]
    assert (row["response"], row["reward"], row["parts"], row["group"]) == ("seven", 1.0, {"math": 1.0}, 4)
    assert row["messages"][1]["content"] == "What is 3 + 4?"
    assert row["tokens"] == {
        "ids": [1, 2, 3],
        "mask": [True, True, True],
        "behavior": [-0.1, -1.0, -6.0],
        "advantages": [1.0, -0.5, 0.0],
        "pieces": ["It", " is", " 7"],
    }
    assert RunFolder(run).saved_steps == [7]


def test_columns_are_left_out_when_not_wanted_and_a_missing_reward_is_null(tmp_path: Path) -> None:
    trajectories.save(tmp_path, 1, [trajectory(1, nan, "\u2028 line")], columns=False)
    row = trajectories.load(tmp_path, 1)[0]
    assert row["reward"] is None
    assert row["response"] == "\u2028 line"
    assert "tokens" not in row


def test_a_step_that_was_not_saved_names_those_that_were(run: Path) -> None:
    for step in (1, 2, 3):
        trajectories.save(run, step, [])
    with pytest.raises(ValueError, match=r"no responses of step 5 .*saved steps: 1-3, 7"):
        trajectories.load(run, 5)


def test_the_viewer_lists_steps_then_groups(run: Path) -> None:
    assert "0.500" in shown(run)
    groups = shown(run, step=7)
    assert "What is 3 + 4?" in groups
    assert "What is 3 + 5?" in groups
    assert "1 0" in groups


def test_the_viewer_shows_the_best_and_the_worst_answers(run: Path) -> None:
    best = shown(run, step=-1, best=1)
    assert "seven" in best
    assert "nine" not in best
    assert "nine" in shown(run, worst=1)
    assert "eight" in shown(run, step=7, group=5)
    with pytest.raises(ValueError, match="no group 9 in this step; there are: 4, 5"):
        shown(run, step=7, group=9)


def test_tokens_are_coloured_by_log_prob_and_by_advantage(run: Path) -> None:
    assert "It is 7" in shown(run, step=7, best=1, color="logprob")
    assert "It is 7" in shown(run, step=7, best=1, color="advantage")
    assert [logprob_style(x) for x in (-0.1, -1.0, -3.0, -6.0)] == ["", "yellow", "red", "magenta"]
    assert advantage_style(1.0, 1.0) == "rgb(90,255,90)"
    assert advantage_style(-1.0, 2.0) == "rgb(182,90,90)"
    assert advantage_style(0.0, 1.0) == ""


def test_colours_without_saved_tokens_say_what_to_set(tmp_path: Path) -> None:
    trajectories.save(tmp_path, 1, [trajectory(1, 1.0, "x")], columns=False)
    with pytest.raises(ValueError, match="log.token_columns=true"):
        shown(tmp_path, step=1, best=1, color="logprob")


def test_a_question_with_a_picture_is_saved_and_shown_by_the_pictures_name(tmp_path: Path) -> None:
    answer = trajectory(4, 1.0, "seven")
    parts = [{"type": "image", "image": b"pixels"}, {"type": "text", "text": "How many?"}]
    answer.prompt.messages[-1]["content"] = parts
    trajectories.save(tmp_path, 7, [answer])
    assert trajectories.load(tmp_path, 7)[0]["messages"][-1]["content"][0] == {
        "type": "image",
        "image": "bytes",
    }
    assert "[image bytes]How many?" in shown(tmp_path, step=7, group=4)


@pytest.mark.parametrize(("groups", "kept"), [(0, []), (1, [4, 4]), (2, [4, 4, 2]), (9, [4, 4, 2])])
def test_a_sample_has_the_responses_of_the_first_groups(groups, kept):
    responses = [trajectory(number, 1.0, "7") for number in (4, 4, 2)]
    assert [row["group"] for row in trajectories.sample(responses, groups)] == kept
