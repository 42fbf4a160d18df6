"""Rewards for following instructions that a program can verify, by the four measures of IFEval (Zhou et al. 2023,
https://arxiv.org/abs/2311.07911). The kinds of instruction are in utils/instructions.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightrft.utils.instructions import followed, followed_loosely


def instructions(answer: str, target: Mapping[str, Any]) -> float:
    """1 if the answer follows all instructions of the target (prompt-level strict accuracy)."""
    return float(all(followed(spoken(answer), target)))


def instructions_loose(answer: str, target: Mapping[str, Any]) -> float:
    """1 if each instruction is followed by the answer, or by it without its first line, its last line, both, or
    asterisks (prompt-level loose accuracy)."""
    return float(all(followed_loosely(spoken(answer), target)))


def instructions_share(answer: str, target: Mapping[str, Any]) -> float:
    """Share of the target's instructions that the answer follows."""
    found = followed(spoken(answer), target)
    return sum(found) / len(found)


def instructions_loose_share(answer: str, target: Mapping[str, Any]) -> float:
    """Share of the target's instructions that the answer follows loosely."""
    found = followed_loosely(spoken(answer), target)
    return sum(found) / len(found)


def spoken(answer: str) -> str:
    """What follows a thought, or all of the answer where there is none; tags are left in, for they are part of what is said."""
    return answer.rpartition("</think>")[2]
