"""benchmarks/reward_models.py: what it counts, and that it goes on where it was stopped. What it times is real models alone."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LENGTHS = [(3, 5, 8), (2, 4, 3), (1, 2, 9), (4, 6, 5)]
"""Tokens of the prompt, of the chosen and of the rejected conversation."""


@pytest.fixture(scope="module")
def parts():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import compare
        import reward_models
        import work

        yield reward_models, compare, work
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("setting", "tokens"),
    [
        ({"micro-batch": 1}, 2 * (8 + 4 + 9 + 6)),
        ({"micro-batch": 2}, 4 * 8 + 4 * 9),
        ({"micro-batch": "3"}, 6 * 9 + 2 * 6),
        ({"micro-batch": 4}, 8 * 9),
        ({"micro-batch": 4, "padding-free": "on"}, 13 + 7 + 11 + 11),
        (None, 13 + 7 + 11 + 11 - (3 + 2 + 1 + 4)),
    ],
)
def test_tokens_are_counted_with_their_padding_and_ours_with_each_prompt_once(parts, setting, tokens):
    assert parts[0].tokens_read(LENGTHS, setting) == tokens


def test_a_start_that_was_stopped_goes_on_and_other_pairs_are_run_anew(parts, tmp_path, monkeypatch):
    benchmark, compare, work = parts
    monkeypatch.setattr(compare, "FOLDER", tmp_path)
    pairs = [{"prompt": [], "chosen": [n], "rejected": [], "lengths": [1, 2, 3]} for n in range(16)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    asked = []

    def run(side, threads):
        asked.append((side.arguments["repetition"], threads))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"cpu_seconds": {"step": float(len(asked))}}

    versions = ["torch=1"]

    def told(side):
        return versions[0]

    side = compare.Side("trl", Path("python"), "trl.py", {"rows": str(file), "kind": "dpo", "pairs": 8})
    first = benchmark.Runs(1, resume=False, run=run, told=told)
    first(side, 0)
    with pytest.raises(KeyboardInterrupt):
        first(side, 1)
    again = benchmark.Runs(1, resume=True, run=run, told=told)
    assert [again(side, n)["cpu_seconds"]["step"] for n in (0, 1)] == [1.0, 3.0]
    assert asked == [(0, 1), (1, 1), (1, 1)]
    file.write_text(file.read_text().replace("[0]", "[99]"))
    changed = benchmark.Runs(1, resume=True, run=run, told=told)
    assert [changed(side, n)["cpu_seconds"]["step"] for n in (0, 1)] == [4.0, 3.0]
    assert [row["chosen"] for row in work.pairs(str(file), 8, 1)] == [[n] for n in range(8, 16)]
    benchmark.Runs(1, resume=False, run=run, told=told)(side, 0)
    assert len(asked) == 5
    again(side, 0, "search")  # the one that a search chose is measured anew
    versions[0] = "torch=2"
    benchmark.Runs(1, resume=True, run=run, told=told)(side, 0)
    assert len(asked) == 7


def test_runs_are_told_apart_by_versions_code_and_machine(parts, tmp_path, monkeypatch):
    benchmark, compare, _ = parts
    monkeypatch.setattr(compare, "FOLDER", tmp_path / "benchmarks")
    (tmp_path / "lightrft").mkdir()
    (tmp_path / "lightrft" / "a.py").write_text("1")
    ours, peer = (compare.Side(name, Path(sys.executable), "a.py") for name in ("lightrft", "trl"))
    before, other = benchmark.ran_on(ours), benchmark.ran_on(peer)
    (tmp_path / "lightrft" / "a.py").write_text("2")
    assert benchmark.ran_on(ours) != before
    assert benchmark.ran_on(peer) == other
    assert f"torch={version('torch')}" in other
    assert compare.processor_name() in other


@pytest.mark.parametrize(
    "words", [["micro-batch"], ["micro-batch=3"], ["micro-batch=0"], ["padding-free=yes"]]
)
def test_a_setting_of_trl_that_cannot_be_is_refused_by_name(parts, words, capsys):
    with pytest.raises(SystemExit):
        parts[0].parse(["--rows", "a.gz", "--trl", *words])
    assert f"--trl {words[0]}: give micro-batch=NUMBER, which divides --pairs 8" in capsys.readouterr().err


def test_too_few_pairs_are_refused(parts):
    options = parts[0].parse(["--rows", "a.gz", "--pairs", "2", "--trl", "micro-batch=2"])
    assert options.trl == {"micro-batch": 2}
    parts[0].check_enough([()] * 6, options)
    with pytest.raises(
        SystemExit, match=r"a.gz has 5 pairs.* 3 repetitions of 2 need 6. Lower --repetitions"
    ):
        parts[0].check_enough([()] * 5, options)
