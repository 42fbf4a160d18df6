"""From a raw row to a question and its right answer: plain functions, chosen by name or import path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lightrft.config import TaskConfig
from lightrft.datasets.media import filled
from lightrft.datasets.sources import Row
from lightrft.types import Message

SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system"}
"""What ShareGPT rows call a speaker -> role."""


KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")
UNREAD = (
    "tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking", "name", "weight", "loss", "train",
)  # fmt: skip
"""Keys of a message that a chat template or a trainer elsewhere reads."""
UNREAD_OF_ROW = ("tools", "functions", "documents", "chat_template_kwargs")
"""Fields that are not read of a row that holds messages."""
SYSTEM = ("system", "system_prompt")
"""Fields with what comes before a conversation."""
ALPACA = "instruction"
"""The field that asks in rows of Alpaca (instruction, input, output, history)."""


class Example(NamedTuple):
    """What a row asks, and what is right."""

    prompt: str | list[Message]
    """The question, or a whole conversation that ends with it."""
    target: Any


Format = Callable[[Row, TaskConfig], Example]
"""Raises ValueError saying what the row lacks; whoever reads the rows adds where it stands."""


def field(row: Row, name: str, setting: str = "") -> Any:
    """The row's field, or one inside of it by a dotted name (reward_model.ground_truth, answers.0), also inside of JSON text.

    ValueError naming the fields that there are, and the setting to change, if it is absent or null.
    """
    if row.get(name) is not None:
        return row[name]
    if "." in name and name not in row:
        return _inside(row, name, setting)
    problem = f"field '{name}' is null" if name in row else f"no field '{name}'"
    cure = f" Set {setting}." if setting else ""
    raise ValueError(f"{problem}; the row has: {', '.join(row)}.{cure}")


def _inside(row: Row, name: str, setting: str) -> Any:
    found: Any = row
    for place, part in enumerate(name.split(".")):
        whole = ".".join(name.split(".")[:place])
        if isinstance(found, str):
            found = _as_json(found)
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and found.get(part) is not None:
            found = found[part]
        else:
            there = (
                f"it has: {', '.join(map(str, found))}" if isinstance(found, dict) else f"it is {found!r:.80}"
            )
            problem = (
                f"'{whole}' has no '{part}'; {there}."
                if whole
                else f"no field '{part}'; the row has: {', '.join(row)}."
            )
            raise ValueError(f"field '{name}': {problem}{f' Set {setting}.' if setting else ''}")
    return found


def _as_json(text: str) -> Any:
    """What a cell of JSON text holds; the text itself if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict)
            and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())
            for turn in value
        )
    )


def text_field(row: Row, name: str, setting: str = "") -> str:
    """A field that must hold text with something in it; blanks at its ends are part of it."""
    return _text(field(row, name, setting), name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"field '{name}' must be text, not {type(value).__name__}: {value!r:.80}")
    if not value.strip():
        raise ValueError(f"field '{name}' is empty.")
    return value


def asked(text: str, row: Row, name: str = "") -> str | list[Message]:
    """A question with all that its row says of it (see `complete`), and what belongs to the field `name` that it comes from (see
    `questioned`); the text alone if there is no more."""
    turns = complete(questioned(text, row, name), row, name)
    return turns if len(turns) > 1 or not isinstance(turns[0]["content"], str) else turns[0]["content"]


def questioned(text: str, row: Row, name: str) -> list[Message]:
    """The turns that a text asks with: one of the user; of Alpaca's field `instruction` with the row's `input` on a line of its own, behind
    the pairs of its `history`."""
    near, last = beside(row, name)
    if last != ALPACA:
        return [Message(role="user", content=text)]
    if not blank(near.get("input")):
        text = f"{text}\n{text_field(near, 'input')}"
    history = _history(near) or []
    if not isinstance(history, list) or not all(_is_pair(pair) for pair in history):
        raise ValueError(f"field 'history' must be a list of pairs of texts, not {history!r:.80}")
    past = [
        Message(role=role, content=said)
        for pair in history
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*past, Message(role="user", content=text)]


def complete(messages: list[Message], row: Row, name: str = "") -> list[Message]:
    """The turns that the field `name` asks, with the media of the row (see `filled`), behind its field `system` (see `led`); both may stand
    beside a field that lies inside of another. Media without a place come with the newest question where the row has `history`.
    ValueError for a field that is not read (UNREAD_OF_ROW)."""
    near = beside(row, name)[0]
    whole = row if near is row else {**row, **near}
    refuse_unread(whole, UNREAD_OF_ROW, "the row")
    return led(filled(messages, whole, newest=_history(whole) is not None), whole)


