"""`lightrft completion`: a script of bash by which the shell completes commands, layers, flags, tasks and run folders.

The lists are written into the script, so that a Tab key takes no time; run folders are looked for when it is pressed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from lightrft.cli.options import flag_of
from lightrft.config import RUNS, Config, layers

LAYERED = (
    "train",
    "sft",
    "reward",
    "dpo",
    "evaluate",
    "judge",
    "serve",
    "serve-rewards",
    "check",
    "plan",
    "config",
)
OF_RUNS = ("view", "replay", "export", "push", "chat")
TASK_FLAGS = ("--tasks.train", "--tasks.evaluate")
SCRIPT = """# lightrft {version}: completion of bash. In ~/.bashrc: source <(lightrft completion)
_lightrft_runs() {{
  local folder
  for folder in "$1"*/ runs/"$1"*/; do
    [ -f "$folder/config.yaml" ] && [ -f "$folder/format.json" ] && echo "${{folder%/}}"
  done
}}
_lightrft() {{
  local word="$2" before="$3" words=""
  local IFS=$' \\t\\n'
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "$before" in
      {task_flags}) words="{tasks}" ;;
      --resume) words="$(_lightrft_runs "$word")" ;;
      *)
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lightrft lightrft
"""


def script(commands: Iterable[str], version: str) -> str:
    """The script."""
    from lightrft.tasks.table import TASKS

    names = list(commands)
    return SCRIPT.format(
        version=version,
        commands=" ".join(names),
        task_flags="|".join(TASK_FLAGS),
        tasks=" ".join(sorted(TASKS)),
        cases="\n".join(f'          {name}) words="{_words(name)}" ;;' for name in names),
    )


def _words(command: str) -> str:
    """What may stand behind a command: run folders, or layers and flags."""
    if command in OF_RUNS:
        return '$(_lightrft_runs "$word")'
    if command not in LAYERED:
        return ""
    kind = RUNS.get(command, Config)
    fitting = [name for name, file in layers.shipped().items() if _may_fit(file, kind)]
    tasks = []
    if command == "evaluate":
        from lightrft.tasks.table import TASKS

        tasks = sorted(TASKS)
    flags = [flag_of(name) for name, *_ in layers.options(kind)]
    return " ".join([*tasks, *fitting, *(["--resume"] if command in RUNS else []), *flags])


def _may_fit(file: Path, kind: type[Any]) -> bool:
    """Whether a layer sets no section that the command lacks. Its options are looked at when it is taken."""
    sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return sections.keys() <= {"extends", *(f.name for f in fields(kind))}
