"""A run folder read back by the one reader."""

import io
import json
import math
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from rich.console import Console

import lightrft
from lightrft.cli.options import ViewOptions
from lightrft.console.view import spark, view
from lightrft.datasets import response_file
from lightrft.runs import trajectories
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.metrics import Logger
from lightrft.runs.reader import STATUSES, Run
from lightrft.types import Origin, Prompt, Trajectory, Use
from tests.made_runs import uniform_run, uniform_step

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)>\x1b[2J"


def response(group, reward, *, use="trained", origin="sampled", text="5", learned=None):
    prompt = Prompt(f"q{group}", [1], [{"role": "user", "content": "2 + 3?"}], "5", "sums")
    t = Trajectory(prompt, group, [7, 8], [True, True], [-0.5, -1.0], "stop", answer=text, reward=reward)
    t.use, t.origin, t.learned = use, origin, learned or {}
    return t


@pytest.fixture
def run(tmp_path):
    first = [response(0, 1.0, learned={"new": torch.tensor([-0.5, -1.25])}), response(0, 0.0)]
    first += [response(2, 0.5, use="masked", origin="replayed"), response(2, 0.25, origin="replayed")]
    others = [response(1, 1.0, use="filtered_out"), response(1, 1.0, use="filtered_out")]
    others += [response(3, math.nan, use="failed"), response(3, math.nan, use="failed")]
    trajectories.save(tmp_path, 1, first, pieces=lambda ids: ["5", "."][: len(ids)])
    trajectories.save(tmp_path, 1, others, rank=1, columns=False)
    logger = Logger(tmp_path, tensorboard=False)
    logger.log(1, {"reward/mean": 0.25, "loss": math.nan})
    logger.log(2, {"reward/mean": 0.75})
    logger.close()
    EvaluationFolder(RunFolder(tmp_path).evaluation).write(
        "before", {"sums": {"questions": 1}}, [{"reward": 1}]
    )
    return tmp_path


@pytest.mark.parametrize(
    ("status", "places"),
    [
        ("trained", [0, 1, 3]),
        ("masked", [2]),
        ("filtered_out", [4, 5]),
        ("zero_variance", [4, 5]),
        ("failed", [6, 7]),
        ("replayed", [2, 3]),
        ("extra", []),
    ],
)
def test_responses_of_all_ranks_are_found_by_their_status(run, status, places):
    assert [row["place"] for row in Run(run).responses(1, status)] == places
    groups = [group.number for group in Run(run).groups(1, status)]
    assert groups == list(dict.fromkeys(row["group"] for row in Run(run).responses(1, status)))


def test_groups_have_all_siblings_and_may_be_chosen_by_a_function(run):
    (best,) = Run(run).groups(-1, lambda group: group.mean == 1.0)
    assert (best.number, best.rewards, best.question, best.target) == (1, [1.0, 1.0], "2 + 3?", "5")
    assert math.isnan(Run(run).groups(1)[-1].mean)


def test_ratio_and_difference_follow_from_what_is_saved(run):
    tokens = Run(run).tokens(1, 0)
    assert tokens["ratio"] == [1.0, 1.0]
    assert tokens["difference"] == [0.0, -0.25]
    assert "ratio" not in Run(run).tokens(1, 1)


def test_the_ratio_is_of_the_old_log_probs_where_there_are_some_and_of_chosen_tokens_only(tmp_path):
    t = response(0, 1.0, learned={"new": torch.tensor([-0.5, -1.0]), "entropy": torch.tensor([9.0, 9.0])})
    t.columns = {"old": torch.tensor([-1.0, -1.0]), "entropy": torch.tensor([2.0, 3.0])}
    t.mask = [True, False]
    t.learned["weight"] = torch.tensor([1.2345678e-7, 0.0])
    trajectories.save(tmp_path, 1, [t])
    tokens = Run(tmp_path).tokens(1, 0)
    assert tokens["ratio"] == [pytest.approx(math.exp(0.5)), None]
    assert tokens["difference"] == [pytest.approx(-0.5), None]
    assert tokens["entropy"] == [2.0, 3.0]
    assert tokens["weight"] == [1.2346e-7, 0.0]


def test_metrics_and_evaluations_come_back(run):
    assert Run(run).series("reward/mean") == ([1, 2], [0.25, 0.75])
    assert Run(run).evaluation("before").responses == [{"reward": 1}]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda run: run.responses(9), "no responses of step 9 .*saved steps: 1"),
        (lambda run: run.responses(1, "zero"), "no status 'zero'; choose one of: trained, .*zero_variance"),
        (lambda run: run.tokens(1, 8), "no response 8 in step 1: its places are 0 to 7"),
        (lambda run: run.tokens(1, 7), "log.token_columns=true"),
        (lambda run: run.evaluation("after"), "no evaluation 'after' .*there are: before"),
        (lambda run: run.series("reward"), "no metric reward .*loss, reward/mean"),
    ],
)
def test_what_is_not_there_is_named(run, ask, said):
    with pytest.raises(ValueError, match=said):
        ask(Run(run))


def test_a_run_without_responses_names_the_option_that_its_command_has(tmp_path):
    for metric, option in (("nll", "held_out_prompts"), ("reward/mean", "trajectories_every_steps")):
        with Logger(tmp_path / option, tensorboard=False) as logger:
            logger.log(1, {metric: 0.5})
        with pytest.raises(ValueError, match=rf"none are saved: set log\.{option} above 0"):
            Run(tmp_path / option).responses()


