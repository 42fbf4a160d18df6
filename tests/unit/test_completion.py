"""The script for bash, run by bash: what a Tab key offers."""

import shutil
import subprocess

import pytest

from lightrft.cli.commands import COMMANDS
from lightrft.cli.completion import LAYERED, OF_RUNS, script

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = tmp_path_factory.mktemp("completion") / "lightrft.bash"
    made.write_text(script(COMMANDS, "1"))
    return made


@pytest.fixture
def offered(file, tmp_path):
    for name in ("runs/first", "runs/second", "runs/not_one", "own"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
        if name != "runs/not_one":
            (tmp_path / name / "format.json").touch()

    def of(*words):
        typed = " ".join(f"'{word}'" for word in ("lightrft", *words))
        before = words[-2] if len(words) > 1 else "lightrft"
        asked = (
            f"source {file}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _lightrft lightrft '{words[-1]}' '{before}'; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
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
    ],
)
def test_a_tab_key_offers_what_may_follow(offered, words, wanted):
    assert offered(*words) == wanted


def test_the_commands_of_the_lists_exist():
    assert set(LAYERED) | set(OF_RUNS) <= set(COMMANDS)
