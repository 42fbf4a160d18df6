"""benchmarks/reward_models.py: what it counts, and that it goes on where it was stopped. What it times is real models alone."""

from __future__ import annotations

import json
import sys
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

    side = compare.Side("trl", Path("python"), "trl.py", {"rows": str(file), "kind": "dpo", "pairs": 8})
    first = benchmark.Runs(1, resume=False, run=run)
    first(side, 0)
    with pytest.raises(KeyboardInterrupt):
        first(side, 1)
    again = benchmark.Runs(1, resume=True, run=run)
    assert [again(side, n)["cpu_seconds"]["step"] for n in (0, 1)] == [1.0, 3.0]
    assert asked == [(0, 1), (1, 1), (1, 1)]
    file.write_text(file.read_text().replace("[0]", "[99]"))
    changed = benchmark.Runs(1, resume=True, run=run)
    assert [changed(side, n)["cpu_seconds"]["step"] for n in (0, 1)] == [4.0, 3.0]
    assert [row["chosen"] for row in work.pairs(str(file), 8, 1)] == [[n] for n in range(8, 16)]
    benchmark.Runs(1, resume=False, run=run)(side, 0)
    assert len(asked) == 5
