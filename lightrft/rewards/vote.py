"""Rewards without labels: what most answers to a question conclude is taken for right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any

from lightrft.rewards.function import Answer
from lightrft.utils.answers import boxed, concluded, conclusion, label
from lightrft.utils.choices import letter
from lightrft.utils.objects import first_json_object

VOTES = ("majority", "majority_right")
"""The rewards of this file: they compare the answers of a group, so a single answer is always with the majority."""


def majority(answers: Sequence[Answer]) -> list[float]:
    """1 for each answer that concludes what most answers to the same draw of the question conclude, else 0.

    TTRL, Zuo et al. 2025 (https://arxiv.org/abs/2504.16084), section 2.2. Two conclusions are the same if they are the same
    number (units left out), the same JSON object, the same choice letter, or the same text but for spacing. An answer that concludes nothing, or was cut for its
    length, has no vote (cut answers agree too easily); if none has, all get 0. Of equally frequent conclusions the one that was answered first wins.
    Its mean is the share of votes that the winners have.
    """
    return [
        float(vote is not None and vote == winner)
        for group in _by_group(answers)
        for vote, winner in _judged(group)
    ]


def majority_right(answers: Sequence[Answer]) -> list[float]:
    """1 for every answer of a group whose majority concludes what the target says, else 0.

    For the log, with weight 0: its mean is how many of the labels that `majority` makes are right. Needs a target.
    """
    return [
        float(winner is not None and winner == _label(answer.prompt.target))
        for group in _by_group(answers)
        for answer, (_, winner) in zip(group, _judged(group), strict=True)
    ]


def _by_group(answers: Sequence[Answer]) -> list[list[Answer]]:
    return [list(group) for _, group in groupby(answers, key=lambda answer: answer.group)]


def _judged(group: Sequence[Answer]) -> list[tuple[Hashable, Hashable]]:
    """(its vote, the winner) of each answer."""
    votes = [_vote(answer) for answer in group]
    counts = Counter(vote for vote in votes if vote is not None)
    winner = (
        counts.most_common(1)[0][0] if counts else None
    )  # the first of equals: a Counter keeps their order
    return [(vote, winner) for vote in votes]


def _vote(answer: Answer) -> Hashable:
    """What an answer concludes, in a form that is the same for the same conclusion; None for none."""
    if answer.finish == "length":
        return None
    text = concluded(answer.answer)
    if boxed(text) is None:
        found = first_json_object(text)
        if found or text == "{}":
            return _label(found)
    stated = conclusion(text)
    said = (letter(text) or None) if stated is None else stated
    return None if said is None else _label(said)


def _label(target: Any) -> Hashable:
    """A conclusion or target in one form; a choice is its letter, with or without brackets."""
    return json.dumps(target, sort_keys=True) if isinstance(target, Mapping) else label(str(target))
