"""`lightrft judge` on rows written by hand, with numbers counted by hand."""

import json
import math

import pytest

from lightrft.algorithms.judging import Choice
from lightrft.cli import main
from lightrft.commands.judge import picked
from lightrft.console import pairs as shown
from tests.unit.models.test_reward import reward_folder

ROWS = [
    # chosen, rejected, subset: the first digit is what the reward says
    ("9xxxx", "1xx", "a"),  # right, better longer
    ("8xxxx", "2xx", "a"),  # right, better longer
    ("7x", "3xxx", "a"),  # right, better shorter
    ("9", "0x", "a"),  # right, better shorter
    ("1x", "3xxx", "b"),  # wrong, better shorter
    ("5xx", "5xxxxx", "b"),  # tied, better shorter
    ("5xxxxx", "5xx", "b"),  # tied, better longer
    ("4xxxxxx", "3x", "b"),  # right, better longer
    ("2xxx", "6x", None),  # wrong, better longer
    ("6xx", "2xx", None),  # right, equally long
]
REWARD = "def digit(answer: str) -> float:\n    return float(answer[0])\n"


def written(folder, rows):
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs(rows=ROWS):
    found = [{"prompt": f"{n}?", "chosen": c, "rejected": r} for n, (c, r, _) in enumerate(rows)]
    return [{**row, "subset": s} if s else row for row, (*_, s) in zip(found, rows, strict=True)]


@pytest.fixture
def judged(tmp_path, capsys):
    (tmp_path / "digits.py").write_text(REWARD)

    def run(rows, *flags, reward=f"{tmp_path}/digits.py:digit", status=0):
        rewards = ["--rewards.functions", reward, "1", "--rewards.workers", "0"]
        assert main(["judge", written(tmp_path, rows), *rewards, *flags]) == status
        out, err = capsys.readouterr()
        return out if status == 0 else err

    return run


