"""Pictures of digits to learn from, and pairs of digits of which some are never shown."""

from __future__ import annotations

import numpy
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")

from lightrft.config import TaskConfig
from lightrft.rewards.function import Answer, Question
from lightrft.rewards.table import REWARDS
from lightrft.tasks.digit_pictures import SHOWN
from lightrft.tasks.table import load_task
from lightrft.utils.digits import WORDS, part


def load(name, split="train", seed=0):
    return load_task(name).load(split, TaskConfig(), "", seed)


def text(record):
    return record.messages[0]["content"]


def made(record):
    (said,) = record.target
    (content,) = said["content"]
    return content["image"]


def judged(reward, image, target):
    question = Question("0", [], target, "two_digits")
    return REWARDS[reward]([Answer(question, 0, [], "", "stop", made={"image": image})])[0]


def test_twenty_pairs_are_held_out_of_every_task_that_trains_and_their_digits_are_not():
    held_out = {text(record) for record in load("two_digits", "evaluate")}
    asked = {text(record) for record in load("two_digits")}
    shown = {text(record) for record in load("two_digit_pictures:30")}
    assert len(held_out) == 20
    assert asked == shown == {f"{a} {b}" for a in WORDS for b in WORDS} - held_out
    for side in (0, 1):
        assert {pair.split()[side] for pair in held_out} == set(WORDS)
    assert {text(record) for record in load("two_digit_pictures:30", "evaluate")} == held_out


@pytest.mark.parametrize("wrong", [0, 30])
def test_pictures_are_of_seen_pairs_of_pictures_that_no_judge_learned_and_so_many_digits_have_a_wrong_name(
    wrong,
):
    records, known = load(f"two_digit_pictures:{wrong}"), part("draw")[1]
    held_out = {text(record) for record in load("two_digits", "evaluate")}
    named, right = [], []
    for record in records:
        places = [int(n) for n in made(record).name.split()[1:3]]
        right.append(" ".join(WORDS[known[place]] for place in places))
        named.append(text(record))
    assert not held_out & set(right)
    digits = [
        (a, b) for n, r in zip(named, right, strict=True) for a, b in zip(n.split(), r.split(), strict=True)
    ]
    share = sum(a != b for a, b in digits) / len(digits)
    # Nine tenths of 30 percent, and fewer, since both digits of what would be a held-out pair are named anew.
    assert share == pytest.approx(0.24 if wrong else 0.0, abs=0.015)
    assert (share == 0) == (wrong == 0)
    again = load(f"two_digit_pictures:{wrong}", seed=1)
    assert [made(record).name for record in again] != [made(record).name for record in records]


def test_gold_pictures_get_full_marks_of_both_judges_and_one_wrong_digit_half_of_the_first():
    records = load("two_digit_pictures", "evaluate")
    first, second, half, none = [], [], [], []
    for record in records[:60]:
        image, pair = made(record).make(), [WORDS.index(word) for word in text(record).split()]
        assert image.shape == (8, 16, 3)
        other = [(pair[0] + 1) % 10, pair[1]]
        first.append(judged("two_digits", image, pair))
        second.append(judged("two_digits_second", image, pair))
        half.append(judged("two_digits", image, other))
        none.append(judged("two_digits_second", image, other))
    assert numpy.mean(first) > 0.9
    assert numpy.mean(second) > 0.95
    assert 0.4 < numpy.mean(half) < 0.55
    assert numpy.mean(none) < 0.05


def test_each_picture_of_one_digit_is_there_once_by_its_name():
    records, known = load("digit_pictures"), part(SHOWN["train"])[1]
    assert len({made(record).name for record in records}) == len(records) == len(known)
    assert all(text(record).split()[-1] == WORDS[digit] for record, digit in zip(records, known, strict=True))
    assert {text(record).split()[-1] for record in load("digit_pictures", "evaluate")} == set(WORDS)


def test_a_share_that_is_no_percentage_is_refused():
    for option in ("x", "-1", "100"):
        with pytest.raises(ValueError, match=f"task 'digit_pictures:{option}': name the percentage"):
            load_task(f"digit_pictures:{option}")