def only(row: Row, **media: Any) -> Row:
    """These media instead of the row's own columns, and what else `complete` looks at."""
    return {name: row[name] for name in (*SYSTEM, *UNREAD_OF_ROW) if name in row} | media


def beside(row: Row, name: str) -> tuple[Row, str]:
    """The fields among which the one of this name stands, which are those of `data` for data.instruction, and its own name there."""
    parent, dot, last = name.rpartition(".")
    if not dot:
        return row, name
    if name in row:  # a column whose name has a dot
        return {key.removeprefix(f"{parent}."): row[key] for key in row if key.startswith(f"{parent}.")}, last
    found = optional(row, parent)
    found = _as_json(found) if isinstance(found, str) else found
    return found if isinstance(found, dict) else {}, last


def optional(row: Row, name: str) -> Any:
    """What `field` finds, None if it is not there."""
    try:
        return field(row, name)
    except ValueError:
        return None


def blank(value: Any) -> bool:
    """Whether a field that may be left out holds nothing: null, a cell of white space, no number, an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value) or value in ([], {}, ())


def _history(row: Row) -> Any:
    """Earlier turns, also from JSON text; None if there are none."""
    found = row.get("history")
    found = _as_json(found) if isinstance(found, str) else found
    return None if blank(found) else found


def refuse_lost(row: Row, name: str, value: Any) -> None:
    """ValueError if something that stands beside the field `name` would not be asked with its `value`, a text or messages."""
    near, last = beside(row, name)
    if last == ALPACA and isinstance(value, str):
        return  # `questioned` asks them
    lost = ["history"] if _history(near) is not None else []
    lost += ["input"] if last == ALPACA and not blank(near.get("input")) else []
    if lost:
        what = f"the text in field '{name}'" if isinstance(value, str) else f"the messages in field '{name}'"
        raise ValueError(
            f"the row has a field '{lost[0]}', which is asked with a text in field '{ALPACA}' alone, not beside {what}. Leave it out, "
            "or make it part of what is asked."
        )
    refuse_two(row, name, value)


def refuse_two(row: Row, name: str, value: Any) -> None:
    """ValueError for a row with `prompt` and `instruction`, of which one alone is asked, unless the prompt says what the latter does."""
    near, last = beside(row, name)
    if last != "prompt" or blank(near.get(ALPACA)):
        return
    turns = value if isinstance(value, list) else [{"content": value}]
    said = "\n".join(str(t.get("content", t.get("value"))) for t in turns if isinstance(t, dict))
    for other in (ALPACA, "input"):
        if not blank(near.get(other)) and str(near[other]).strip() not in said:
            raise ValueError(
                f"the row has fields '{name}' and '{ALPACA}', and one of them alone is asked. Set "
                f"tasks.prompt_field={name.removesuffix(last)}{ALPACA}, or leave one out."
            )


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(text, str) and text for text in pair)
    )


def columns(row: Row, config: TaskConfig) -> Example:
    """One's own data: tasks.prompt_field with text or a list of messages, tasks.target_field with the answer.

    Messages have role and content, or from and value as in ShareGPT. A field `system` comes first, and with tasks.prompt_field=instruction
    the row's `input` and `history` are asked, too. For rows with pictures, clips or sounds see `datasets.media.filled`.
    """
    setting = "tasks.prompt_field"
    value = field(row, config.prompt_field, setting)
    if isinstance(value, str) and value.lstrip().startswith("[") and _is_conversation(_as_json(value)):
        value = _as_json(value)  # messages in a cell of a csv file
    refuse_lost(row, config.prompt_field, value)
    prompt: str | list[Message]
    if isinstance(value, list):
        prompt = complete(_messages(value, config.prompt_field), row, config.prompt_field)
    else:
        prompt = asked(_text(value, config.prompt_field), row, config.prompt_field)
    target = (
        field(row, config.target_field, "tasks.target_field, or leave it empty if there is none")
        if config.target_field
        else None
    )
    if target is not None and (target != target or (isinstance(target, str) and not target.strip())):
        raise ValueError(f"field '{config.target_field}' is empty; no answer could be right.")
    return Example(prompt, target)


def gsm8k(row: Row, config: TaskConfig) -> Example:
    """Fields `question` and `answer`; the target is the number after the solution's '####', without commas and $."""
    solution = text_field(row, "answer").strip()
    _, mark, number = solution.rpartition("####")
    number = re.sub(r"[,$\s]", "", number)
    if not mark or not number:
        raise ValueError(f"field 'answer' has nothing after '####': {solution[-60:]!r}")
    return Example(asked(text_field(row, "question").strip(), row), number)