def test_advice_reads_what_a_model_wrote_and_no_response_of_the_data(tmp_path):
    repeated = [
        response(n, math.nan, use="held_out", origin="given", text="no no no " * 40) for n in range(4)
    ]
    written = [response(n, 0.0, use="held_out", text="fine") for n in range(4)]
    trajectories.save(tmp_path, 1, repeated + written)
    assert Run(tmp_path).advice() == []
    trajectories.save(tmp_path, 1, [replace(t, origin="sampled") for t in repeated] + written)
    assert [one.rule for one in Run(tmp_path).advice()] == ["garbled"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        Run(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        Run(tmp_path / "nowhere")
    for given in (None, 3):
        with pytest.raises(ValueError, match=rf"^Run\({given}\) is not a folder. Give"):
            Run(given)


def test_notebooks_show_strange_text_as_text(tmp_path):
    evil = response(0, 1.0, text=EVIL)
    evil.prompt.messages[0]["content"] = EVIL
    trajectories.save(tmp_path, 1, [evil])
    run = Run(tmp_path)
    for shown in (run.responses(1)._repr_html_(), run.groups(1)._repr_html_(), run._repr_html_()):
        assert not any(mark in shown for mark in ("<script", "</script", "<img", "<svg", "\x1b"))
    assert "&lt;svg onload=alert(1)&gt;\\x1b[2J" in run.responses(1)._repr_html_()


def test_the_terminal_lists_responses_by_status_and_draws_curves(run):
    def said(**options):
        out = io.StringIO()
        view(run, console=Console(file=out, width=120), **options)
        return out.getvalue()

    assert said(step=1, status="zero_variance").count("filtered out") == 2
    assert "no response with status extra" in said(step=1, status="extra")
    assert "▁█" in said()


def test_curves_are_drawn_between_the_least_and_the_largest():
    assert spark([0.0, 1.0, 0.5], 10) == "▁█▅"
    assert spark([2.0, 2.0], 10) == "▄▄"
    assert spark([0.0, 0.0, 7.0, 7.0], 2) == "▁█"


def test_every_status_that_a_step_gives_can_be_asked_for():
    assert (*get_args(Use), *(x for x in get_args(Origin) if x != "sampled"), "zero_variance") == STATUSES
    assert ("", *STATUSES) == get_args(get_type_hints(ViewOptions)["status"])
    assert lightrft.Run is Run


def as_json_lines(run, steps):
    """Turns saved steps into the files that versions before wrote."""
    files = RunFolder(run)
    for step in steps:
        for file in files.all_responses(step):
            rows = response_file.read(file)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            files.old_responses(step, files.rank_of(file)).write_text(lines)
            file.unlink()


def test_a_run_of_a_version_before_is_read_as_one_of_this_and_goes_on_in_new_files(tmp_path):
    new, old = (uniform_run(tmp_path / name, "fine", steps=3) for name in ("new", "old"))
    as_json_lines(old, (1, 2))
    (old / "format.json").write_text('{"format": 1, "lightrft": "0.1.0"}')
    RunFolder(old).check_format()
    runs = [Run(new), Run(old)]
    assert runs[0].steps == runs[1].steps == [1, 2, 3]
    for step in (1, 2, 3):
        assert list(runs[0].responses(step)) == list(runs[1].responses(step))
        assert runs[0].response(step, 5) == runs[1].response(step, 5)
        assert runs[0].tokens(step, 5) == runs[1].tokens(step, 5)
        assert trajectories.load_some(new, step, 4) == [
            {name: value for name, value in row.items() if name != "tokens"}
            for row in trajectories.load_some(old, step, 4)
        ]
    assert list(runs[0].find()) == list(runs[1].find())
    uniform_step(old, 2, "fine", 3, 4)
    assert sorted(file.name for file in RunFolder(old).trajectories.iterdir()) == [
        "step-000001.jsonl", "step-000002.parquet", "step-000003.parquet",
    ]  # fmt: skip
    RunFolder(old).drop_responses_after(0)
    assert Run(old).steps == []


def test_a_response_of_any_step_rank_group_and_status_is_found(tmp_path):
    for step in (1, 2):
        for rank in (0, 1):
            made = [
                kept(2 * rank + n // 2, reward=float(n == 3), use="extra" if step == 2 else "trained")
                for n in range(4)
            ]
            trajectories.save(tmp_path, step, made, rank=rank)
    run = Run(tmp_path)
    assert len(run.find()) == 16
    assert [(row["step"], row["place"]) for row in run.find("zero_variance", rank=1)] == [
        (1, 4),
        (1, 5),
        (2, 4),
        (2, 5),
    ]
    assert [row["group"] for row in run.find("extra")] == [0, 0, 1, 1, 2, 2, 3, 3]
    (found,) = [row for row in run.find(group=3, step=-1) if row["reward"] == 1.0]
    assert found == {
        "step": 2, "place": 7, "rank": 1, "group": 3, "reward": 1.0, "length": 1, "finish": "stop", "statuses": ["extra"],
    }  # fmt: skip
    assert run.response(2, 7)["group"] == 3
    assert run.find(group=9) == []
    with pytest.raises(ValueError, match="no status 'all'"):
        run.find("all")
    with pytest.raises(ValueError, match=r"no responses of step 9 .*saved steps: 1-2"):
        run.find(step=9)


def kept(group, **values):
    prompt = Prompt(f"q{group}", [1], [{"role": "user", "content": "?"}], "5", "sums")
    made = Trajectory(prompt, group, [7], [True], [-0.5], "stop", answer="x")
    return replace(made, **values)
