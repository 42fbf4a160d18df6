"""What the function of a reward asks for, by the names of its parameters. Nothing is called, and no torch imported."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from lightrft.rewards.views import MADE, VIEWS, response

LISTS = ("prompts", "completions", "completion_ids")
"""Parameters of a reward in TRL's form, which gets lists with an entry for each response."""
BY_TRL = ("trainer_state", "log_extra", "log_metric")
"""Parameters that TRL's trainer fills with parts of its own."""
FOREIGN: Mapping[str, str] = {
    "completion": "answer",
    "generation": "answer",
    "output": "answer",
    "response": "answer",
    "solution_str": "answer",
    "generations": "answers",
    "outputs": "answers",
    "queries": "answers",
    "responses": "answers",
}
"""What the text of a response, or of several, is called elsewhere -> its name here."""
Form = Literal["one", "all", "lists"]
"""Called for each response, with all responses of a task, or with lists as TRL does."""


@dataclass(frozen=True)
class Asked:
    """What a reward's function asks for."""

    form: Form
    views: tuple[str, ...] = ()
    """Names of VIEWS; with `lists` of LISTS."""
    required: tuple[str, ...] = ()
    """Fields of the row that it cannot be called without."""
    optional: tuple[str, ...] = ()
    """Fields of the row that are given to it where the row has them."""
    everything: bool = False
    """Whether it gets all fields of the row: it takes any keyword."""


def asked_of(signature: inspect.Signature, name: str) -> Asked:
    """What a function with this signature asks for. ValueError, with the form to write, for one that could not be called rightly."""
    parameters = list(signature.parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = {p.name for p in named}
    rest = _takes_any(parameters)
    by_place = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
    hidden = [p.name for p in by_place if p.default is p.empty]
    if known := [p.name for p in by_place if p.name in (*VIEWS, *LISTS)]:
        _refuse_place(known[0], name)
    if names & set(LISTS):
        return _in_lists(named, name, rest)
    if names & set(VIEWS):
        return asked_of_one(signature, name)
    _refuse_foreign([*by_place, *named], name)
    first = next((p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.KEYWORD_ONLY)), None)
    if first is None or len(hidden) > 1:
        raise ValueError(f"reward '{name}' cannot be called with the responses of a task. {_form()}")
    required, _ = _fields([p for p in named if p.name != first.name])
    return Asked("all", (), required)


def asked_of_one(signature: inspect.Signature, name: str) -> Asked:
    """What a function that is called for each response asks for. ValueError for a parameter that cannot be filled by name."""
    parameters = list(signature.parameters.values())
    hidden = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if hidden:
        _refuse_place(hidden[0], name)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    rest = _takes_any(parameters)
    views = tuple(p.name for p in named if p.name in VIEWS)
    if rest:
        views = (*views, *(view for view in VIEWS if view not in MADE and view not in views))
    return Asked("one", views, *_fields([p for p in named if p.name not in VIEWS]))


def _refuse_place(parameter: str, name: str) -> NoReturn:
    """ValueError for a parameter that has no name to be filled by."""
    raise ValueError(
        f"reward '{name}' takes '{parameter}' by place alone; parameters are filled by name. Remove the / from its parameters."
    )


def _takes_any(parameters: list[inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def _in_lists(named: list[inspect.Parameter], name: str, rest: bool) -> Asked:
    """TRL's form, whose functions get every field of the row, and are told texts from conversations by the field `prompt`."""
    parts = [p.name for p in named if p.name in BY_TRL and p.default is p.empty]
    if parts:
        raise ValueError(
            f"reward '{name}' asks for '{parts[0]}', a part of TRL's trainer. Leave it out, or give it a default. {_form()}"
        )
    fields = [p for p in named if p.name not in (*LISTS, *BY_TRL)]
    required, optional = _fields(fields)
    views = tuple(p.name for p in named if p.name in LISTS)
    return Asked("lists", views, ("prompt", *required), optional, everything=rest)


def _refuse_foreign(named: list[inspect.Parameter], name: str) -> None:
    """ValueError for a function that asks for a response by a name that it has elsewhere: here it would get all of them at once."""
    found = next((p.name for p in named if p.name in FOREIGN and p.default is p.empty), None)
    if found is not None:
        raise ValueError(
            f"reward '{name}' asks for '{found}', which is called '{FOREIGN[found]}' here. {_form()}"
        )


def _form() -> str:
    return (
        "Let it take a parameter `answer`, the response's text, and what else it needs of: "
        f"{', '.join(VIEWS[1:])}, or a field of the row, to be called for each response, e.g. def score(answer, target); or one parameter, "
        "all responses of a task, e.g. def score(answers)."
    )


def _fields(parameters: list[inspect.Parameter]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields of the row among parameters: needed ones, and those with a default."""
    needed = tuple(p.name for p in parameters if p.default is p.empty)
    return needed, tuple(p.name for p in parameters if p.default is not p.empty)


def refuse_async(name: str) -> NoReturn:
    """ValueError for a function that nobody waits for."""
    raise ValueError(
        f"reward '{name}' is an async function. Make it a plain one; inside it, asyncio.run(...) waits for many requests at once."
    )


def refuse_lacking(asked: Asked, name: str, where: str, has: Collection[str]) -> None:
    """ValueError for a row that lacks a field which the function needs."""
    lacking = next((field for field in asked.required if field not in has), None)
    if lacking is None:
        return
    if asked.form == "lists" and lacking == "prompt":
        raise ValueError(
            f"reward '{name}' is in TRL's form (prompts, completions), which tells texts from conversations by the row's field `prompt`, and "
            f"{where} has none; it has: {', '.join(has) or 'no fields'}. {_form()}"
        )
    raise ValueError(
        f"reward '{name}' asks for '{lacking}', and {where} has no such field; it has: {', '.join(has) or 'no fields'}. Call the parameter "
        f"as a field is called, or {', '.join(VIEWS)}."
    )


def in_lists(asked: Asked, answers: Any) -> dict[str, list[Any]]:
    """The arguments of a function in TRL's form: texts where the row's prompt is a text, conversations where it is a list of messages."""
    fields = {name for answer in answers for name in answer.prompt.columns} - {"prompt", "completion", *LISTS}
    wanted = fields if asked.everything else fields & {*asked.required, *asked.optional}
    found: dict[str, list[Any]] = {
        "prompts": [answer.prompt.columns["prompt"] for answer in answers],
        "completions": [
            answer.answer if isinstance(answer.prompt.columns["prompt"], str) else response(answer)
            for answer in answers
        ],
        "completion_ids": [answer.token_ids for answer in answers],
    }
    if not asked.everything:
        found = {name: found[name] for name in asked.views}
    return found | {name: [answer.prompt.columns.get(name) for answer in answers] for name in sorted(wanted)}
