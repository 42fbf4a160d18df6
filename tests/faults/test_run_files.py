"""Files of a run that were changed, and what strangers say on a terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lightrft.config import CheckpointConfig
from lightrft.console.progress import report
from lightrft.console.view import answer_panel, groups_table, view
from lightrft.parallel.world import World
from lightrft.runs import trajectories
from lightrft.runs.layout import RunFolder
from lightrft.runs.metrics import read_metrics
from lightrft.runs.reader import Run
from lightrft.strategy.checkpoint import Checkpoints, problem
from lightrft.types import Prompt, Trajectory


def test_a_changed_name_in_the_list_of_files_costs_one_checkpoint_and_no_resume(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), World())
    kept.save(1, {"step": 1})
    last = kept.save(2, {"step": 2})
    (tmp_path / "checkpoints" / "step-999999").write_text("a file")
    raw = bytearray((last / "meta.json").read_bytes())
    raw[raw.rindex(b"state.pt")] ^= 1
    (last / "meta.json").write_bytes(raw)
    assert "names other files" in str(problem(last))
    assert kept.latest() == tmp_path / "checkpoints" / "step-000001"


def test_a_broken_line_of_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: the line is broken"):
        read_metrics(tmp_path)


def test_a_broken_line_of_responses_is_named(tmp_path):
    (tmp_path / "trajectories").mkdir()
    RunFolder(tmp_path).old_responses(1).write_text('{"group": 1}\n{"gro\n')
    with pytest.raises(ValueError, match=r"step-000001.jsonl:2: the line is broken"):
        trajectories.load(tmp_path, 1)


EVIL = "\x1b]52;c;aGk=\x07\x1b[2J\x9b1m[red]x[/nope] :llama:"


def saved(folder, text):
    prompt = Prompt("q", [1], [{"role": "user", "content": text}], text, "x [/nope]")
    answer = Trajectory(prompt, 0, [1], [True], [0.0], "stop", answer=text, reward=1.0, parts={"x": 1.0})
    trajectories.save(folder, 1, [answer], pieces=lambda ids: [text] * len(ids))


def test_what_a_model_says_moves_no_cursor_and_is_no_markup(tmp_path):
    run = tmp_path / "r[/x]"
    saved(run, EVIL)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    rows = Run(run).responses(1)
    console.print(groups_table(Run(run).groups(1)))
    console.print(answer_panel(rows[0], "none"))
    console.print(answer_panel(rows[0], "logprob"))
    view(run, console=console)
    said = out.getvalue()
    assert all(mark not in said for mark in ("\x1b]52", "\x1b[2J", "\x9b", "\x07"))
    assert "[red]x[/nope] :llama:" in said
    assert "\\x1b[2J" in said


def test_a_report_shows_answers_as_they_are(tmp_path):
    out = io.StringIO()
    texts = dict.fromkeys(("question", "target", "before", "after"), EVIL)
    sample = {**texts, "before_reward": 0.0, "after_reward": 1.0}
    report(
        {"seconds": 1, "steps": 1},
        [sample],
        Path("a[red]/b"),
        console=Console(file=out, force_terminal=True, width=200),
    )
    assert "\x1b]52" not in out.getvalue()
    assert "a[red]/b" in out.getvalue()


def test_half_a_character_stops_no_step_from_being_kept(tmp_path):
    saved(tmp_path, "a\ud83d")
    assert trajectories.load(tmp_path, 1)[0]["response"] == "a\ud83d"
