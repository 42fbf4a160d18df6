"""`lightrft completion`: a script of bash, zsh or fish by which the shell completes commands, layers, flags, tasks and run folders.

The lists are written into the script, so that a Tab key takes no time; run folders are looked for when it is pressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
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


@dataclass(frozen=True)
class Shell:
    """How a script for a shell is put together."""

    script: str
    """All of it, with places for version, commands, task_flags, tasks and cases."""
    case: str
    """What is offered behind a command, with places for name and words."""
    runs: str
    """What offers run folders, in place of words."""
    flags: str
    """What stands between the flags of a case."""


BASH = """# lightrft {version}: completion of bash. In ~/.bashrc: source <(lightrft completion bash)
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

ZSH = """#compdef lightrft
# lightrft {version}: completion of zsh. In ~/.zshrc, behind compinit: source <(lightrft completion zsh)
_lightrft_runs() {{
  local folder
  for folder in "$1"*(N-/) runs/"$1"*(N-/); do
    [[ -f "$folder/config.yaml" && -f "$folder/format.json" ]] && print -r -- "$folder"
  done
}}
_lightrft() {{
  local before="${{words[CURRENT-1]}}"
  local -a offered
  if (( CURRENT == 2 )); then
    offered=({commands})
  else
    case "$before" in
      {task_flags}) offered=({tasks}) ;;
      --resume) offered=("${{(@f)$(_lightrft_runs "$PREFIX")}}") ;;
      *)
        case "${{words[2]}}" in
{cases}
        esac ;;
    esac
  fi
  compadd -a offered || _files
}}
if [[ "${{funcstack[1]}}" == _lightrft ]]; then
  _lightrft "$@"
else
  compdef _lightrft lightrft
fi
"""

FISH = """# lightrft {version}: completion of fish. In ~/.config/fish/config.fish: lightrft completion fish | source
function __lightrft_runs
    set -l word (commandline -ct)
    for folder in $word*/ runs/$word*/
        test -f $folder/config.yaml; and test -f $folder/format.json; and string trim --right --chars=/ -- $folder
    end
end
function __lightrft_words
    set -l before (commandline -opc)
    if test (count $before) -le 1
        string join \\n -- {commands}
        return
    end
    switch $before[-1]
        case {task_flags}
            string join \\n -- {tasks}
        case --resume
            __lightrft_runs
        case '*'
            switch $before[2]
{cases}
            end
    end
end
function __lightrft_offered
    set -l word (commandline -ct)
    set -l fitting (string match -- "$word*" (__lightrft_words))
    if test (count $fitting) -gt 0
        string join \\n -- $fitting
    else
        __fish_complete_path $word
    end
end
complete -c lightrft -f -a '(__lightrft_offered)'
"""

SHELLS = {
    "bash": Shell(BASH, '          {name}) words="{words}" ;;', runs='$(_lightrft_runs "$word")', flags="|"),
    "zsh": Shell(
        ZSH,
        "          {name}) offered=({words}) ;;",
        runs='"${(@f)$(_lightrft_runs "$PREFIX")}"',
        flags="|",
    ),
    "fish": Shell(
        FISH,
        "                case {name}\n                    string join \\n -- {words}",
        runs="(__lightrft_runs)",
        flags=" ",
    ),
}


def script(commands: Iterable[str], version: str, shell: str) -> str:
    """The script for a shell, one of `SHELLS`."""
    from lightrft.tasks.table import TASKS

    names, made = list(commands), SHELLS[shell]
    offered = {name: made.runs if name in OF_RUNS else " ".join(_words(name)) for name in names}
    return made.script.format(
        version=version,
        commands=" ".join(names),
        task_flags=made.flags.join(TASK_FLAGS),
        tasks=" ".join(sorted(TASKS)),
        cases="\n".join(made.case.format(name=name, words=words) for name, words in offered.items()),
    )


def _words(command: str) -> Sequence[str]:
    """What may stand behind a command that takes no run folder: layers and flags, or shells."""
    if command == "completion":
        return list(SHELLS)
    if command not in LAYERED:
        return []
    kind = RUNS.get(command, Config)
    fitting = [name for name, file in layers.shipped().items() if _may_fit(file, kind)]
    tasks = []
    if command == "evaluate":
        from lightrft.tasks.table import TASKS

        tasks = sorted(TASKS)
    flags = [flag_of(name) for name, *_ in layers.options(kind)]
    return [*tasks, *fitting, *(["--resume"] if command in RUNS else []), *flags]


def _may_fit(file: Path, kind: type[Any]) -> bool:
    """Whether a layer sets no section that the command lacks. Its options are looked at when it is taken."""
    sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return sections.keys() <= {"extends", *(f.name for f in fields(kind))}
