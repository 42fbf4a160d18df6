"""SQuAD's measures, on values counted by hand and against its rules in plain Python."""

from __future__ import annotations

import random
import re
import string

import pytest

from lightrft.rewards.qa import normalised, squad_exact, squad_f1


@pytest.mark.parametrize(
    ("answer", "target", "exact", "f1"),
    [
        ("308", "308", 1.0, 1.0),
        ("The 308.", ["4", "308"], 1.0, 1.0),
        ("Denver Broncos", "the Denver Broncos!", 1.0, 1.0),
        ("the Broncos of Denver", "Denver Broncos", 0.0, 2 * 2 / (3 + 2)),
        ("<think>Carolina</think><answer>Denver</answer>", ["Carolina", "Denver Broncos"], 0.0, 2 / 3),
        ("red red", "red", 0.0, 2 / 3),
        ("", "308", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
    ],
)
def test_values_counted_by_hand(answer, target, exact, f1):
    assert squad_exact(answer, target) == exact
    assert squad_f1(answer, target) == pytest.approx(f1)


def test_words_are_those_of_the_published_rules():
    """Small letters, then no marks, then no articles, then no blanks, in that order."""
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(["A ", "an", "The", " ", "x", "é", "-", ".", "(", "'s", "\n", "a"], k=12))
        small = "".join(c for c in text.lower() if c not in set(string.punctuation))
        assert normalised(text) == re.sub(r"\b(a|an|the)\b", " ", small).split()


@pytest.mark.parametrize("target", [None, [], [3], {"a": 1}])
def test_a_target_without_an_answer_is_a_failure_and_no_zero(target):
    with pytest.raises(ValueError, match="a text or a list of texts"):
        squad_f1("x", target)
