"""The built-in rewards by name. Imports no torch: the processes that run rewards start with this."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial

from lightrft.config.sandbox import SandboxConfig
from lightrft.rewards.code import PassesTests, ShareOfTests
from lightrft.rewards.confidence import confident_math
from lightrft.rewards.digits import digit, digit_second, two_digits, two_digits_second
from lightrft.rewards.drawn import compressible, drawn_shapes, drawn_shapes_share, incompressible
from lightrft.rewards.environment import environment, turns
from lightrft.rewards.function import Answer, RewardFunction, as_reward, each, values_of
from lightrft.rewards.gym import reasoning_gym
from lightrft.rewards.instructions import (
    instructions,
    instructions_loose,
    instructions_loose_share,
    instructions_share,
)
from lightrft.rewards.math import boxed_math, choice_or_math, last_number, math
from lightrft.rewards.ocr import PACKAGES, ocr
from lightrft.rewards.qa import hotpot_f1, squad_exact, squad_f1
from lightrft.rewards.refusal import refuses_rightly
from lightrft.rewards.text import (
    answer_tags,
    choice,
    choice_or_open,
    choice_words,
    exact,
    json_fields,
    json_keys,
    json_object,
    json_only,
    repetition,
    same_kind,
    tags,
    thousand_tokens,
    words,
)
from lightrft.rewards.vote import majority, majority_right
from lightrft.utils.extras import install_command
from lightrft.utils.imports import resolve
from lightrft.workers.boxes import USUAL


def check_installed(name: str) -> None:
    """RuntimeError, with the command that installs it, where a package is absent that the reward called `name` cannot do without."""
    extra, packages = NEEDS.get(name, ("", ()))
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(f"reward '{name}': {package} is not installed: {install_command(extra)}.")


def load_reward(name: str) -> RewardFunction:
    """The reward called `name`, or the one an import path names. ValueError as from `resolve`, RuntimeError as from `check_installed`."""
    check_installed(name)
    return as_reward(resolve(REWARDS, name, "reward"), name)


def load_values(name: str, sandbox: SandboxConfig = USUAL) -> Callable[[Sequence[Answer]], list[float]]:
    """The reward called `name`, with its values checked: what a worker runs. ValueError as from `resolve`."""
    function = each(RUNS_PROGRAMS[name](sandbox)) if name in RUNS_PROGRAMS else load_reward(name)
    return partial(values_of, function)


NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {"ocr": ("ocr", PACKAGES)}
"""Reward -> the extra and the packages without which it cannot read anything."""
JUDGE = "judge"
"""The reward that a model gives which is asked for it in words."""
RUNS_PROGRAMS: dict[str, Callable[[SandboxConfig], Callable[..., float]]] = {
    "tests": PassesTests,
    "tests_share": ShareOfTests,
}
"""Rewards that run what the policy wrote, made with the settings of the sandbox; each response is a call with a time limit of its own."""
REWARDS: dict[str, RewardFunction] = {
    "answer_tags": each(answer_tags),
    "boxed_math": each(boxed_math),
    "choice": each(choice),
    "choice_or_math": each(choice_or_math),
    "choice_or_open": each(choice_or_open),
    "choice_words": each(choice_words),
    "compressible": compressible,
    "confident_math": each(confident_math),
    "digit": digit,
    "digit_second": digit_second,
    "drawn_shapes": drawn_shapes,
    "drawn_shapes_share": drawn_shapes_share,
    "environment": each(environment),
    "turns": each(turns),
    "exact": each(exact),
    "format": each(tags),
    "hotpot_f1": each(hotpot_f1),
    "incompressible": incompressible,
    "instructions": each(instructions),
    "instructions_loose": each(instructions_loose),
    "instructions_loose_share": each(instructions_loose_share),
    "instructions_share": each(instructions_share),
    "json": each(json_object),
    "json_fields": each(json_fields),
    "json_keys": each(json_keys),
    "json_only": each(json_only),
    "length": each(thousand_tokens),
    "majority": majority,
    "majority_right": majority_right,
    "math": each(math),
    "number": each(last_number),
    "ocr": ocr,
    "reasoning_gym": each(reasoning_gym),
    "refuses_rightly": each(refuses_rightly),
    "repetition": each(repetition),
    "same_kind": each(same_kind),
    "squad_exact": each(squad_exact),
    "squad_f1": each(squad_f1),
    "two_digits": two_digits,
    "two_digits_second": two_digits_second,
    "words": each(words),
    **{name: each(make(USUAL)) for name, make in RUNS_PROGRAMS.items()},
}
