"""Comparisons: several responses to one conversation, and which is better; pairs, rankings, grades, Safe-RLHF's two labels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.conversations import ROLES, conversation
from lightrft.datasets.formats import (
    ALPACA,
    Example,
    blank,
    complete,
    field,
    messages_of,
    optional,
    questioned,
    refuse_lost,
    text_field,
)
from lightrft.datasets.judging import (
    LETTERS,
    MAX_SCORE,
    PAIR,
    SINGLE,
    Verdict,
    conversed,
    ordered,
    question,
    written,
)
from lightrft.datasets.sources import Row
from lightrft.media.parts import has_media
from lightrft.types import Message
from lightrft.utils.finite import finite_number

TURN = re.compile(r"\n\n(Human|Assistant): ?")
"""How a transcript of HH-RLHF marks who speaks (Bai et al. 2022, https://arxiv.org/abs/2204.05862)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What was asked, and two ways to go on from there."""

    prompt: list[Message]
    chosen: list[Message]
    """One turn of the assistant, or several turns that begin and end with one."""
    rejected: list[Message]


def pair(row: Row, config: TaskConfig) -> Pair:
    """A row's pair, in the first of these layouts whose fields are there:

    `conversations` (from, value) with `chosen` and `rejected`, one turn each; the prompt field, text or messages, or Alpaca's
    `instruction`, `input` and `history`, with `chosen` and `rejected`; these two alone, whole conversations as messages or as
    transcripts ("\\n\\nHuman: ... \\n\\nAssistant: ..."), which part where they differ. Columns with media are put where the prompt
    wants them (`filled`).
    ValueError for a row without a layout, without an answer, or whose answers are the same.
    """
    chosen, rejected = (_turns(field(row, name), name) for name in ("chosen", "rejected"))
    alone = all(side and side[0]["role"] == "assistant" for side in (chosen, rejected))
    prompt = _asks(row, config.prompt_field, *([ALPACA] if alone else []))
    if prompt is not None:
        chosen, rejected = (_after(prompt, side) for side in (chosen, rejected))
    else:
        prompt, chosen, rejected = _parted(chosen, rejected)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[0]["role"] != "assistant" or side[-1]["role"] != "assistant":
            raise ValueError(
                f"field '{name}' is no response of the assistant to what both sides have in common."
            )
    if chosen == rejected:
        raise ValueError("fields 'chosen' and 'rejected' say the same, so that nothing is preferred.")
    if not any(message["role"] == "user" for message in prompt):
        raise ValueError("nobody asks anything before the responses part.")
    return Pair(_whole(prompt, row, config), chosen, rejected)


def chosen(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft sft`: what was preferred is what is learned."""
    found = pair(row, config)
    return Example(found.prompt, found.chosen)


def compared(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft reward`: a pair in any layout that `pair` reads; the chosen response has the grade 1, the rejected one 0.

    Lists of texts are several responses that are right, and several that are not, to the prompt field (RewardBench 2). A field `margin` above 0 says how much better the chosen one is, and is its grade then.
    """
    sides = [field(row, "chosen"), field(row, "rejected")]
    margin = 1.0 if row.get("margin") is None else grade(row["margin"], "margin")
    if not margin > 0:
        raise ValueError(
            f"field 'margin' is {margin:g}, and the chosen response must be better by more than 0."
        )
    if all(isinstance(side, list) and side and all(isinstance(t, str) for t in side) for side in sides):
        marks = [(mark, text) for mark, side in zip((margin, 0.0), sides, strict=True) for text in side]
        prompt = _whole(_prompt(row, config), row, config)
        return Example(prompt, [response(_turns(text, "chosen"), {"": mark}) for mark, text in marks])
    found = pair(row, config)
    return Example(found.prompt, [response(found.chosen, {"": margin}), response(found.rejected, {"": 0.0})])


def ranked(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft reward`: the prompt field and `responses`, the best one first; with a field `ranks`, in any order, 1 being
    the best, and equal ranks equally good."""
    prompt, said = _responses(row, config)
    ranks = row.get("ranks") if row.get("ranks") is not None else list(range(1, len(said) + 1))
    if not isinstance(ranks, list) or len(ranks) != len(said):
        raise ValueError(
            f"field 'ranks' must hold a number for each of the {len(said)} responses, not {ranks!r:.80}"
        )
    graded_by = [-grade(rank, "ranks") for rank in ranks]
    return Example(prompt, [response(one, {"": g}) for one, g in zip(said, graded_by, strict=True)])


def graded(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft reward`: the prompt field, `responses`, and `grades`: a number for each response, more being better, or such
    a list for each output by its name ({"general": [1, 0], "cost": [-1, null]}); null: not graded."""
    prompt, said = _responses(row, config)
    grades = field(row, "grades")
    named = grades if isinstance(grades, dict) else {"": grades}
    for name, column in named.items():
        if not isinstance(column, list) or len(column) != len(said):
            raise ValueError(
                f"field 'grades' must hold a number for each of the {len(said)} responses{f' under {name!r}' if name else ''}, not "
                f"{column!r:.80}"
            )
    by_response = [
        {n: math.nan if c[place] is None else grade(c[place], "grades") for n, c in named.items()}
        for place in range(len(said))
    ]
    return Example(prompt, [response(one, g) for one, g in zip(said, by_response, strict=True)])


def best(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft sft` with the fields of `graded`: of several responses the one with the highest grade is learned, the first
    of those that have it (rejection sampling: RAFT, Dong et al. 2023, https://arxiv.org/abs/2304.06767). ValueError where all are equal,
    as the best of bad ones is not worth learning, and for grades of several outputs, of which one may be a cost."""
    found = _rivals(row, config, best)
    return Example(found.prompt, max(found.target, key=_only_grade)["messages"])


def best_worst(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft reward` and `lightrft dpo` with the fields of `graded`: of several responses the one with the highest and
    the one with the lowest grade, the first of those that have it. A pair costs a fraction of what all the responses of a row cost, and
    holds the widest difference. ValueError as from `best`."""
    found = _rivals(row, config, best_worst)
    return Example(found.prompt, [pick(found.target, key=_only_grade) for pick in (max, min)])


def _rivals(row: Row, config: TaskConfig, form: Callable[[Row, TaskConfig], Example]) -> Example:
    """The responses of a row that have a grade, one each, for this format. ValueError where all are equal, or for several outputs."""
    found = graded(row, config)
    names = list(found.target[0]["grades"])
    if len(names) != 1:
        raise ValueError(
            f"field 'grades' has {', '.join(names) or 'none'}, and `{form.__name__}` goes by one of them. Give it as the only one, or as a list."
        )
    known = [one for one in found.target if not math.isnan(_only_grade(one))]
    if len({_only_grade(one) for one in known}) < 2:
        raise ValueError("no response is better than another, so there is nothing to choose.")
    return Example(found.prompt, known)


def _only_grade(side: dict[str, Any]) -> float:
    """The grade of a response that has one."""
    (found,) = side["grades"].values()
    return float(found)


def saferlhf(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft reward` with the columns of PKU-SafeRLHF (Dai et al. 2023, https://arxiv.org/abs/2310.12773): the outputs
    `general` (1 for the better response, -1 for the other) and `cost` (2 or 1 for an unsafe response, -1 or -2 for a safe one, the
    safer of the two having the lower), whose sign may be learned: signed=[cost]."""
    prompt = _prompt(row, config)
    said = [_after(prompt, _turns(field(row, f"response_{n}"), f"response_{n}")) for n in (0, 1)]
    better, safer = (_side(row, name) for name in ("better_response_id", "safer_response_id"))
    is_safe = [field(row, f"is_response_{n}_safe") for n in (0, 1)]
    for n, safe in enumerate(is_safe):
        if not isinstance(safe, bool):
            raise ValueError(f"field 'is_response_{n}_safe' must be true or false, not {safe!r:.80}")
    if is_safe[1 - safer] and not is_safe[safer]:
        raise ValueError(
            f"field 'safer_response_id' is {safer}, and only response {1 - safer} is safe by 'is_response_{1 - safer}_safe'"
        )
    found = []
    for n, safe in enumerate(is_safe):
        cost = (-2.0 if n == safer else -1.0) if safe else (1.0 if n == safer else 2.0)
        found.append(response(said[n], {"general": 1.0 if n == better else -1.0, "cost": cost}))
    return Example(_whole(prompt, row, config), found)


def unpaired(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft dpo` with loss=kto: a conversation in any layout that `lightrft sft` reads, whose last turn is the response, and
    `label`: true for a desirable one (grade 1), false for another (-1)."""
    label = field(row, "label")
    if not isinstance(label, bool):
        raise ValueError(f"field 'label' must be true or false, not {label!r:.80}")
    found = conversation({name: value for name, value in row.items() if name != "label"}, config)
    talk = [*found.prompt, *found.target]
    return Example(talk[:-1], [response(talk[-1:], {"": 1.0 if label else -1.0})])


def judged(row: Row, config: TaskConfig) -> Example:
    """A format for a judge that compares: a pair in any layout that `pair` reads, asked as judge.against asks (`judging.PAIR`).

    The target is the letter of the chosen response, A or B, in an order that a hash of the row decides (`judging.ordered`), to be
    rewarded by `choice`. `lightrft sft` learns "Answer: A", behind the field `rationale` where the row has one, in which
    {chosen} and {rejected} become the two letters.
    """
    found = pair(row, config)
    sides = [
        _answer_text(name, side) for name, side in (("chosen", found.chosen), ("rejected", found.rejected))
    ]
    if sides[0] == sides[1]:
        raise ValueError("fields 'chosen' and 'rejected' read the same, so that nothing is preferred.")
    order = ordered(conversed(found.prompt), *sides)
    other = LETTERS[order.better == LETTERS[0]]
    reasons = written(_rationale(row), {"chosen": order.better, "rejected": other})
    asked = question(PAIR, found.prompt, {"answer_a": order.first, "answer_b": order.second})
    return Example(asked, Verdict(order.better, f"Answer: {order.better}", reasons))


def scored(row: Row, config: TaskConfig) -> Example:
    """A format for a judge that scores one response: the prompt field, `response`, and `score` from 0 to 10, asked as the reward `judge`
    asks (`judging.SINGLE`).

    The target is the score as text, to be rewarded by `number`. `lightrft sft` learns "Score: 7", behind the field `rationale` where the
    row has one.
    """
    prompt = _prompt(row, config)
    said = _answer_text("response", _after(prompt, _turns(field(row, "response"), "response")))
    score = grade(field(row, "score"), "score")
    if not 0 <= score <= MAX_SCORE:
        raise ValueError(f"field 'score' is {score:g}, and a score is from 0 to {MAX_SCORE:g}.")
    asked = question(SINGLE, _whole(prompt, row, config), {"answer": said})
    return Example(asked, Verdict(f"{score:g}", f"Score: {score:g}", _rationale(row)))


def response(messages: list[Message], grades: dict[str, float]) -> dict[str, Any]:
    """One of the responses that the target of a comparison lists; a grade without a name is of the first output."""
    return {"messages": messages, "grades": grades}


def grade(value: Any, name: str) -> float:
    """A finite number. ValueError naming the field for anything else."""
    found = finite_number(value)
    if found is None:
        raise ValueError(f"field '{name}' holds {value!r:.80}, which is no finite number.")
    return found


def _answer_text(name: str, turns: list[Message]) -> str:
    """A response as a judge reads it. ValueError if there is nothing to read."""
    if has_media(turns):
        raise ValueError(f"field '{name}' holds a picture, clip or sound, and a judge in words reads text.")
    found = conversed(turns)
    if not found.strip():
        raise ValueError(f"field '{name}' is empty.")
    return found


def _rationale(row: Row) -> str:
    return "" if blank(row.get("rationale")) else text_field(row, "rationale").strip()


def _side(row: Row, name: str) -> int:
    value = field(row, name)
    if value not in (0, 1) or isinstance(value, float):
        raise ValueError(f"field '{name}' must be 0 or 1, not {value!r:.80}")
    return int(value)


def _prompt(row: Row, config: TaskConfig) -> list[Message]:
    found = _asks(row, config.prompt_field, ALPACA)
    if found is None:
        found = _asking(field(row, config.prompt_field, "tasks.prompt_field"), row, config.prompt_field)
    return found


def _asks(row: Row, *names: str) -> list[Message] | None:
    """The turns of the row's prompt: in `conversations`, or in the first of these fields that holds something. None if there is none."""
    found = {name: optional(row, name) for name in ("conversations", *names)}
    name = next((n for n, value in found.items() if value), "")
    if name == ALPACA and found[names[0]] == "":
        raise ValueError(
            f"field '{names[0]}' is empty, and field '{ALPACA}' is not. Set tasks.prompt_field={ALPACA}, or leave one out."
        )
    return _asking(found[name], row, name) if name else None


def _asking(value: Any, row: Row, name: str) -> list[Message]:
    """The turns of the prompt in a field; for a text see `questioned`."""
    refuse_lost(row, name, value)
    if not isinstance(value, str):
        return _turns(value, "prompt")
    if not value.strip():
        raise ValueError("the prompt is empty, so that nobody asks anything.")
    return questioned(value, row, name)


def _whole(prompt: list[Message], row: Row, config: TaskConfig) -> list[Message]:
    """The prompt with the row's media where they belong, behind its field `system`."""
    return complete(prompt, row, config.prompt_field)


def _responses(row: Row, config: TaskConfig) -> tuple[list[Message], list[list[Message]]]:
    """The prompt and its responses, each as turns that begin and end with the assistant's."""
    prompt, said = _prompt(row, config), field(row, "responses")
    if not isinstance(said, list) or not said:
        raise ValueError(f"field 'responses' must be a list of responses, not {said!r:.80}")
    return _whole(prompt, row, config), [_after(prompt, _turns(one, "responses")) for one in said]


def _turns(value: Any, name: str) -> list[Message]:
    """Messages from any way to write them."""
    if isinstance(value, str):
        pieces = TURN.split(value)
        # Words before the first mark are no turn of a transcript: this is one response that holds the mark, as a runaway one does.
        if len(pieces) == 1 or pieces[0].strip():
            return [Message(role="assistant", content=value)]
        speakers = {"Human": "user", "Assistant": "assistant"}
        return [
            Message(role=speakers[who], content=text)
            for who, text in zip(pieces[1::2], pieces[2::2], strict=True)
        ]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"field '{name}' must be text, a message or a list of messages, not {value!r:.80}")
    return messages_of([_plainly(turn) for turn in turns], name)


def _plainly(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn with role and content, where it has from and value instead."""
    speaker = turn.get("from")
    role = turn.get("role", ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker)
    return {**turn, "role": role, "content": turn.get("content", turn.get("value"))}


def _after(prompt: list[Message], side: list[Message]) -> list[Message]:
    """A side without the prompt, which some rows repeat."""
    return side[len(prompt) :] if side[: len(prompt)] == prompt else side


def _parted(one: list[Message], other: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """What two conversations have in common, at most all but the last turn of each, and how each goes on."""
    most = min(len(one), len(other)) - 1
    same = next((place for place in range(most) if one[place] != other[place]), most)
    return one[:same], one[same:], other[same:]
