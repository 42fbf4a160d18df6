"""LightRFT from Python: the functions behind `lightrft.train`, `lightrft.sft`, `lightrft.reward`, `lightrft.dpo` and `lightrft.evaluate`.

They take what the command line takes, and objects of the program besides: rows, tasks, reward functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import lightrft
from lightrft.api.process import as_guest, one_line
from lightrft.api.settings import Given, add_data, add_held_out, add_rewards, loaded, scored_by
from lightrft.build.tasks import check_names
from lightrft.config import Config, DPOConfig, EvaluateConfig, RewardTrainingConfig, RunConfig, SFTConfig
from lightrft.rewards.asked import check_named
from lightrft.runs.layout import RunFolder
from lightrft.utils.paths import expanded

Layers = str | Sequence[str]
"""Names of shipped layers, or paths of YAML files, the later ones over the earlier ones."""


@one_line
def train(
    config: Config | None = None,
    resume: Path | str | None = None,
    *,
    model: Any = None,
    data: Any = None,
    rewards: Any = None,
    algorithm: Any = None,
    evaluate: Any = None,
    layers: Layers = (),
    **settings: Any,
) -> lightrft.Run:
    """Reinforcement learning, in this process; the finished run.

    model: path or name, or a dict of options of section model.
    data: rows (a list of dicts or texts, or a datasets.Dataset), a Task, the name of a task or a file, or a dict of tasks with weights.
    rewards: a function, a name, a list of them, or a dict of them with weights; or a dict of options of section rewards.
    algorithm: a layer such as "grpo", or a dict of options of section algorithm.
    evaluate: rows, a Task or names to measure on; False for no evaluation; or a dict of options of section evaluate, with the key data.
    settings: any other option: steps=30, rollout={"group_size": 8}, or **{"rollout.group_size": 8}. A function is a value where an import
    path is.
    config: settings to begin with; without anything else it is the whole run.
    resume: folder of a run to go on with.

    ValueError for a mistake, of one sentence with option, value and cure, before any weight loads; RuntimeError where another run goes on
    in this process; Stopped, after saving, if SIGTERM or Ctrl-C came.
    """
    given = Given("lightrft.train")
    words = _common(given, model, algorithm, layers, settings)
    add_data(given, data, evaluate, Config)
    if rewards is not None:
        add_rewards(given, rewards)
    return _run("train", Config, given, config, words, resume)


@one_line
def evaluate(
    config: Config | None = None,
    *,
    model: Any = None,
    data: Any = None,
    rewards: Any = None,
    evaluate: Mapping[str, Any] | EvaluateConfig | None = None,
    layers: Layers = (),
    **settings: Any,
) -> dict[str, Any]:
    """Scores a model, in this process; the estimates with their intervals, by task.

    data: what to ask, as in `train`.
    rewards: what scores the responses; left out: the task's own.
    evaluate: options of section evaluate, e.g. {"samples": 8}.

    Everything else, and errors, as of `train`.
    """
    given = Given("lightrft.evaluate")
    _check_config(given, config, Config)
    words = _common(given, model, None, layers, settings)
    if data is not None:
        add_held_out(given, scored_by(data, rewards), Config, "data")
    if evaluate is not None:
        given.put("evaluate", evaluate)
    if rewards is not None:
        add_rewards(given, rewards)
    whole = config if config is not None and not given.tree else None
    asked = whole or loaded(Config, given, config=config, named_layers=words, resume=None)
    if not asked.tasks.evaluate:
        raise ValueError(
            "lightrft.evaluate: there is nothing to ask. Give data=ROWS, or the name of a task: data='gsm8k'"
        )
    _check_names(asked)
    score = import_module("lightrft.commands.evaluate").evaluate
    found: dict[str, Any] = as_guest(partial(score, asked), given.objects)
    return found


def _common(
    given: Given, model: Any, algorithm: Any, layers: Layers, settings: Mapping[str, Any]
) -> list[str]:
    """Puts what every function takes; the names of layers."""
    words = [layers] if isinstance(layers, str) else list(layers)
    if model is not None:
        is_section = isinstance(model, Mapping) or hasattr(model, "path")
        if not is_section and not isinstance(model, str | Path):
            raise ValueError(
                f"{given.called}: model is a {type(model).__name__}. Save it with save_pretrained(FOLDER), and its tokenizer too, and give "
                "the folder: model='FOLDER'"
            )
        given.put("model" if is_section else "model.path", model)
    if isinstance(algorithm, str):
        words.append(algorithm)
    elif isinstance(algorithm, list | tuple):
        words += algorithm
    elif algorithm is not None:
        given.put("algorithm", algorithm)
    for name, value in settings.items():
        given.put(name, value)
    return words


def _check_names(config: RunConfig) -> None:
    """ValueError for a task or reward that is not there, before torch is imported, which takes seconds."""
    check_names(config)
    if isinstance(config, Config):
        check_named(config)


def _check_config(given: Given, config: Any, cls: type[Any]) -> None:
    """ValueError for what is not the function's own class of settings."""
    if config is None or isinstance(config, cls):
        return
    if isinstance(config, Mapping):
        raise ValueError(
            f"{given.called}: config is a dict. Give its options by name, as {given.called}(**options), or give a {cls.__name__}."
        )
    raise ValueError(
        f"{given.called}: config is a {type(config).__name__}. Give a {cls.__name__}; layers and files are named as layers='grpo' or "
        "layers=['grpo', 'mine.yaml']."
    )


def _run(
    command: str,
    cls: type[Any],
    given: Given,
    config: RunConfig | None,
    words: list[str],
    resume: Path | str | None,
) -> lightrft.Run:
    """A run by the function behind a command, and then its reader."""
    _check_config(given, config, cls)
    run = expanded(str(resume), "resume") if resume is not None else None
    if run is not None and not RunFolder(run).is_run:
        raise ValueError(f"{given.called}: resume={run} is not the folder of a run.")
    whole = config if config is not None and not (given.tree or words) else None
    asked = whole or loaded(cls, given, config=config, named_layers=words, resume=None if config else run)
    _check_names(asked)
    from lightrft.runs.reader import Run

    start = import_module(f"lightrft.commands.{command}").train
    return Run(as_guest(partial(start, asked, run), given.objects))


def _offline(command: str, cls: type[RunConfig], about: str) -> Callable[..., lightrft.Run]:
    """The function of a command that learns from given responses."""

    @one_line
    def learn(
        config: RunConfig | None = None,
        resume: Path | str | None = None,
        *,
        model: Any = None,
        data: Any = None,
        evaluate: Any = None,
        layers: Layers = (),
        **settings: Any,
    ) -> lightrft.Run:
        given = Given(f"lightrft.{command}")
        words = _common(given, model, None, layers, settings)
        add_data(given, data, evaluate, cls)
        return _run(command, cls, given, config, words, resume)

    learn.__name__ = learn.__qualname__ = command
    learn.__doc__ = f"{about}, in this process; the finished run. Arguments and errors as of `train`; config is a {cls.__name__}."
    return learn


sft = _offline("sft", SFTConfig, "Supervised fine-tuning on given conversations")
reward = _offline("reward", RewardTrainingConfig, "Training of a reward model from compared responses")
dpo = _offline("dpo", DPOConfig, "Training of a policy on compared responses")
