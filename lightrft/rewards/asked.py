"""What rewards ask of a response, known before any response is there: a reward of pictures finds none in a text, and the other way round."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

from lightrft.rewards.function import MADE, PerAnswer
from lightrft.rewards.table import REWARDS
from lightrft.utils.paths import expanded

TEXT = "answer"
"""The view of what was written."""
VOTES = ("majority", "majority_right")
"""Rewards of a group that read its texts."""
ONLY = (TEXT, *MADE)
"""Views of which a kind of model makes some and not others."""


def check_views(names: Iterable[str], makes: Iterable[str], path: str) -> None:
    """ValueError for a reward, among these names and import paths, that asks for what responses of `model.path=path` never hold.

    `makes`: the views of ONLY that its responses have.
    """
    made = [view for view in ONLY if view in set(makes)]
    for name in names:
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
    """Parameters by name of the function of one response that a reward is; none where that cannot be told without running a user's code.

    A user's file is read and not run: rewards may load much, and do so in processes of their own.
    """
    if name in REWARDS:
        function = REWARDS[name]
        return tuple(function.parameters) if isinstance(function, PerAnswer) else ()
    place, _, attribute = name.rpartition(":")
    file = _file(place)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if file is not None else None
    except (OSError, ValueError, SyntaxError):
        return ()  # whoever loads it says what is wrong
    for node in () if tree is None else tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return tuple(argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
    return ()


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
