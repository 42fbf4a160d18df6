"""The commands: train, sft, evaluate, serve, check, plan, config, replay, view, export, doctor. Each builds a Config and calls its file in commands/.

torch and transformers are imported inside the commands that need them, so that help and errors come at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from lightrft import __version__
from lightrft.commands.init import init
from lightrft.commands.launch import Launch, start
from lightrft.config import Config, SFTConfig, layers
from lightrft.runs.folder import check_backend, new_run
from lightrft.utils.failures import is_explained, leave_verdict
from lightrft.utils.interrupt import Stopped

C = TypeVar("C")
LAYERED = """A layer is a shipped name or your own YAML file; later ones win, flags come last.
A list or a dict is replaced as a whole. Options in YAML: section, then option, as `lightrft config` prints them."""
LAUNCH_FLAGS = {
    "--gpus": "N processes on this machine, each on a GPU of its own",
    "--processes": "N processes on this machine, on the CPU",
    "--max-restarts": "start the processes again after a crash, up to K times, from the last checkpoint",
}
PLAN_FLAGS = {
    "--gpus": (8.0, "devices"),
    "--gpu-memory": (80.0, "GiB of each device"),
    "--gpus-per-node": (8.0, "devices of one machine"),
    "--reserve": (0.1, "share of the memory that is left free"),
    "--prompt-tokens": (0.0, "tokens of a question; 0: tasks.max_prompt_tokens"),
    "--answer-tokens": (0.0, "tokens of an answer; 0: rollout.max_tokens, the longest"),
    "--teraflops": (989.0, "peak of a device in the model's type, 10^12 operations a second"),
    "--memory-rate": (3350.0, "peak of reading a device's memory, GB/s"),
    "--link-rate": (450.0, "peak between devices of a machine, GB/s"),
    "--network-rate": (50.0, "peak between machines, GB/s for each device"),
    "--efficiency": (0.5, "share of these peaks that is reached"),
}
"""Flag -> its value if it is left out (peaks: of an H100), and its meaning."""
SHORT_FLAGS = {
    "--model": "--model.path",
    "--samples": "--evaluate.samples",
    "--capture-steps": "--log.capture-steps",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status: 0 success, 2 a mistake or a failure that is explained; 130 (Ctrl-C) or
    143 (SIGTERM) if asked to stop, after saving."""
    # Threads that wait by spinning slow a run down several times as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if args[0] == "--version":
        print(f"lightrft {__version__}")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        perhaps = f" Perhaps you meant: {close[0]}." if close else ""
        return fail(f"no command '{name}'.{perhaps} There are: {', '.join(COMMANDS)}.")
    try:
        return COMMANDS[name](rest)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Stopped as stopped:
        # Our launcher reads how we ended; a status other than 0 would be a failure to it.
        return 0 if leave_verdict({"stopped": str(stopped)}) else stopped.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left: `lightrft config tiny | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        if not is_explained(error):
            raise
        return fail(str(error))


def train(args: Sequence[str]) -> int:
    """Train a model: lightrft train LAYERS... FLAGS, or --resume RUN."""
    if not args:
        raise ValueError(
            "what to train? Start with: lightrft train tiny. All layers and options: lightrft train --help"
        )
    wanted, args = launch_of(args)
    config, run = load_run(Config, "train", args)
    if wanted.is_wanted:
        return launch_run(wanted, "train", config, run, args)
    from lightrft.commands import train as command

    command.train(config, run)
    return 0


def sft(args: Sequence[str]) -> int:
    """Teach a model what others said: lightrft sft LAYERS... FLAGS, or --resume RUN."""
    if not args:
        raise ValueError(
            "what to learn? Start with: lightrft sft sft_tiny. All layers and options: lightrft sft --help"
        )
    wanted, args = launch_of(args)
    config, run = load_run(SFTConfig, "sft", args)
    if wanted.is_wanted:
        return launch_run(wanted, "sft", config, run, args)
    from lightrft.commands import sft as command

    command.train(config, run)
    return 0


def launch_of(args: Sequence[str]) -> tuple[Launch, list[str]]:
    """Which processes a command is to start, by its flags --gpus, --processes and --max-restarts; and the other words."""
    numbers: dict[str, int] = {}
    rest = list(args)
    for flag in LAUNCH_FLAGS:
        text, rest = take_option(rest, flag, "2")
        if text:
            if not text.lstrip("-").isdecimal():
                raise ValueError(f"{flag} {text}: not a number. For example: {flag} 2")
            numbers[flag.removeprefix("--").replace("-", "_")] = int(text)
    return Launch(**numbers), rest


def launch_run(wanted: Launch, command: str, config: Any, run: Path | None, args: Sequence[str]) -> int:
    """Starts the processes of a training run, whose folder is decided here, once for all."""
    config = wanted.placed(config)
    check_backend(config, wanted.size)
    flags = ["--strategy.device", config.strategy.device]
    if run is not None:
        return start(wanted, [command, *args, *flags])
    run = new_run(config, command)
    return start(wanted, [command, "--resume", str(run)], new_run=True)


def load_run(cls: type[C], command: str, args: Sequence[str]) -> tuple[C, Path | None]:
    """The settings of a new run, or of the one that --resume names, and then its folder."""
    resumed, rest = take_option(args, "--resume")
    if not resumed:
        return load_as(cls, command, rest), None
    run = run_folder(resumed)
    return load_as(cls, command, [str(run / "config.yaml"), *rest]), run


def evaluate(args: Sequence[str]) -> int:
    """Score a model on a task: lightrft evaluate TASK [LAYERS...] FLAGS; --check proves the task's gold answers."""
    rest, only_check = [arg for arg in args if arg != "--check"], "--check" in args
    if rest and rest[0] in ("-h", "--help"):
        rest = ["TASK", *rest]
    if not rest or rest[0].startswith("-"):
        raise ValueError(
            "which task? lightrft evaluate TASK --model MODEL, e.g. lightrft evaluate gsm8k --model runs/demo/model"
        )
    task, *rest = rest
    wanted, rest = launch_of(rest)
    words, flags = layers.split(rest)
    config = load("evaluate", [*words, "--tasks.evaluate", task, "1", *flags])
    if wanted.is_wanted and not only_check:
        config = wanted.placed(config)
        folder = config.run or f"runs/evaluate-{time.strftime('%Y%m%d-%H%M%S')}"
        return start(
            wanted, ["evaluate", task, *rest, "--strategy.device", config.strategy.device, "--run", folder]
        )
    from lightrft.commands import evaluate as command

    if only_check:
        return command.check_task(config, task)
    command.evaluate(config)
    return 0


def serve(args: Sequence[str]) -> int:
    """Draw a run's answers elsewhere, with vLLM: lightrft serve LAYERS... FLAGS --host 0.0.0.0 --port 8000."""
    if not args:
        raise ValueError(
            "which model? Give the layers and flags of the run, e.g. lightrft serve demo vllm_server --port 8000"
        )
    host, rest = take_option(args, "--host", "0.0.0.0")
    text, rest = take_option(rest, "--port", "8000")
    if text and not text.isdecimal():
        raise ValueError(f"--port {text}: not a number. For example: --port 8000")
    config = load("serve", rest)
    from lightrft.commands import serve as command

    return command.serve(config, host or "127.0.0.1", int(text or "8000"))


def check(args: Sequence[str]) -> int:
    """Look before a run: token counts, a rendered prompt, rewards, engine against trainer, time and memory."""
    config = load("check", args)
    from lightrft.commands.check import preflight

    return preflight(config)


def plan(args: Sequence[str]) -> int:
    """What a run would need on so many GPUs, without one: memory, work, traffic, time: lightrft plan LAYERS... --gpus 64."""
    if not args:
        raise ValueError("what to plan? For example: lightrft plan gsm8k_qwen fsdp --gpus 64 --gpu-memory 80")
    rest, in_json = [arg for arg in args if arg != "--json"], "--json" in args
    given: dict[str, float] = {}
    for flag, (default, _) in PLAN_FLAGS.items():
        text, rest = take_option(rest, flag, f"{default:g}")
        given[flag] = number(flag, text) if text else default
    config = load("plan", rest)
    from lightrft.commands import plan as planning
    from lightrft.commands.plan import report

    rates = planning.Rates(
        given["--teraflops"],
        given["--memory-rate"],
        given["--link-rate"],
        given["--network-rate"],
        given["--efficiency"],
    )
    hardware = planning.Hardware(
        int(given["--gpus"]), given["--gpu-memory"], int(given["--gpus-per-node"]), given["--reserve"], rates
    )
    lengths = planning.Lengths(
        int(given["--prompt-tokens"]) or config.tasks.max_prompt_tokens,
        int(given["--answer-tokens"]) or config.rollout.max_tokens,
    )
    found = planning.plan(config, hardware, lengths)
    if in_json:
        print(json.dumps(report.as_json(found), indent=2))
    else:
        report.show(found)
    return 0


def number(flag: str, text: str) -> float:
    """The number that a flag was given. ValueError for anything else, or one that is not above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise ValueError(
            f"{flag} {text}: needs a number above 0. For example: {flag} {PLAN_FLAGS[flag][0]:g}"
        )
    return found


def config(args: Sequence[str]) -> int:
    """Print what would run, as one YAML file with each option's meaning: lightrft config [sft] LAYERS... FLAGS."""
    of_sft = list(args[:1]) == ["sft"]
    loaded = load_as(SFTConfig, "config sft", args[1:]) if of_sft else load("config", args)
    print(layers.to_yaml(loaded), end="")
    return 0


def replay(args: Sequence[str]) -> int:
    """Compute a captured step again and compare it with the record: lightrft replay RUN --step 7."""

    def run(run: tyro.conf.Positional[Path], step: int) -> tuple[Path, int]:
        """Compute a captured step again in this process, and show every metric beside the recorded one.

        Args:
            run: The run folder.
            step: The step, one of RUN/capsules/step-*.pt (see --log.capture-steps).
        """
        return run, step

    folder, step = tyro.cli(run, prog="lightrft replay", args=list(args))
    from lightrft.commands import replay as command

    return command.replay(run_folder(str(folder)), step)


def view(args: Sequence[str]) -> int:
    """Read a run's answers in the terminal: lightrft view RUN --step 7 --best 3."""
    from lightrft.console import view as viewer

    def show(
        run: tyro.conf.Positional[Path],
        step: int | None = None,
        group: int | None = None,
        best: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
        worst: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
        color: Literal["none", "logprob", "advantage"] = "none",
    ) -> None:
        """Steps of a run; with --step its groups; with --group, --best or --worst whole answers.

        Args:
            run: The run folder.
            step: Which step; -1 is the last one.
            group: Show every answer of this group.
            best: Show the N answers with the highest reward.
            worst: Show the N answers with the lowest reward.
            color: Colour tokens by how sure the model was, or by their advantage.
        """
        viewer.view(run_folder(str(run)), step=step, group=group, best=best, worst=worst, color=color)

    tyro.cli(show, prog="lightrft view", args=list(args))
    return 0


def export(args: Sequence[str]) -> int:
    """Make a Hugging Face folder of a run's checkpoint, whichever backend wrote it: lightrft export RUN OUT."""

    def export(
        run: tyro.conf.Positional[Path],
        out: tyro.conf.Positional[Path],
        step: int | None = None,
        file_gb: float = 5.0,
    ) -> tuple[Path, Path, int | None, float]:
        """Write the policy of a checkpoint as plain transformers loads it; adapters are merged into the weights.

        Args:
            run: The run folder.
            out: The folder to make.
            step: After which step; the newest complete checkpoint if left out.
            file_gb: Most gigabytes of weights in a file, and so in memory.
        """
        return run, out, step, file_gb

    folder, out, step, file_gb = tyro.cli(export, prog="lightrft export", args=list(args))
    run = run_folder(str(folder))
    from lightrft.commands import export as command

    file = run / "config.yaml"
    kind: type[Any] = Config if layers.fits(file, Config) else SFTConfig
    return command.export(load_as(kind, "export", [str(file)]), run, out, step, file_gb)


def doctor(args: Sequence[str]) -> int:
    """Print versions, devices, cores and memory, and which optional packages are missing."""
    from lightrft.console.doctor import report

    report(__version__)
    return 0


Command = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Command] = {
    "train": train,
    "sft": sft,
    "evaluate": evaluate,
    "serve": serve,
    "check": check,
    "plan": plan,
    "config": config,
    "replay": replay,
    "view": view,
    "export": export,
    "doctor": doctor,
    "init": init,
}


def load(command: str, args: Sequence[str]) -> Config:
    """The Config of a layered command."""
    return load_as(Config, command, args)


def load_as(cls: type[C], command: str, args: Sequence[str]) -> C:
    """The settings of a layered command, named after its layers unless it names itself."""
    args = expand(args)
    if {"-h", "--help"} & set(args):
        print(layered_help(command, cls))
        return layers.load(["--help"], cls, prog=f"lightrft {command}")
    words, flags = layers.split(args)
    refuse_others(words, cls)
    name = "-".join(layer for layer in words if layer in layers.shipped())
    loaded: Any = layers.load([*words, *flags], cls, prog=f"lightrft {command}")
    named: C = loaded if loaded.name != "run" or not name else replace(loaded, name=name)
    return named


def refuse_others(words: Sequence[str], cls: type[Any]) -> None:
    """ValueError for a layer that is made for the other kind of training."""
    others = {"train": Config, "sft": SFTConfig}
    for word in words:
        file = layers.find_layer(word)
        belongs = [name for name, other in others.items() if layers.fits(file, other)]
        if belongs and not layers.fits(file, cls):
            raise ValueError(
                f"'{word}' holds settings of `lightrft {belongs[0]}` that mean nothing here. Take another layer, or that command."
            )


def expand(args: Sequence[str]) -> list[str]:
    """Short flags written out: --model X is --model.path X, --capture-steps 3,7 is --log.capture-steps 3 7."""
    expanded: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag in SHORT_FLAGS:
            expanded += [SHORT_FLAGS[flag], *([value] if equals else [])]
        else:
            expanded.append(arg)
        if len(expanded) > 1 and expanded[-2] == SHORT_FLAGS["--capture-steps"]:
            expanded[-1:] = expanded[-1].split(",")
    return expanded


def take_option(args: Sequence[str], flag: str, example: str = "runs/NAME") -> tuple[str, list[str]]:
    """The value of `flag VALUE` or `flag=VALUE` ("" if absent), and the other words."""
    rest = list(args)
    for i, arg in enumerate(rest):
        if arg == flag:
            if i + 1 == len(rest) or rest[i + 1].startswith("--"):
                raise ValueError(f"{flag} needs a value: {flag} {example}")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2], rest[:i] + rest[i + 1 :]
    return "", rest


def run_folder(name: str) -> Path:
    """The run folder called so. ValueError if it is none, naming the newest runs beside it."""
    run = Path(name).expanduser()
    if (run / "config.yaml").is_file():
        return run
    beside = sorted(run.parent.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime, reverse=True)
    newest = f" Newest runs there: {', '.join(str(file.parent) for file in beside[:3])}." if beside else ""
    raise ValueError(f"'{name}' is no run folder: {run / 'config.yaml'} does not exist.{newest}")


def fail(message: str) -> int:
    print(f"lightrft: {message}", file=sys.stderr)
    return 2


def help_text() -> str:
    """What `lightrft --help` prints."""
    commands = "\n".join(
        f"  {name:<10} {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()
    )
    return f"""LightRFT {__version__}: reinforcement fine-tuning of language models.

usage: lightrft COMMAND ...

{commands}

examples:
  lightrft train tiny                                        the whole loop on a tiny random model, in seconds
  lightrft train demo                                        a small language model learns on a CPU, in minutes
  lightrft train dr_grpo gsm8k_qwen --data ../data           algorithm, model and task as layers, on one GPU
  lightrft train grpo my.yaml --rollout.group-size 16        your own file, and a flag on top
  lightrft sft sft_tiny                                      learn from given answers instead of rewards
  lightrft train --resume runs/demo-20260101-120000          go on after the last checkpoint
  lightrft evaluate gsm8k --model Qwen/Qwen2.5-0.5B-Instruct pass@1 with its confidence interval
  lightrft plan grpo gsm8k_qwen fsdp --gpus 64               would it fit, and how long would a step take?
  lightrft view runs/demo-20260101-120000 --step -1 --best 3 the best answers of the last step

`lightrft COMMAND --help` lists its layers and options."""


def layered_help(command: str, cls: type[Any]) -> str:
    """Layers and how they combine: what stands before the options in `lightrft train --help`."""
    usage = {
        "train": "lightrft train LAYERS... FLAGS\n       lightrft train --resume RUN [FLAGS]\n       lightrft train RUN/config.yaml",
        "sft": "lightrft sft LAYERS... FLAGS\n       lightrft sft --resume RUN [FLAGS]\n       lightrft sft RUN/config.yaml",
        "evaluate": "lightrft evaluate TASK [LAYERS...] [--model MODEL] [--data FOLDER] [--check] FLAGS",
    }.get(command, f"lightrft {command} LAYERS... FLAGS")
    names = {name: file for name, file in layers.shipped().items() if layers.fits(file, cls)}
    known = {f"--{name.replace('_', '-')}" for name, *_ in layers.options(cls)}
    launch = "\n".join(f"  {flag:<16} {meaning}" for flag, meaning in LAUNCH_FLAGS.items())
    started = f"\n\nprocesses:\n{launch}" if command in ("train", "sft", "evaluate") else ""
    if command == "plan":
        flags = "\n".join(
            f"  {flag:<16} {meaning} [{value:g}]" for flag, (value, meaning) in PLAN_FLAGS.items()
        )
        started = f"\n\nhardware:\n{flags}\n  {'--json':<16} every number, for programs"
    listed = "\n".join(f"  {name:<12} {layers.describe(file)}" for name, file in names.items())
    short = "\n".join(f"  {short:<16} {flag}" for short, flag in SHORT_FLAGS.items() if flag in known)
    about = (COMMANDS[command.split()[0]].__doc__ or "").splitlines()[0]
    return f"{about}\n\nusage: {usage}\n\n{LAYERED}\n\nshipped layers:\n{listed}\n\nshort flags:\n{short}{started}\n\noptions:"
