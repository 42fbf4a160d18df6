"""What a client of `lightrft serve-rewards` sends: JSON, read as responses, or refused with what must change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightrft.rewards.wire import read_table, resolved
from lightrft.types import Message, Prompt, Trajectory

MOST_ANSWERS = 1024
FINISHES = ("stop", "length", "turns")
ROLES = ("system", "user", "assistant", "tool", "developer")


class BadRequestError(Exception):
    """What a client must change, and the status that says so."""

    def __init__(self, told: str, status: int = 400) -> None:
        super().__init__(told)
        self.status = status


@dataclass(frozen=True)
class Tasks:
    """The tasks whose rewards are served."""

    names: tuple[str, ...]
    others: str = ""
    """The one of them as which responses of all other tasks are judged; empty: they are refused."""

    def judged_as(self, source: Any) -> str:
        """The task whose rewards a response gets; empty for none."""
        return source if isinstance(source, str) and source in self.names else self.others


def parsed(text: bytes) -> Any:
    """JSON whose numbers are finite and whose texts are texts. BadRequestError for anything else."""

    def finite(word: str) -> float:
        if not math.isfinite(number := float(word)):
            raise ValueError(f"{word} is no finite number")
        return number

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no JSON")

    try:
        found = json.loads(text.decode(), parse_float=finite, parse_constant=refuse)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise BadRequestError(
            f"the body is no JSON that is read here: {str(error)[:200] or type(error).__name__}"
        ) from None
    return found


def read_answers(body: Any, tasks: Tasks) -> list[Trajectory]:
    """The responses of {"answers": [...]}, see rewards/remote.py: as_json. BadRequestError naming what is wrong."""
    found = body.get("answers") if isinstance(body, dict) else None
    if not isinstance(found, list) or len(found) > MOST_ANSWERS:
        raise BadRequestError(f'expected {{"answers": [...]}} with at most {MOST_ANSWERS} of them')
    try:
        media = read_table(body.get("media", []))
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    asked: dict[str, list[Message]] = {}
    return [_answer(one, place, tasks, media, asked) for place, one in enumerate(found)]


def _answer(
    one: Any, place: int, tasks: Tasks, media: Sequence[dict[str, Any]], asked: dict[str, list[Message]]
) -> Trajectory:
    """A response. `asked`: messages that were read before, so that siblings share theirs and each medium is looked at once."""

    def need(condition: bool, told: str) -> None:
        if not condition:
            raise BadRequestError(f"answers[{place}]: {told}")

    need(isinstance(one, dict), "expected an object")
    messages, answer, tokens = one.get("messages"), one.get("answer"), one.get("token_ids", [])
    said, worth, replied = one.get("said", []), one.get("step_rewards", []), one.get("replied", 0)
    need(
        isinstance(messages, list) and all(map(_is_message, messages)),
        "messages: expected a list of {role, content}",
    )
    need(isinstance(answer, str), "answer: expected a text")
    need(isinstance(said, list) and all(map(_is_text, said)), "said: expected a list of {role, content}")
    need(
        isinstance(worth, list) and all(type(one) in (int, float) for one in worth),
        "step_rewards: expected numbers",
    )
    need(
        isinstance(tokens, list) and all(type(token) is int for token in tokens),
        "token_ids: expected whole numbers",
    )
    need(
        type(replied) is int and 0 <= replied <= len(tokens),
        "replied: expected how many of token_ids are replies",
    )
    group, finish = one.get("group", place), one.get("finish", "stop")
    need(type(group) is int, "group: expected a whole number")
    need(finish in FINISHES, f"finish: expected {', '.join(FINISHES)}")
    source = tasks.judged_as(one.get("source"))
    need(
        bool(source), f"source: {one.get('source')!r:.80} is none of the tasks here: {', '.join(tasks.names)}"
    )
    key = json.dumps(messages)
    try:
        shared = asked[key] = asked[key] if key in asked else resolved(messages, media)
    except ValueError as error:
        raise BadRequestError(f"answers[{place}]: messages: {error}") from None
    prompt = Prompt(str(one.get("id", place)), [], shared, one.get("target"), source)
    mask = [True] * (len(tokens) - replied) + [False] * replied  # which of them they are is not told
    none = [0.0] * len(tokens)
    return Trajectory(prompt, group, tokens, mask, none, finish, answer, said=said, step_rewards=worth)


def _is_message(message: Any) -> bool:
    """Whether it is a message: who speaks, and a text or parts."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        return False
    return isinstance(message.get("content"), str | list)


def _is_text(message: Any) -> bool:
    """Whether it is a message of text alone."""
    if not _is_message(message):
        return False
    content = message["content"]
    return isinstance(content, str) or all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def read_openrlhf(body: Any, tasks: Tasks) -> list[Trajectory]:
    """The responses of OpenRLHF's form: each query begins with its prompt."""
    queries = _texts(body, "query")
    prompts, labels = _texts(body, "prompts") or [""] * len(queries), body.get("labels")
    labels = [None] * len(queries) if labels is None else labels
    if not isinstance(labels, list) or len({len(queries), len(prompts), len(labels)}) != 1:
        raise BadRequestError("expected query, prompts and labels: lists of one length")
    if not all(query.startswith(prompt) for query, prompt in zip(queries, prompts, strict=True)):
        raise BadRequestError("each query must begin with its prompt")
    found = [
        {"messages": [Message(role="user", content=prompt)], "answer": query[len(prompt) :], "target": label}
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]
    return read_answers({"answers": found}, tasks)


def _texts(body: Any, name: str) -> list[str]:
    found = body.get(name) if isinstance(body, dict) else None
    if found is None and name != "query":
        return []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BadRequestError(f"{name}: expected a list of texts")
    return found


def openrlhf_reply(found: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """OpenRLHF's form of the rewards. BadRequestError if there are several."""
    if len(found) != 1:
        raise BadRequestError(f"this form has one reward, and here are {', '.join(found)}; ask /rewards")
    values = next(iter(found.values()))
    return {"rewards": values, "scores": values, "extra_logs": {}}
