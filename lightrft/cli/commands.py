"""The commands: what each does with the words behind it. torch and transformers are imported inside those that need them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lightrft import __version__
from lightrft.cli import help as helping
from lightrft.cli.finished import chat, push
from lightrft.cli.loading import load, load_as, load_run, run_folder
from lightrft.cli.options import (
    CompletionOptions,
    DoctorOptions,
    EvaluateOptions,
    ExportOptions,
    JudgeOptions,
    PlanOptions,
    ReplayOptions,
    ServeOptions,
    ServeRewardsOptions,
    TrainOptions,
    ViewOptions,
    parsed,
    taken,
)
from lightrft.commands.init import init
from lightrft.commands.launch import Launch, start
from lightrft.config import RUNS, Config, check_backend, layers
from lightrft.config.suites import tasks_of
from lightrft.runs.folder import check_new, evaluation_folder, new_run
from lightrft.runs.layout import RunFolder
from lightrft.utils.imports import without_code
from lightrft.utils.paths import expanded


@dataclass(frozen=True)
class AskedRun:
    """What the words behind `train`, `sft`, `reward` or `dpo` ask for."""

    command: str
    config: Any
    """Settings, of the class that RUNS has for the command."""
    resume: Path | None
    """The folder of the run to go on with."""
    launch: Launch
    words: list[str]
    """Layers and flags, with --resume: what the processes of the run are started with."""

    @classmethod
    def of(cls, command: str, args: Sequence[str]) -> AskedRun:
        """Reads the words. ValueError for a mistake in them; SystemExit after help was asked for and printed."""
        own, rest = taken(TrainOptions, command, args)
        config, run = load_run(RUNS[command], command, own.resume, rest)
        words = ["--resume", own.resume, *rest] if own.resume else list(rest)
        return cls(command, config, run, Launch(own.gpus, own.processes, own.max_restarts), words)


def train(args: Sequence[str]) -> int:
    """Train a model by reinforcement learning: lightrft train LAYERS... FLAGS, or --resume RUN."""
    return run_training("train", args, "nothing to train. Try: lightrft train tiny")


def sft(args: Sequence[str]) -> int:
    """Supervised fine-tuning on given conversations: lightrft sft LAYERS... FLAGS, or --resume RUN."""
    return run_training("sft", args, "nothing to learn from. Try: lightrft sft sft_tiny")


def reward(args: Sequence[str]) -> int:
    """Train a reward model from comparisons of responses: lightrft reward LAYERS... FLAGS, or --resume RUN."""
    return run_training("reward", args, "nothing to compare. Try: lightrft reward reward_tiny")


def dpo(args: Sequence[str]) -> int:
    """Train a policy on pairs, rankings or labels of given responses: lightrft dpo LAYERS... FLAGS, or --resume RUN."""
    return run_training("dpo", args, "nothing to prefer. Try: lightrft dpo dpo_tiny")


def run_training(command: str, args: Sequence[str], without_words: str) -> int:
    """Runs a command of RUNS, in this process or in those that its words ask for. ValueError with `without_words` if there are none."""
    if not args:
        raise ValueError(f"{without_words}. All layers and sections of options: lightrft {command} --help")
    from lightrft.build.tasks import check_names

    asked = AskedRun.of(command, args)
    check_names(asked.config)
    if isinstance(asked.config, Config):
        from lightrft.rewards.asked import check_named

        check_named(asked.config)
    if asked.resume is None and asked.config.run and "WORLD_SIZE" not in os.environ:
        check_new(
            expanded(asked.config.run, "run"), command
        )  # as it will be again, when torch is imported, which takes seconds
    if asked.launch.is_wanted:
        return launch_run(asked)
    import_module(f"lightrft.commands.{command}").train(asked.config, asked.resume)
    return 0


def launch_run(asked: AskedRun) -> int:
    """Starts the processes of a training run, whose folder is decided here, once for all."""
    launch = asked.launch
    config = launch.placed(asked.config)
    check_backend(config.strategy, launch.size)
    limit = config.strategy.timeout_seconds
    flags = ["--strategy.device", config.strategy.device]
    if asked.resume is not None:
        return start(launch, [asked.command, *asked.words, *flags], timeout_seconds=limit)
    run = new_run(config, asked.command)
    settings = RunFolder(run).settings_digest
    return start(launch, [asked.command, "--resume", str(run)], timeout_seconds=limit, new_run=settings)


@dataclass(frozen=True)
class AskedEvaluation:
    """What the words behind `evaluate` ask for."""

    task: str
    config: Config
    check: bool
    """Whether the task's gold answers are tried instead of a model."""
    launch: Launch
    words: list[str]
    """Layers and flags."""

    @classmethod
    def of(cls, args: Sequence[str]) -> AskedEvaluation:
        """Reads the words. ValueError for a mistake in them; SystemExit after help was asked for and printed."""
        own, rest = taken(EvaluateOptions, "evaluate", args)
        if rest and rest[0] in ("-h", "--help", "--help-all"):
            rest = ["TASK", *rest]
        if not rest or rest[0].startswith("-"):
            raise ValueError(
                "which task? lightrft evaluate TASK --model MODEL, e.g. lightrft evaluate gsm8k --model runs/demo/model"
            )
        task, *words = rest
        named, flags = layers.split(words)
        asked = [word for name in tasks_of(task) for word in (name, "1")]
        config = load("evaluate", [*named, "--tasks.evaluate", *asked, *flags])
        missing = next((name for name in tasks_of(task) if name not in config.tasks.evaluate), None)
        if missing is not None:
            raise ValueError(
                f"lightrft evaluate {task}, but tasks.evaluate names only {', '.join(config.tasks.evaluate)}. Leave the flag out, or name "
                f"{missing} there too, e.g. --tasks.evaluate {missing} 1 {' '.join(f'{name} {weight:g}' for name, weight in config.tasks.evaluate.items())}"
            )
        return cls(task, config, own.check, Launch(own.gpus, own.processes), words)