def test_ten_rows_by_hand(judged, tmp_path):
    said = json.loads(judged(pairs(), "--json", "--out", f"{tmp_path}/out.json"))
    assert said == json.loads((tmp_path / "out.json").read_text())
    assert said["lengths_in"] == "characters"
    found = said["rewards"]["digit"]
    assert list(found) == ["all", "a", "b"]
    differences = [8, 6, 4, 9, -2, 0, 0, 1, -4, 4]
    expected = {
        "pairs": 10, "accuracy": 0.7, "tied": 0.2, "longer_wins": 0.55, "shorter_wins": 0.45, "accuracy_longer": 3.5 / 5,
        "accuracy_shorter": 2.5 / 4, "accuracy_balanced": 0.6625, "low": 0.396778, "high": 0.892209, "unjudged": 0,
        "brier": sum((1 - 1 / (1 + math.exp(-d))) ** 2 for d in differences) / 10,
    }  # fmt: skip
    assert {name: found["all"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert [found[s]["accuracy"] for s in ("a", "b")] == [1.0, 0.5]
    assert not [name for name in found["all"] if "sign" in name or "best" in name]


def test_a_rule_of_length_that_is_as_good_is_said_so_in_words(judged):
    longer = pairs([(f"{n}xxx", "3x", None) for n in range(4, 10)])
    out = judged(longer)
    assert "A rule of length is as good: 'longer wins' is right in 100.0%" in out
    many = pairs([(f"{5 + n % 4}" + "x" * (n % 3), "1x", None) for n in range(60)])
    assert "Better than the best rule of length: " in judged(many)


def test_the_best_of_several_and_a_response_without_a_number(judged):
    row = {"prompt": "?", "chosen": ["9"], "rejected": ["1", "2x", "9xx"], "num_correct": 1, "subset": "Math"}
    broken = {"prompt": "?", "chosen": "9", "rejected": "none"}
    found = json.loads(judged([row, broken], "--json"))["rewards"]["digit"]["all"]
    assert (found["best_of_k"], found["best_of_k_rows"], found["pairs"]) == (0.5, 1, 3)
    assert found["unjudged"] == 1


def test_choosing_one_of_several_is_compared_with_chance_and_with_lengths(judged):
    """Rows by hand: (response, grade); the first digit is what the reward says."""
    rows = [
        [("9", 1.0), ("1x", 0.0), ("2xx", 0.0)],  # right; the longest is wrong, the shortest right
        [("5xx", 1.0), ("5x", 0.0), ("1x", 0.0)],  # the first place is shared, and so is that of the shortest
        [("7xxx", 0.0), ("3x", 0.25), ("2", 1.0)],  # wrong
        [("4", 0.5), ("3x", 0.5), ("2xx", 0.5)],  # nothing to choose
    ]
    pair, ungraded = [("9", 1.0), ("1", 0.0)], [("9", 1.0), ("1", None), ("2", 0.0)]
    written = [
        {"prompt": "?", "responses": [r for r, _ in row], "grades": [g for _, g in row]}
        for row in (*rows, pair, ungraded)
    ]
    form = ["--tasks.format", "lightrft.datasets.preferences:graded"]
    found = json.loads(judged(written, *form, "--json"))["rewards"]["digit"]["all"]
    expected = {
        "picked": (1 + 0.5 + 0 + 0.5) / 4, "picked_mean": (1 / 3 + 1 / 3 + 1.25 / 3 + 0.5) / 4, "picked_best": 3.5 / 4,
        "picked_longest": (0 + 1 + 0 + 0.5) / 4, "picked_shortest": (1 + 0 + 1 + 0.5) / 4, "picked_rows": 4,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["gain_low"] < found["picked"] - found["picked_mean"] < found["gain_high"]
    assert "Choosing one of K by it: mean grade 0.500 of 4 rows, by chance 0.396 (gain +0.104" in judged(
        written, *form
    )


def test_the_gain_of_a_constant_reward_is_nothing_and_of_one_row_has_no_interval():
    rows = [Choice(0.5, 0.5, 1.0, 0.0, 1.0)] * 4
    found = picked(rows)
    assert (found["gain_low"], found["gain_high"]) == (0.0, 0.0)
    mixed = picked([Choice(1.0, 0.0, 1.0, 0.0, 1.0), *rows])  # one row that gains 1: no share of 5
    assert (mixed["gain_low"], mixed["gain_high"]) == pytest.approx((0.0, 0.6))
    one = picked(rows[:1])
    assert "gain_low" not in one
    told = shown.remarks({**one, "unjudged": 0.0})
    assert "gain +0.000, no interval of one row" in told[0]


def test_signs_are_measured_where_grades_have_both(judged):
    form = ["--tasks.format", "lightrft.datasets.preferences:graded", "--json"]
    rows = [{"prompt": "?", "responses": ["3", "0", "2x"], "grades": [1, 0, -1]}]
    found = json.loads(judged(rows, *form))["rewards"]["digit"]["all"]
    assert (found["sign_accuracy"], found["sign_base_rate"]) == (0.5, 0.5)


def test_outputs_of_a_reward_model_are_measured_by_the_grades_of_their_names(tmp_path, capsys):
    model = reward_folder(tmp_path / "rm", "llama", labels=2)
    model.config.id2label = {0: "general", 1: "cost"}
    model.config.save_pretrained(tmp_path / "rm")
    rows = [
        {"prompt": f"{n}?", "responses": ["x" * n, "yy"], "grades": {"general": [1, 0], "cost": [-1, 1]}}
        for n in range(3, 9)
    ]
    paths = ["--reward_model.paths", "general", f"{tmp_path}/rm", "harm", f"{tmp_path}/rm:cost"]
    flags = ["--rewards.functions", "general", "1", "harm", "-1", "--strategy.device", "cpu", "--json"]
    form = ["--tasks.format", "lightrft.datasets.preferences:graded"]
    assert main(["judge", written(tmp_path, rows), *paths, *form, *flags]) == 0
    found = json.loads(capsys.readouterr().out)["rewards"]
    assert found["general"]["all"]["pairs"] == found["harm"]["all"]["pairs"] == 6
    assert found["general"]["all"]["longer_wins"] == 1.0
    assert found["harm"]["all"]["shorter_wins"] == 1.0
    assert found["harm"]["all"]["sign_base_rate"] == 0.5


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--judge.path", "policy"], "judge.path=policy: `lightrft judge` samples no policy"),
        (["--out", "nowhere/out.json"], "--out nowhere/out.json: there is no folder"),
        (["--tasks.format", "columns2"], "no format named 'columns2'"),
    ],
)
def test_what_cannot_be_judged_is_named(judged, flags, told):
    assert told in judged(pairs(), *flags, status=2)


def test_a_file_and_rewards_must_be_named(tmp_path, capsys):
    assert main(["judge"]) == 2
    assert "which comparisons? lightrft judge FILE" in capsys.readouterr().err
    assert main(["judge", written(tmp_path, pairs())]) == 2
    assert "which rewards? Set rewards.functions" in capsys.readouterr().err


def test_a_row_of_other_outputs_alone_says_nothing_of_a_reward(judged, tmp_path):
    """One row is graded for `general` alone, in which the longer response is better, one for both outputs."""
    rows = [
        {"prompt": "?", "responses": ["1xx", "2"], "grades": {"general": [1, 0]}},
        {"prompt": "?", "responses": ["3x", "4"], "grades": {"general": [1, 0], "cost": [0, 1]}},
    ]
    (tmp_path / "costs.py").write_text(REWARD.replace("digit", "cost"))
    form = ["--tasks.format", "lightrft.datasets.preferences:graded", "--json"]
    found = json.loads(judged(rows, *form, reward=f"{tmp_path}/costs.py:cost"))["rewards"]["cost"]["all"]
    assert (found["pairs"], found["accuracy"], found["longer_wins"]) == (1, 1.0, 0.0)
    (tmp_path / "generals.py").write_text(REWARD.replace("digit", "general"))
    found = json.loads(judged(rows, *form, reward=f"{tmp_path}/generals.py:general"))["rewards"]["general"][
        "all"
    ]
    assert (found["pairs"], found["accuracy"], found["longer_wins"]) == (2, 0.0, 1.0)


def test_a_row_without_any_grade_and_one_whose_grade_is_too_large_are_named(judged):
    form = ["--tasks.format", "lightrft.datasets.preferences:graded"]
    bare = {"prompt": "?", "responses": ["1", "2"], "grades": {}}
    assert "a response has no grade" in judged([bare], *form, status=2)
    huge = {"prompt": "?", "responses": ["1", "2"], "grades": [10**400, 0]}
    assert "which is no finite number" in judged([huge], *form, status=2)
    assert "2 rows skipped" in judged([bare, huge], *form, "--tasks.on-bad-record", "skip", status=2)


def test_ties_are_scored_by_rows_whose_responses_all_have_a_number(judged):
    rows = [
        {"id": "ref:1", "prompt": "?", "chosen": ["9"], "rejected": ["1"], "subset": "Ties"},
        {"id": "tied:1", "prompt": "?", "chosen": ["8", "9"], "rejected": ["1"], "subset": "Ties"},
    ]
    whole = json.loads(judged(rows, "--json"))["rewards"]["digit"]["Ties"]
    broken = [
        {"id": "ref:2", "prompt": "?", "chosen": ["none"], "rejected": ["1"], "subset": "Ties"},
        {"id": "tied:2", "prompt": "?", "chosen": ["8", "none"], "rejected": ["none"], "subset": "Ties"},
    ]
    found = json.loads(judged([*broken, *rows], "--json"))["rewards"]["digit"]["Ties"]
    assert found["ties_score"] == whole["ties_score"] == pytest.approx(1.0 + 0.01 * math.tanh(6))
    assert found["unjudged"] == 3
