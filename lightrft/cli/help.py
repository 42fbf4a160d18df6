"""What --help, --help SECTION and --help-all print."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, get_type_hints

from lightrft import __version__
from lightrft.cli.options import (
    EvaluateOptions,
    JudgeOptions,
    PlanOptions,
    ServeOptions,
    ServeRewardsOptions,
    TrainOptions,
    described,
)
from lightrft.config import layers

WIDTH = 118
SHORT_FLAGS = {
    "--model": "--model.path",
    "--samples": "--evaluate.samples",
    "--capture-steps": "--log.capture-steps",
}
USAGE = {
    "train": "lightrft train LAYERS... FLAGS\n       lightrft train --resume RUN [FLAGS]\n       lightrft train RUN/config.yaml",
    "sft": "lightrft sft LAYERS... FLAGS\n       lightrft sft --resume RUN [FLAGS]\n       lightrft sft RUN/config.yaml",
    "reward": "lightrft reward LAYERS... FLAGS\n       lightrft reward --resume RUN [FLAGS]\n       lightrft reward RUN/config.yaml",
    "dpo": "lightrft dpo LAYERS... FLAGS\n       lightrft dpo --resume RUN [FLAGS]\n       lightrft dpo RUN/config.yaml",
    "evaluate": "lightrft evaluate TASK [LAYERS...] [--model MODEL] [--data FOLDER] [--check] FLAGS",
    "judge": "lightrft judge FILE [LAYERS...] --rewards.functions NAME WEIGHT ... [--json] [--out FILE.json] FLAGS",
}
OWN: dict[str, type[Any]] = {
    "train": TrainOptions,
    "sft": TrainOptions,
    "reward": TrainOptions,
    "dpo": TrainOptions,
    "evaluate": EvaluateOptions,
    "judge": JudgeOptions,
    "serve": ServeOptions,
    "serve-rewards": ServeRewardsOptions,
    "plan": PlanOptions,
}
ABOUT: dict[str, str] = {}
"""Command -> its first sentence; filled where the commands are."""
LAYERED = """A layer is a shipped name or your own YAML file; later ones win, flags come last. A file may name what it stands on:
`extends: [grpo, fsdp]`. A list or a dict is replaced as a whole. `lightrft config LAYERS...` prints what would run."""


def help_text() -> str:
    """What `lightrft --help` prints."""
    commands = "\n".join(f"  {name:<13} {about}" for name, about in ABOUT.items())
    return f"""LightRFT {__version__}: reinforcement fine-tuning of language models.

usage: lightrft COMMAND ...

{commands}

examples:
  lightrft train tiny                                        the whole loop on a tiny random model, in seconds
  lightrft train demo                                        a small language model learns on a CPU, in minutes
  lightrft train dr_grpo gsm8k_qwen --data ../data           algorithm, model and task as layers, on one GPU
  lightrft train grpo my.yaml --rollout.group-size 16        your own file, and a flag on top
  lightrft sft sft_tiny                                      learn from given conversations instead of rewards
  lightrft reward reward_tiny                                train a reward model from pairs of responses
  lightrft dpo dpo_tiny                                      learn from pairs of responses without rewards
  lightrft train --resume runs/demo-20260101-120000          go on after the last checkpoint
  lightrft evaluate gsm8k --model Qwen/Qwen2.5-0.5B-Instruct pass@1 with its confidence interval
  lightrft judge pairs.jsonl --rewards.functions length 1    how often does a reward prefer the better response?
  lightrft plan grpo gsm8k_qwen fsdp --gpus 64               would it fit, and how long would a step take?
  lightrft view runs/demo-20260101-120000 --step -1 --best 3 the best responses of the last step