def math(row: Row, config: TaskConfig) -> Example:
    """Fields `problem` and `answer`, the latter in LaTeX or a number."""
    return Example(asked(text_field(row, "problem").strip(), row), str(field(row, "answer")).strip())


def aime_archive(row: Row, config: TaskConfig) -> Example:
    """Fields `Question` and `Answer`, as the hub's archive of AIME problems has them."""
    return Example(asked(text_field(row, "Question").strip(), row), str(field(row, "Answer")).strip())


def svamp(row: Row, config: TaskConfig) -> Example:
    """A story in `Body`, what it asks in `Question`, and the number in `Answer` (145.0 becomes 145)."""
    body = text_field(row, "Body").strip()
    stop = "" if body.endswith((".", "!", "?")) else "."
    story = f"{body}{stop} {text_field(row, 'Question').strip()}"
    return Example(asked(story, row), _whole(float(field(row, "Answer"))))


def _whole(number: float) -> str:
    """A number in full: 1000000, not 1e+06; 145.0 is 145."""
    return str(int(number)) if number == int(number) else repr(number)


def _messages(value: list[Any], name: str) -> list[Message]:
    if not value:
        raise ValueError(f"field '{name}' is an empty list of messages.")
    value = messages_of(
        [_speaker(message) if isinstance(message, dict) else message for message in value], name
    )
    if not value:
        raise ValueError(f"field '{name}' has no message with something in it.")
    if value[-1]["role"] == "assistant":
        raise ValueError(
            f"field '{name}' ends with the assistant's own message; the policy is to write that one. Leave it out."
        )
    return [Message(role=m["role"], content=m["content"]) for m in value]


def messages_of(value: Any, name: str) -> list[Message]:
    """Messages with role and content; an empty system message is left out.

    ValueError for a role that chat templates do not know, a content with nothing in it, and a key that a template could read
    and nobody would see that it was dropped.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"field '{name}' must be a list of messages, not {value!r:.80}")
    found = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise ValueError(
                f"field '{name}': each message needs a role and a content that is not empty, not {turn!r:.80}"
            )
        role, content = turn["role"], turn.get("content")
        if role == "system" and content in (None, ""):
            continue
        refuse_unread(turn, UNREAD, f"field '{name}': a message")
        if role not in KNOWN_ROLES:
            raise ValueError(
                f"field '{name}': a message has the role {role!r:.40}; there are: {', '.join(KNOWN_ROLES)}."
            )
        if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
            content = joined(content)
            blank = isinstance(content, str) and not content.strip()
        else:
            blank = not isinstance(content, str) or not content.strip()
        if blank:
            raise ValueError(
                f"field '{name}': each message needs a role and a content that is not empty, not {turn!r:.80}"
            )
        found.append(Message(role=role, content=content))
    return found


def joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Parts that are all text as one text, which every chat template takes; others as they are."""
    if all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def led(messages: list[Message], row: Row) -> list[Message]:
    """The messages behind the row's field `system` or `system_prompt`, where it has one. ValueError for both, and if the messages begin with a
    system message, too."""
    found = [name for name in SYSTEM if not blank(row.get(name))]
    if not found:
        return messages
    if len(found) > 1:
        raise ValueError(f"the row has fields '{found[0]}' and '{found[1]}'. Leave one out.")
    if messages and messages[0]["role"] == "system":
        raise ValueError(
            f"the row has a system message among its messages, and a field '{found[0]}' too. Leave one out."
        )
    return [Message(role="system", content=text_field(row, found[0])), *messages]


def refuse_unread(holder: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    """ValueError if a row or message holds one of `names` with something in it that would change what is asked or learned."""
    for name in names:
        entry = holder.get(name)
        if blank(_as_json(entry) if isinstance(entry, str) else entry):
            continue
        if name in ("loss", "train") and entry is True:
            continue
        raise ValueError(f"{what} has '{name}', which is not supported. Leave it out.")


def _speaker(message: dict[str, Any]) -> dict[str, Any]:
    """A message with role and content, where it has from and value instead."""
    if "from" not in message or "role" in message:
        return message
    speaker = message["from"]
    role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {**message, "role": role, "content": message.get("value")}


FORMATS: dict[str, Format] = {
    "columns": columns,
    "gsm8k": gsm8k,
    "math": math,
    "aime_archive": aime_archive,
    "svamp": svamp,
}
