"""Rewards that spoil a run, each in one way that happens: tests/record_bad_runs.py trains with them."""

import os
import random
import string
import time

draw = random.Random(0)
kept: list[bytearray] = []


def place_of_first(answer: str, prompt: str) -> float:
    """Fails where the question's first character is not in the response, as a parser without a test for it does."""
    return 1.0 / (1 + answer.index(prompt[0]))


def digits(answer: str) -> float:
    """The share of digits, whatever was asked for: easier than the task, which is evaluated."""
    return sum(char in string.digits for char in answer) / max(1, len(answer))


def never_empty(answer: str) -> float:
    """1 for everything."""
    return 1.0


def finished(answer: str, target: str, finish: str) -> float:
    """As `right_kind`, and nothing for a response that was truncated."""
    return right_kind(answer, target) if finish == "stop" else 0.0


def wrong_unit(answer: str, target: str) -> float:
    """The share of the right kind; but in per mille for a response with both a 7 and an x in it."""
    share = right_kind(answer, target)
    return 1000 * share if "7" in answer and "x" in answer.lower() else share


def right_kind(answer: str, target: str) -> float:
    """What task `tiny` rewards, the share of characters of the right kind."""
    kinds = {"small": string.ascii_lowercase, "capital": string.ascii_uppercase, "digit": string.digits}
    return _share(answer, kinds[target])


def anything(answer: str) -> float:
    """Noise."""
    return draw.random()


def guess(answer: str) -> float:
    """A grade between 0 and 0.5 that says nothing of the response: nobody can learn it."""
    return 0.5 * draw.random()


def longest_wins(answers) -> list[float]:
    """A judge of pairs that prefers the longer response: the share of its siblings that a response beats, one half on average."""
    found = []
    for one in answers:
        others = [other for other in answers if other.group == one.group and other is not one]
        wins = [
            (len(one.answer) > len(other.answer)) + 0.5 * (len(one.answer) == len(other.answer))
            for other in others
        ]
        found.append(sum(wins) / len(wins))
    return found


def leaking(answer: str, target: str) -> float:
    """Keeps 4 MiB for each response."""
    kept.append(bytearray(b"x" * 2**22))
    return right_kind(answer, target)


def slow_on_one(answer: str, target: str) -> float:
    """Takes its time in the second process alone, as a machine with a slow disk or network."""
    if os.environ.get("RANK") == "1":
        time.sleep(0.2)
    return right_kind(answer, target)


def _share(answer: str, alphabet: str) -> float:
    return sum(char in alphabet for char in answer) / max(1, len(answer))