def evaluate(args: Sequence[str]) -> int:
    """Score a model on tasks: lightrft evaluate TASK[,TASK...] [LAYERS...] FLAGS, or suite:NAME; --check proves the task's gold answers."""
    asked = AskedEvaluation.of(args)
    if asked.launch.is_wanted and not asked.check:
        config = asked.launch.placed(asked.config)
        own = ["--strategy.device", config.strategy.device, "--run", str(evaluation_folder(config))]
        words = ["evaluate", asked.task, *asked.words, *own]
        return start(asked.launch, words, timeout_seconds=config.strategy.timeout_seconds)
    from lightrft.commands import evaluate as command

    if asked.check:
        return max(command.check_task(asked.config, name) for name in tasks_of(asked.task))
    command.evaluate(asked.config)
    return 0


def judge(args: Sequence[str]) -> int:
    """Say how often rewards prefer the better response of given pairs: lightrft judge FILE [LAYERS...] FLAGS."""
    own, rest = taken(JudgeOptions, "judge", args)
    if rest and rest[0] in ("-h", "--help", "--help-all"):
        rest = ["FILE", *rest]
    if not rest or rest[0].startswith("-"):
        raise ValueError(
            "which comparisons? lightrft judge FILE --rewards.functions NAME 1, e.g. lightrft judge pairs.jsonl --reward_model.paths rated "
            "RUN/model --rewards.functions rated 1"
        )
    file, *words = rest
    named, flags = layers.split(words)
    place = ["--tasks.train", "file", "1", "--tasks.train-file", file]
    config = load("judge", [*named, *place, *flags])
    from lightrft.commands import judge as command

    return command.judge(config, as_json=own.json, out=own.out)


def serve(args: Sequence[str]) -> int:
    """Start a vLLM server that generates rollouts for a training run: lightrft serve LAYERS... FLAGS --port 8000."""
    if not args:
        raise ValueError(
            "which model? Give the layers and flags of the run, e.g. lightrft serve demo vllm_server --port 8000"
        )
    own, rest = taken(ServeOptions, "serve", args)
    config = load("serve", rest)
    from lightrft.commands import serve as command

    return command.serve(config, own.host, own.port)


def serve_rewards(args: Sequence[str]) -> int:
    """Put the rewards of these settings behind HTTP for training runs elsewhere: lightrft serve-rewards LAYERS... FLAGS."""
    if not args:
        raise ValueError(
            "which rewards? For example: lightrft serve-rewards --rewards.functions math 1 --port 8100"
        )
    own, rest = taken(ServeRewardsOptions, "serve-rewards", args)
    config = load("serve-rewards", rest)
    from lightrft.commands import serve_rewards as command

    return command.serve_rewards(config, own, own.batch_ms)


def check(args: Sequence[str]) -> int:
    """Pre-flight check: token counts, a rendered prompt, rewards, engine against trainer, time and memory."""
    config = load("check", args)
    from lightrft.commands.check import preflight

    return preflight(config)


def _code(is_allowed: bool, command: str) -> AbstractContextManager[None]:
    """Commands that only look at a run or at settings run no code that these name, unless they are told to."""
    return (
        nullcontext()
        if is_allowed
        else without_code(
            f"`lightrft {command}` runs none unless it is told to. Read it, and if you trust it add --run-code."
        )
    )


def plan(args: Sequence[str]) -> int:
    """Estimate memory and time on N GPUs, without using one: lightrft plan [sft | reward | dpo] LAYERS... --gpus 64."""
    if not args:
        raise ValueError("what to plan? For example: lightrft plan gsm8k_qwen fsdp --gpus 64 --gpu-memory 80")
    own, rest = taken(PlanOptions, "plan", args)
    named = next((name for name in RUNS if rest[:1] == [name]), "")
    if named and RUNS[named] is not Config:
        return _plan_offline(own, load_as(RUNS[named], f"plan {named}", rest[1:]))
    config = load("plan", rest[1:] if named else rest)
    from lightrft.commands.plan import kinds, report

    with _code(own.run_code, "plan"):
        found = kinds.plan_of(config, own.hardware, own.prompt_tokens or 0, own.response_tokens or 0)
        if own.json:
            print(json.dumps(report.as_json(found), indent=2))
        else:
            report.show(found)
    return 0


