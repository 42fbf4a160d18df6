"""What rewards ask of a response, known before any response is there: a reward of pictures finds none in a text, and the other way round."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightrft.config import Config
from lightrft.config.rewards import rewards_of
from lightrft.rewards.function import PerAnswer
from lightrft.rewards.signature import Asked, asked_of, asked_of_one, refuse_async, refuse_lacking
from lightrft.rewards.table import JUDGE, REWARDS
from lightrft.rewards.views import MADE
from lightrft.utils.imports import load_file, resolve
from lightrft.utils.inline import find, is_inline
from lightrft.utils.paths import expanded

if TYPE_CHECKING:
    from lightrft.types import Record

TEXT = "answer"
"""The view of what was written."""
VOTES = ("majority", "majority_right")
"""Rewards of a group that read its texts."""
ONLY = (TEXT, *MADE)
"""Views of which a kind of model makes some and not others."""


def check_named(config: Config) -> None:
    """ValueError for a reward of the settings that is not there, or whose function could not be called rightly.

    Said before torch is imported. Of a user's code only the text is read.
    """
    given = dict.fromkeys([JUDGE, *config.reward_model.paths, *config.remote.urls])
    tasks = config.tasks.train or config.tasks.evaluate
    chosen = [rewards_of(config.rewards.functions, task, tasks) for task in tasks]
    for name in sorted(
        {name for weights in (*chosen, config.tasks.rewards) for name in weights} - given.keys()
    ):
        if is_inline(
            name
        ):  # what a resume from the command line lacks is told of all settings at once (commands/claim.py)
            continue
        if ":" not in name:
            resolve({**REWARDS, **given}, name, "reward")
        place = name.rpartition(":")[0]
        if place.endswith(".py") and not expanded(place, "file").is_file():
            load_file(place)  # says where it was looked for
        asked(name)


def check_views(names: Iterable[str], makes: Iterable[str], path: str, remote: Container[str] = ()) -> None:
    """ValueError for a reward, among these names and import paths, that asks for what responses of `model.path=path` never hold.

    `makes`: the views of ONLY that its responses have. `remote`: names of rewards that servers give, which are sent what was written alone.
    """
    made = [view for view in ONLY if view in set(makes)]
    for name in names:
        if TEXT not in made and name in remote:
            raise ValueError(
                f"remote.urls: the reward '{name}' comes from a server, which is sent what a response says, and one of model.path={path} holds "
                f"{' and '.join(made)}. Take a reward that asks for `{made[-1]}`, or a reward model that sees: reward_model.paths."
            )
        if TEXT not in made and name in VOTES:
            raise ValueError(
                f"rewards.functions: the reward '{name}' counts equal texts, and a response of model.path={path} holds {' and '.join(made)}. Take a "
                f"reward that asks for `{made[-1]}`."
            )
        lacking = [view for view in ONLY if view in parameters(name) and view not in made]
        if lacking:
            what = " and ".join(made)
            raise ValueError(
                f"rewards.functions: the reward '{name}' asks for `{lacking[0]}`, and a response of model.path={path} holds {what}. Take a reward "
                f"that asks for `{made[-1]}`, or a model whose responses hold `{lacking[0]}`."
            )


def parameters(name: str) -> tuple[str, ...]:
    """Parameters by name of the function of one response that a reward is; none where that cannot be told without running a user's code."""
    if name in REWARDS and not isinstance(REWARDS[name], PerAnswer):
        return ()
    signature = _signature(name)
    if signature is None:
        return ()
    return tuple(
        p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def asked(name: str) -> Asked | None:
    """What the reward of this name or import path asks for; None where that cannot be told without running a user's code.

    ValueError for a function that could not be called rightly. A user's file is read and not run: rewards may load much, and do so in
    processes of their own.
    """
    signature = _signature(name)
    if signature is None:
        return None if ":" in name else Asked("all")  # given by a model
    return (asked_of_one if _is_lifted(name) else asked_of)(signature, name)


def wanted_fields(records: Sequence[Record], names: Iterable[str]) -> frozenset[str] | None:
    """Fields of the rows that any of these rewards asks for; None: all of them.

    ValueError for the first record without a field that a reward cannot be called without.
    """
    names = list(names)
    for name in names:
        needs = asked(name)
        if needs is not None and needs.required:
            for record in records:
                refuse_lacking(needs, name, record.id, record.columns)
    return named_fields(names)


def named_fields(names: Iterable[str]) -> frozenset[str] | None:
    """Fields of a row that these rewards ask for by name; None if one of them takes all that there are, or is not known."""
    found = set[str]()
    for name in names:
        needs = asked(name)
        if needs is None or needs.everything:
            return None
        found |= {*needs.required, *needs.optional}
    return frozenset(found)


def _is_lifted(name: str) -> bool:
    """Whether the function of a reward is called for each response because somebody says so."""
    if name in REWARDS or is_inline(name):
        return isinstance(REWARDS[name] if name in REWARDS else find(name, "reward"), PerAnswer)
    node = _defined(name)
    return node is not None and any(_is_each(decorator) for decorator in node.decorator_list)


def _signature(name: str) -> inspect.Signature | None:
    if name in REWARDS or is_inline(name):
        function = REWARDS[name] if name in REWARDS else find(name, "reward")
        if not callable(function):
            raise ValueError(f"reward '{name}' is a {type(function).__name__}, not a function.")
        return inspect.signature(function.function if isinstance(function, PerAnswer) else function)
    node = _defined(name)
    if isinstance(node, ast.AsyncFunctionDef):
        refuse_async(name)
    if node is None or not all(_is_each(decorator) for decorator in node.decorator_list):
        return None
    return inspect.Signature(list(_parameters(node.args)))


def _defined(name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The text of the function that an import path names; None where that file defines none of this name."""
    place, _, attribute = name.rpartition(":")
    file = _file(place)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if file is not None else None
    except (OSError, ValueError, SyntaxError):
        return None  # whoever loads it says what is wrong
    for node in () if tree is None else tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == attribute:
            return node
    return None


def _is_each(decorator: ast.expr) -> bool:
    return ast.unparse(decorator).rpartition(".")[2] == "each"


def _parameters(arguments: ast.arguments) -> Iterator[inspect.Parameter]:
    """The parameters of a function that is text. A default is there or not; what it is, is not known."""
    plain = [*arguments.posonlyargs, *arguments.args]
    without = len(plain) - len(arguments.defaults)
    for place, argument in enumerate(plain):
        kind = (
            inspect.Parameter.POSITIONAL_ONLY
            if place < len(arguments.posonlyargs)
            else inspect.Parameter.POSITIONAL_OR_KEYWORD
        )
        yield inspect.Parameter(
            argument.arg, kind, default=inspect.Parameter.empty if place < without else None
        )
    if arguments.vararg:
        yield inspect.Parameter(arguments.vararg.arg, inspect.Parameter.VAR_POSITIONAL)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        empty = inspect.Parameter.empty if default is None else None
        yield inspect.Parameter(argument.arg, inspect.Parameter.KEYWORD_ONLY, default=empty)
    if arguments.kwarg:
        yield inspect.Parameter(arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD)


def _file(place: str) -> Path | None:
    """The Python file of a file's path or of a module's name; None of one that is not found."""
    if place.endswith(".py"):
        return expanded(place, "file")
    for folder in (
        sys.path if place else ()
    ):  # importlib.util.find_spec would run the packages around a module
        whole = Path(folder).joinpath(*place.split("."))
        for file in (whole / "__init__.py", whole.with_name(f"{whole.name}.py")):
            if file.is_file():
                return file
    return None
