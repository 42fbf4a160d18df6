"""Answers to questions about texts, judged as SQuAD does (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250).

Words are compared without capitals, marks and articles, and of several right answers the best fitting one counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from lightrft.utils.answers import concluded

FIXED = ("yes", "no", "noanswer")
"""Answers of HotpotQA that no other answer is partly."""
MARKS = str.maketrans("", "", string.punctuation)


def squad_exact(answer: str, target: str | Sequence[str]) -> float:
    """1 if the concluded answer has the words of a right one, and no others, in their order."""
    said = normalised(concluded(answer))
    return float(any(said == normalised(right) for right in _right(target)))


def squad_f1(answer: str, target: str | Sequence[str]) -> float:
    """F1 of the words of the concluded answer against those of the right one that fits best, from 0 to 1."""
    said = normalised(concluded(answer))
    return max(_f1(said, normalised(right)) for right in _right(target))


def hotpot_f1(answer: str, target: str | Sequence[str]) -> float:
    """F1 as HotpotQA publishes it (Yang et al. 2018, https://arxiv.org/abs/1809.09600): as `squad_f1`, but where the answer or the right
    one is yes, no or noanswer, anything else is 0."""
    said = normalised(concluded(answer))
    return max(
        _f1(said, normalised(right)) if said == normalised(right) or not _fixed(said, right) else 0.0
        for right in _right(target)
    )


def _fixed(said: Sequence[str], right: str) -> bool:
    return any(" ".join(words) in FIXED for words in (said, normalised(right)))


def normalised(text: str) -> list[str]:
    """Words in small letters, without marks and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(MARKS)).split()


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    same = sum((Counter(said) & Counter(right)).values())
    if not said or not right:
        return float(said == right)
    return 2 * same / (len(said) + len(right))


def _right(target: str | Sequence[str]) -> list[str]:
    """ValueError for a target without an answer."""
    found = [target] if isinstance(target, str) else list(target) if isinstance(target, Sequence) else []
    if not found or not all(isinstance(one, str) for one in found):
        raise ValueError(
            f"the target of a prompt is {target!r:.80}, and this reward takes a text or a list of texts."
        )
    return found