def _plan_offline(own: PlanOptions, config: Any) -> int:
    """The plan of a run that learns from given responses."""
    from lightrft.commands.plan import kinds, offline

    with _code(own.run_code, "plan"):
        lengths = own.prompt_tokens or 0, own.response_tokens or 0
        found = kinds.offline_plan_of(config, own.hardware, *lengths)
        if own.json:
            print(json.dumps(offline.as_json(found), indent=2))
        else:
            offline.show(found)
    return 0


def config(args: Sequence[str]) -> int:
    """Print what would run, as one YAML file with each option's meaning: lightrft config [sft | reward | dpo] LAYERS... FLAGS."""
    named = next((name for name in RUNS if list(args[:1]) == [name]), "")
    loaded = load_as(RUNS[named], f"config {named}", args[1:]) if named else load("config", args)
    print(layers.to_yaml(loaded), end="")
    return 0


def schema(args: Sequence[str]) -> int:
    """Print the JSON Schema of YAML layers, for editors and programs: lightrft schema [train | sft | reward | dpo]."""
    if args[:1] and args[0] in ("-h", "--help"):
        print(schema.__doc__)
        return 0
    command = args[0] if args else "train"
    if command not in RUNS or len(args) > 1:
        raise ValueError(
            f"lightrft schema {' '.join(args)}: expected one of {', '.join(RUNS)}. For example: lightrft schema sft"
        )
    from lightrft.config.schema import schema as schema_of

    print(json.dumps(schema_of(RUNS[command], command), indent=2, ensure_ascii=False))
    return 0


def replay(args: Sequence[str]) -> int:
    """Compute a captured step again and compare it with the record: lightrft replay RUN --step 7."""
    own = parsed(ReplayOptions, "replay", args)
    run = run_folder(str(own.run))
    from lightrft.commands import replay as command

    with _code(own.run_code, "replay"):
        return command.replay(run, own.step)


def view(args: Sequence[str]) -> int:
    """Look at runs in the terminal or in a browser: lightrft view RUN --step 7 --best 3, lightrft view RUN --web."""
    own = parsed(ViewOptions, "view", args)
    if not own.run:
        raise ValueError("which run? For example: lightrft view runs/NAME")
    runs = [run_folder(str(run)) for run in own.run]
    if own.web or own.export or own.advice:
        return _view_whole(own, runs)
    from lightrft.console import view as viewer

    for run in runs:
        viewer.view(
            run,
            step=own.step,
            group=own.group,
            best=own.best,
            worst=own.worst,
            color=own.color,
            status=own.status,
        )
    return 0


def _view_whole(own: ViewOptions, folders: Sequence[Path]) -> int:
    """What looks at whole runs: advice, a file for a browser, a server. 1 if advice was asked for and there is an alarm."""
    from lightrft.console import web
    from lightrft.console.advice import show
    from lightrft.runs.reader import Run

    runs = [Run(folder) for folder in folders]
    alarms = [show(run) for run in runs] if own.advice else []
    if own.export:
        web.export(runs, expanded(own.export, "--export"), own.export_mib)
    if own.web:
        web.serve(runs, own.port)
    return int(any(alarms))


def export(args: Sequence[str]) -> int:
    """Export a checkpoint from any backend as a Hugging Face model, or its adapter: lightrft export RUN OUT."""
    own = parsed(ExportOptions, "export", args)
    own.check()
    run = run_folder(str(own.run))
    from lightrft.commands import export as command

    file = RunFolder(run).config
    kind: type[Any] = next((one for one in RUNS.values() if layers.fits(file, one)), Config)
    with _code(own.run_code, "export"):
        config = load_as(kind, "export", [str(file)])
        if own.adapter:
            return command.export_adapter(config, run, own.out, own.step)
        return command.export(config, run, own.out, own.step, own.file_gb, own.output)


def completion(args: Sequence[str]) -> int:
    """Print a script that completes commands, layers, flags, tasks and run folders: lightrft completion [bash | zsh | fish]."""
    own = parsed(CompletionOptions, "completion", args)
    from lightrft.cli.completion import script

    print(script(COMMANDS, __version__, own.shell), end="")
    return 0


def doctor(args: Sequence[str]) -> int:
    """Print versions, devices, cores and memory, and which optional packages are missing."""
    parsed(DoctorOptions, "doctor", args)
    from lightrft.console.doctor import report

    report(__version__)
    return 0


Command = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Command] = {
    "train": train,
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "evaluate": evaluate,
    "judge": judge,
    "serve": serve,
    "serve-rewards": serve_rewards,
    "check": check,
    "plan": plan,
    "config": config,
    "schema": schema,
    "replay": replay,
    "view": view,
    "export": export,
    "chat": chat,
    "push": push,
    "completion": completion,
    "doctor": doctor,
    "init": init,
}
helping.ABOUT.update((name, (run.__doc__ or "").splitlines()[0]) for name, run in COMMANDS.items())
