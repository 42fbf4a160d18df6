"""Rewards that compare text: format tags, exact match, choice letters, JSON. Each gives 1 or 0 unless said otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lightrft.utils.answers import NUMBER, concluded, plain, plain_words, value
from lightrft.utils.choices import letter
from lightrft.utils.objects import first_json_object, same_json

FORMAT = re.compile(r"<think>.+?</think>\s*<answer>.+?</answer>", re.DOTALL)
ANSWER_ONLY = re.compile(r"<answer>.+?</answer>", re.DOTALL)
_WORD = r"\w+"
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def tags(answer: str) -> float:
    """1 if the answer is <think>...</think><answer>...</answer>, each tag once, neither empty, nothing outside."""
    once = all(answer.count(tag) == 1 for tag in _TAGS)
    return float(once and FORMAT.fullmatch(answer.strip()) is not None)


def answer_tags(answer: str) -> float:
    """1 if the answer is <answer>...</answer>, once, not empty, nothing outside."""
    once = answer.count("<answer>") == 1 and answer.count("</answer>") == 1
    return float(once and ANSWER_ONLY.fullmatch(answer.strip()) is not None)


def exact(answer: str, target: str) -> float:
    """1 if the concluded answer is the target, letter by letter but for blanks."""
    return float(concluded(answer).split() == str(target).split())


def words(answer: str, target: str) -> float:
    """1 if the concluded answer has the target's words and no others, whatever their case and the marks around them."""
    return float(plain_words(answer) == plain_words(str(target)) != "")


def choice(answer: str, target: str) -> float:
    """1 if the last choice letter that the answer commits to is the target's: "(B)", "B.", "the answer is b"."""
    found = letter(answer)
    return float(bool(found) and found == str(target).strip().strip("().").upper())


def choice_words(answer: str, target: Mapping[str, Any]) -> float:
    """1 if the concluded answer has all words of the right choice, and none that only other choices have, as MMAU is scored
    (Sakshi et al. 2024, https://arxiv.org/abs/2410.19168). The target is {"answer": ..., "choices": [...]}."""
    said, right = _word_set(concluded(answer)), _word_set(target["answer"])
    wrong = set[str]().union(*(_word_set(choice) - right for choice in target["choices"]))
    return float(bool(said) and right <= said and not said & wrong)


def choice_or_open(answer: str, target: Mapping[str, Any]) -> float:
    """1 for the right letter of {"letter": "B"}; of {"answers": ["0.5", "a half"]} if one of them is found in the concluded answer:
    a number if one there is the same to two decimals, words if they stand there, whatever their case (as MMMU is scored, Yue et
    al. 2023, https://arxiv.org/abs/2311.16502, but an answer without a letter is wrong where MMMU guesses one)."""
    if "letter" in target:
        return choice(answer, target["letter"])
    said = concluded(answer)
    return float(any(_is_in(said, str(right)) for right in target["answers"]))


def _is_in(said: str, right: str) -> bool:
    wanted = value(plain(right))
    if wanted is None:
        return (
            f" {' '.join(re.findall(_WORD, right.lower()))} "
            in f" {' '.join(re.findall(_WORD, said.lower()))} "
        )
    numbers = (value(found) for found in re.findall(NUMBER, said))
    return any(number is not None and round(number, 2) == round(wanted, 2) for number in numbers)


def _word_set(text: str) -> set[str]:
    return set(re.findall(_WORD, text.lower()))


def json_object(answer: str, target: Mapping[str, Any] | str) -> float:
    """1 if the first JSON object in the concluded answer equals the target; prose around it is allowed.

    Numbers are compared as numbers, true and 1 are different. ValueError for a target that is no object, nor the text of one.
    """
    return float(same_json(first_json_object(concluded(answer)), _wanted(target)))


def json_fields(answer: str, target: Mapping[str, Any] | str) -> float:
    """Share of the target's fields that the first JSON object in the concluded answer has with the right value.

    A denser signal than `json` to learn from; fields that do not belong there cost as much as missing ones.
    """
    wanted, found = _wanted(target), first_json_object(concluded(answer))
    if found is None:
        return 0.0
    right = sum(name in found and same_json(found[name], value) for name, value in wanted.items())
    return right / len(wanted.keys() | found.keys()) if wanted or found else 1.0


def json_keys(answer: str, target: Mapping[str, Any] | str) -> float:
    """Share of the target's keys that the first JSON object in the concluded answer has, whatever their values.

    Beside `json_fields` it shows the way to a field that no sampled answer gets right yet; keys that do not belong there cost as much as
    missing ones.
    """
    wanted, found = _wanted(target).keys(), first_json_object(concluded(answer))
    if found is None:
        return 0.0
    return len(wanted & found.keys()) / len(wanted | found.keys()) if wanted or found else 1.0


def json_only(answer: str, target: Any) -> float:  # noqa: ARG001  # as all rewards of one answer
    """1 if the whole answer is one JSON object, whatever is in it."""
    try:
        return float(isinstance(json.loads(answer), dict))
    except (ValueError, RecursionError):
        return 0.0


def repetition(answer: str) -> float:
    """Share of the answer's runs of three words that were there before, from 0 to 1; give it a negative weight.

    1 - distinct / all, letters in lower case: the penalty of open-r1 (get_repetition_penalty_reward), without its sign.
    """
    words = answer.lower().split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def thousand_tokens(num_tokens: int) -> float:
    """Tokens of the answer, in thousands; give it a negative weight to make length cost."""
    return num_tokens / 1000


def _wanted(target: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(target, str):
        with suppress(ValueError, RecursionError):
            target = json.loads(target)
    if not isinstance(target, Mapping):
        raise ValueError(
            f"the target of a prompt is {target!r:.80}, and this reward compares JSON objects: {{...}}."
        )
    return target


def same_kind(answer: str, target: str) -> float:
    """Share of the answer's characters that are small letters, capitals or digits, whichever the target names."""
    belongs = {"small": str.islower, "capital": str.isupper, "digit": str.isdigit}[target]
    return sum(c.isascii() and belongs(c) for c in answer) / len(answer) if answer else 0.0
