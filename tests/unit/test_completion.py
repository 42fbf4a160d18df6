"""The scripts for bash, zsh and fish, run by those: what a Tab key offers."""

import shutil
import subprocess

import pytest

from lightrft.cli.commands import COMMANDS
from lightrft.cli.completion import LAYERED, OF_RUNS, SHELLS, script

ZSH = """
compdef() {{ }}
_files() {{ }}
compadd() {{ print -rl -- ${{(M)offered:#$PREFIX*}} }}
source {file}; words=({typed}); CURRENT={count}; PREFIX='{word}'; _lightrft
"""
ASKING = {
    "bash": (
        "source {file}; COMP_WORDS=({typed}); COMP_CWORD=$(({count} - 1)); _lightrft lightrft '{word}' '{before}'; "
        'printf "%s\\n" "${{COMPREPLY[@]}}"'
    ),
    "zsh": ZSH,
    "fish": "function __fish_complete_path; end; source {file}; complete -C '{line}'",
}
"""Shell -> what asks its script for what fits the last word; only fish can be asked as a person would."""


@pytest.fixture(scope="module", params=SHELLS)
def shell(request):
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    return request.param


@pytest.fixture(scope="module")
def file(tmp_path_factory, shell):
    made = tmp_path_factory.mktemp("completion") / f"lightrft.{shell}"
    made.write_text(script(COMMANDS, "1", shell))
    return made


@pytest.fixture
def offered(file, shell, tmp_path):
    for name in ("runs/first", "runs/second", "runs/not_one", "own"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
        if name != "runs/not_one":
            (tmp_path / name / "format.json").touch()

    def of(*words):
        asked = ASKING[shell].format(
            file=file,
            typed=" ".join(f"'{word}'" for word in ("lightrft", *words)),
            line=" ".join(("lightrft", *words)),
            count=len(words) + 1,
            word=words[-1],
            before=("lightrft", *words)[-2],
        )
        done = subprocess.run([shell, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.stdout.split()

    return of


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["tra"], ["train"]),
        (["train", "dap"], ["dapo"]),
        (["train", "tiny", "--rollout.group"], ["--rollout.group-size"]),
        (["train", "tiny", "--tasks.train", "gsm"], ["gsm8k"]),
        (["evaluate", "gsm"], ["gsm8k", "gsm8k_qwen"]),
        (["sft", "sft_t"], ["sft_tiny"]),
        (["sft", "--resume", "sec"], []),
        (["train", "--resume", ""], ["own", "runs/first", "runs/second"]),
        (["view", "runs/f"], ["runs/first"]),
        (["chat", ""], ["own", "runs/first", "runs/second"]),
        (["doctor", ""], []),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_a_tab_key_offers_what_may_follow(offered, words, wanted):
    assert offered(*words) == wanted


def test_the_commands_of_the_lists_exist():
    assert set(LAYERED) | set(OF_RUNS) <= set(COMMANDS)


def test_a_shell_reads_its_script(file, shell):
    done = subprocess.run([shell, "-n", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_offers_every_command_and_what_may_follow(shell):
    """Here no shell is needed: each command has a case, with its own layers and no other command's."""
    made = script(COMMANDS, "1", shell)
    cases = {name: f"case {name}\n" if shell == "fish" else f"          {name}) " for name in COMMANDS}
    assert all(made.count(case) == 1 for case in cases.values())
    lines = made.replace("\n                    string", " string").splitlines()
    behind = {name: next(line for line in lines if case.strip() in line) for name, case in cases.items()}
    assert " sft_tiny " in behind["sft"]
    assert " sft_tiny " not in behind["train"]
    assert "lightrft_runs" in behind["view"]
