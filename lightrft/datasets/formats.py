"""From a raw row to a question and its right answer: plain functions, chosen by name or import path."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from lightrft.config import TaskConfig
from lightrft.datasets.media import filled
from lightrft.datasets.sources import Row
from lightrft.types import Message

SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system"}
"""What ShareGPT rows call a speaker -> role."""


class Example(NamedTuple):
    """What a row asks, and what is right."""

    prompt: str | list[Message]
    """The question, or a whole conversation that ends with it."""
    target: Any


Format = Callable[[Row, TaskConfig], Example]
"""Raises ValueError saying what the row lacks; whoever reads the rows adds where it stands."""


def field(row: Row, name: str, setting: str = "") -> Any:
    """The row's field; ValueError naming the ones it has, and the setting to change, if it is absent or null."""
    if row.get(name) is not None:
        return row[name]
    problem = f"field '{name}' is null" if name in row else f"no field '{name}'"
    cure = f" Set {setting}." if setting else ""
    raise ValueError(f"{problem}; the row has: {', '.join(row)}.{cure}")


def text_field(row: Row, name: str, setting: str = "") -> str:
    """A field that must hold text with something in it."""
    value = field(row, name, setting)
    if not isinstance(value, str):
        raise ValueError(f"field '{name}' must be text, not {type(value).__name__}: {value!r:.80}")
    if not value.strip():
        raise ValueError(f"field '{name}' is empty.")
    return value.strip()


def asked(text: str, row: Row) -> str | list[Message]:
    """A question with the row's pictures, clips and sounds (see `filled`); the text alone if there are none."""
    content = filled([Message(role="user", content=text)], row)[0]["content"]
    return text if isinstance(content, str) else [Message(role="user", content=content)]


def columns(row: Row, config: TaskConfig) -> Example:
    """One's own data: tasks.prompt_field with text or a list of messages, tasks.target_field with the answer.

    Messages have role and content, or from and value as in ShareGPT. For rows with pictures, clips or sounds see
    `datasets.media.filled`.
    """
    setting = "tasks.prompt_field"
    value = field(row, config.prompt_field, setting)
    prompt: str | list[Message]
    if isinstance(value, list):
        prompt = filled(_messages(value, config.prompt_field), row)
    else:
        prompt = asked(text_field(row, config.prompt_field, setting), row)
    target = (
        field(row, config.target_field, "tasks.target_field, or leave it empty if there is none")
        if config.target_field
        else None
    )
    return Example(prompt, target)


def gsm8k(row: Row, config: TaskConfig) -> Example:
    """Fields `question` and `answer`; the target is the number after the solution's '####', without commas and $."""
    solution = text_field(row, "answer")
    _, mark, number = solution.rpartition("####")
    number = re.sub(r"[,$\s]", "", number)
    if not mark or not number:
        raise ValueError(f"field 'answer' has nothing after '####': {solution[-60:]!r}")
    return Example(text_field(row, "question"), number)


def math(row: Row, config: TaskConfig) -> Example:
    """Fields `problem` and `answer`, the latter in LaTeX or a number."""
    return Example(text_field(row, "problem"), str(field(row, "answer")).strip())


def aime_archive(row: Row, config: TaskConfig) -> Example:
    """Fields `Question` and `Answer`, as the hub's archive of AIME problems has them."""
    return Example(text_field(row, "Question"), str(field(row, "Answer")).strip())


def svamp(row: Row, config: TaskConfig) -> Example:
    """A story in `Body`, what it asks in `Question`, and the number in `Answer` (145.0 becomes 145)."""
    body = text_field(row, "Body")
    stop = "" if body.endswith((".", "!", "?")) else "."
    return Example(f"{body}{stop} {text_field(row, 'Question')}", f"{float(field(row, 'Answer')):g}")


def _messages(value: list[Any], name: str) -> list[Message]:
    if not value:
        raise ValueError(f"field '{name}' is an empty list of messages.")
    value = [_speaker(message) if isinstance(message, dict) else message for message in value]
    for message in value:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not message.get("content")
        ):
            raise ValueError(
                f"field '{name}': each message needs a role and a content that is not empty, not {message!r:.80}"
            )
    if value[-1]["role"] == "assistant":
        raise ValueError(
            f"field '{name}' ends with the assistant's own message; the policy is to write that one. Leave it out."
        )
    return [Message(role=m["role"], content=m["content"]) for m in value]


def _speaker(message: dict[str, Any]) -> dict[str, Any]:
    """A message with role and content, where it has from and value instead."""
    if "from" not in message or "role" in message:
        return message
    speaker = message["from"]
    return {"role": SPEAKERS.get(speaker, speaker), "content": message.get("value")}


FORMATS: dict[str, Format] = {
    "columns": columns,
    "gsm8k": gsm8k,
    "math": math,
    "aime_archive": aime_archive,
    "svamp": svamp,
}