`lightrft COMMAND --help` lists its layers and sections of options, `--help SECTION` the options of one."""


def show_if_asked(command: str, cls: type[Any], args: Sequence[str]) -> None:
    """Prints help and raises SystemExit if the words of a layered command ask for it."""
    if "--help-all" in args:
        print(f"{layered_help(command, cls)}\n\noptions:")
        layers.load(["--help"], cls, prog=f"lightrft {command}")
    for flag in ("-h", "--help"):
        if flag in args:
            behind = [word for word in args[args.index(flag) + 1 :] if not word.startswith("-")]
            print(section_help(command, cls, behind[0]) if behind else layered_help(command, cls))
            sys.exit(0)


def layered_help(command: str, cls: type[Any]) -> str:
    """Usage, layers, own flags and sections of a command, on about one screen."""
    names = {name: file for name, file in layers.shipped().items() if layers.fits(file, cls)}
    known = {f"--{name.replace('_', '-')}" for name, *_ in layers.options(cls)}
    listed = "\n".join(f"  {name:<22} {layers.describe(file)}" for name, file in names.items())
    short = ", ".join(f"{short} for {flag}" for short, flag in SHORT_FLAGS.items() if flag in known)
    own = OWN.get(command)
    flags = f"\n\nflags of this command:\n{described(own)}" if own else ""
    return f"""{ABOUT[command.split()[0]]}

usage: {USAGE.get(command, f"lightrft {command} LAYERS... FLAGS")}

{LAYERED}

shipped layers:
{listed}{flags}

sections of options, written --SECTION.OPTION VALUE (--help SECTION lists those of one, --help-all every option):
{sections(cls)}
  short: {short}"""


def sections(cls: type[Any]) -> str:
    """One line for each section: its name, how many options it has, and what it is about."""
    lines = []
    loose = [
        field.name.replace("_", "-") for field, hint in _fields(cls) if not dataclasses.is_dataclass(hint)
    ]
    for field, hint in _fields(cls):
        if dataclasses.is_dataclass(hint):
            count = len(list(layers.options(hint)))  # type: ignore[arg-type]  # a class, by the type hint
            about = (inspect.getdoc(hint) or "").split("\n")[0]
            lines.append(f"  {field.name:<13} {count:>3}  {about}")
    flat = textwrap.fill(
        f"without a section: --{', --'.join(loose)}", WIDTH, initial_indent="  ", subsequent_indent="    "
    )
    return "\n".join([*lines, flat])


def section_help(command: str, cls: type[Any], section: str) -> str:
    """Every option of one section with its type, default and meaning. ValueError for a section that is none."""
    found: Any = cls
    prefix = ""
    for part in section.strip("-.").replace("-", "_").split("."):
        hints = {field.name: hint for field, hint in _fields(found) if dataclasses.is_dataclass(hint)}
        if part not in hints:
            raise ValueError(
                f"no section '{section}'. There are: {', '.join(prefix + name for name in hints) or 'none in it'}."
            )
        found, prefix = hints[part], f"{prefix}{part}."
    lines = [f"lightrft {command}: {(inspect.getdoc(found) or '').split(chr(10))[0]}"]
    for name, holder, field, hint in layers.options(found, prefix):
        default = default_of(field)
        lines.append(f"\n  --{name.replace('_', '-')} {kind(hint)}  [{layers.yaml_value(default)}]")
        text = layers.field_docs(holder).get(field.name, "")
        lines.append(textwrap.fill(text, WIDTH, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value of an option that nobody sets."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def kind(hint: Any) -> str:
    """The type of an option, as a word for its value."""
    choices = getattr(hint, "__args__", ())
    if all(isinstance(choice, str | int) for choice in choices) and choices:
        return "|".join(map(str, choices))
    if choices:
        return (
            f"NAME {'TEXT' if choices[1] is str else 'NUMBER'} ..."
            if len(choices) == 2
            else f"{kind(choices[0])} ..."
        )
    return {str: "TEXT", int: "INT", float: "FLOAT", bool: "true|false"}.get(hint, "VALUE")


def _fields(cls: type[Any]) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]
