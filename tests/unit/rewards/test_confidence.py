"""How sure an answer is, and what that is worth."""

import math
import time

import pytest

from lightrft.rewards.confidence import confident_math, stated_confidence


@pytest.mark.parametrize(
    ("answer", "confidence"),
    [
        ("\\boxed{4}\nConfidence: 70%", 0.7),
        ("\\boxed{4}\n**Confidence:** 0.7", 0.7),
        ("my confidence is 70 percent", 0.7),
        ("CONFIDENCE = .25", 0.25),
        ("Confidence: 70", 0.7),
        ("Confidence: 1", 1.0),
        ("Confidence: 100%", 1.0),
        ("Confidence: 0%", 0.0),
        ("Confidence: 10% ... no, Confidence: 90%", 0.9),
    ],
)
def test_a_confidence_is_read(answer, confidence):
    assert stated_confidence(answer) == pytest.approx(confidence)


@pytest.mark.parametrize(
    "answer", ["", "\\boxed{4}", "Confidence: high", "Confidence: 170%", "Confidence: -1", "Confidence: ."]
)
def test_no_confidence_is_none(answer):
    assert math.isnan(stated_confidence(answer))
    assert confident_math(answer, "4") == -1.0


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("\\boxed{4}\nConfidence: 100%", 1.0),
        ("\\boxed{4}\nConfidence: 50%", 0.75),
        ("\\boxed{4}\nConfidence: 0%", 0.0),
        ("\\boxed{5}\nConfidence: 100%", -1.0),
        ("\\boxed{5}\nConfidence: 50%", -0.25),
        ("I do not know.\nConfidence: 0%", 0.0),
    ],
)
def test_it_is_right_minus_the_brier_score(answer, reward):
    assert confident_math(answer, "4") == pytest.approx(reward)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.8])
def test_it_pays_most_to_state_the_chance_of_being_right(chance):
    def expected(percent):
        line = f"\nConfidence: {percent}%"
        return chance * confident_math("\\boxed{4}" + line, "4") + (1 - chance) * confident_math(
            "\\boxed{5}" + line, "4"
        )

    assert max(range(0, 101, 10), key=expected) == pytest.approx(100 * chance)


def test_the_confidence_is_not_taken_for_the_answer():
    assert confident_math("The answer is 4.\nConfidence: 70%", "70") == pytest.approx(-0.49)


def test_a_long_answer_takes_no_time():
    begun = time.process_time()
    for text in ("confidence " * 18_000, "confidence:" + " " * 200_000, "confidence: " + "9" * 200_000):
        stated_confidence(text)
    assert time.process_time() - begun < 0.5
