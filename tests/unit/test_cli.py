"""The command line: what each command is handed, what a mistake looks like, and how fast help comes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightrft import cli
from lightrft.commands import check, evaluate, replay, train
from lightrft.config import Config, SFTConfig, layers


class App:
    """Remembers what a command was handed instead of running it: these tests are about words becoming settings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        self._monkeypatch = monkeypatch
        self.watch(train, "train", Path("run"))
        self.watch(evaluate, "evaluate", {})
        self.watch(evaluate, "check_task", 0)
        self.watch(check, "preflight", 1)
        self.watch(replay, "replay", 0)

    def watch(self, module: ModuleType, name: str, outcome: Any) -> None:
        """Puts a recorder in the place of a command."""

        def recorder(*handed: Any) -> Any:
            self.asked = [name, *handed]
            return outcome

        self._monkeypatch.setattr(module, name, recorder)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    return App(monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(layers.to_yaml(layers.load(["tiny", "--name", "kept"], Config)))
    return tmp_path


def test_train_hands_over_layers_and_flags(app: App) -> None:
    assert (
        cli.main(["train", "dr_grpo", "tiny", "--steps", "7", "--data", "d", "--capture-steps", "3,7"]) == 0
    )
    _, config, resume = app.asked
    assert (config.steps, config.data, config.algorithm.average) == (7, "d", "fixed")
    assert config.log.capture_steps == [3, 7]
    assert resume is None


def test_a_run_is_named_after_its_layers_unless_it_names_itself(app: App) -> None:
    cli.main(["train", "dr_grpo", "tiny"])
    assert app.asked[1].name == "dr_grpo-tiny"
    cli.main(["train", "dr_grpo", "tiny", "--name", "mine"])
    assert app.asked[1].name == "mine"


def test_resume_takes_the_configuration_of_the_run_with_flags_on_top(app: App, run: Path) -> None:
    assert cli.main(["train", "--resume", str(run), "--steps", "9"]) == 0
    assert (app.asked[1].name, app.asked[1].steps, app.asked[2]) == ("kept", 9, run)
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert app.asked[2] == run


def test_the_configuration_file_of_a_run_describes_it_wholly(app: App, run: Path) -> None:
    assert cli.main(["train", str(run / "config.yaml")]) == 0
    assert app.asked == ["train", layers.load(["tiny", "--name", "kept"], Config), None]


def test_evaluate_takes_a_task_then_layers_then_flags(app: App) -> None:
    args = [
        "evaluate",
        "gsm8k",
        "tiny",
        "--model=hub/name",
        "--samples",
        "4",
        "--evaluate.temperature",
        "0.7",
    ]
    assert cli.main(args) == 0
    _, config = app.asked
    assert config.tasks.evaluate == {"gsm8k": 1.0}
    assert (config.model.path, config.evaluate.samples) == ("hub/name", 4)
    assert cli.main(["evaluate", "gsm8k", "--check"]) == 0
    assert app.asked[0] == "check_task"
    assert app.asked[2] == "gsm8k"


def test_check_returns_the_status_of_the_pre_flight(app: App) -> None:
    assert cli.main(["check", "tiny"]) == 1
    assert app.asked[0] == "preflight"


def test_replay_wants_a_run_and_a_step(app: App, run: Path) -> None:
    assert cli.main(["replay", str(run), "--step", "7"]) == 0
    assert app.asked == ["replay", run, 7]
    assert cli.main(["replay", str(run)]) == 2


def test_config_prints_what_would_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["config", "dr_grpo", "--rollout.group-size", "5"]) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    expected = layers.load(["dr_grpo", "--rollout.group-size", "5", "--name", "dr_grpo"], Config)
    assert layers.load([str(tmp_path / "all.yaml")], Config) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "no command 'trian'. Perhaps you meant: train."),
        (["train"], "lightrft train tiny"),
        (["train", "tniy"], "no layer named 'tniy'. Perhaps you meant: tiny."),
        (["train", "--resume", "nowhere"], "'nowhere' is not a run folder"),
        (["train", "--resume"], "--resume needs a value"),
        (["evaluate", "--model", "m"], "which task?"),
        (["view", "nowhere"], "'nowhere' is not a run folder"),
        (["train", "tiny", "--rollout.grup-size", "4"], "Perhaps you meant: --rollout.group-size."),
        (["train", "tiny", "--learning-rate", "1"], "Perhaps you meant: --optimizer.learning-rate, "),
        (["train", "tiny", "--num_generations", "4"], "In LightRFT this is --rollout.group-size."),
        (["train", "tiny", "--lr=1"], "no option --lr. In LightRFT this is --optimizer.learning-rate."),
        (["train", "tiny", "--report_to", "wandb"], "In LightRFT this is --log.tensorboard."),
        (
            ["train", "tiny", "--rollout.max-draws", "1"],
            "is called --rollout.max-sampling-rounds now.",
        ),
        (["train", "tiny", "steps=3"], "An option is written as a flag: --steps 3"),
        (["train", "--steps", "3", "tiny"], "Layers come first: tiny --steps 3"),
        (["train", "tiny", "--nothing.like.it", "3"], "--help-all lists all options"),
        (["plan", "tiny", "--gpus", "0"], "--gpus 0: needs a number above 0"),
        (["train", "tiny", "--update.num-minibatches", "17"], "a step has only 16 answers"),
        (["train", "sft_tiny"], "'sft_tiny' holds settings of `lightrft sft`"),
        (["sft"], "lightrft sft sft_tiny"),
        (["sft", "grpo"], "'grpo' holds settings of `lightrft train`"),
        (["sft", "sft_tiny", "--bach-size", "4"], "--batch-size"),
        (["sft", "sft_tiny", "--epochs", "3"], "epochs=3.0 has no effect with steps=60"),
        (["sft", "sft_tiny", "--steps", "0", "--epochs", "0"], "epochs=0.0: must be above 0"),
        (["sft", "sft_tiny", "--update.epochs", "3"], "update.epochs=3 has no effect"),
        (["sft", "sft_tiny", "--tasks.rewards", "math", "1"], "tasks.rewards={'math': 1.0} has no effect"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    app: App, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert cli.main(args) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert "─" not in printed
    assert app.asked == []


def test_an_error_that_we_did_not_raise_keeps_its_traceback(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Config, resume: Path | None) -> Path:
        raise ValueError("from somewhere else")

    monkeypatch.setattr(train, "train", broken)
    with pytest.raises(ValueError, match="from somewhere else"):
        cli.main(["train", "tiny"])


def test_help_lists_commands_and_shipped_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)
    assert cli.main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in layers.shipped() if name != "sft_tiny")
    assert "sft_tiny" not in printed
    assert len(printed.splitlines()) < 75
    assert all(
        f"\n  {field.name} " in printed
        for field in fields(Config)
        if is_dataclass(getattr(Config(), field.name))
    )
    assert "--gpus" in printed
    assert "--rollout.group-size" not in printed
    assert cli.main(["train", "--help-all"]) == 0
    assert "--rollout.group-size INT" in capsys.readouterr().out
    assert cli.main(["evaluate", "--help"]) == 0
    assert "lightrft evaluate TASK" in capsys.readouterr().out


def test_help_of_sft_lists_its_own_layers_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "lightrft sft --resume RUN" in printed
    assert "\n  sft_tiny " in printed
    assert "\n  grpo " not in printed
    assert "--batch-size" in printed
    assert "--samples" not in printed


def test_help_of_a_section_lists_its_options_with_type_default_and_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "--help", "rollout"]) == 0
    printed = capsys.readouterr().out
    assert "--rollout.group-size INT  [8]\n" in printed
    assert "--rollout.extra-groups drop|carry_over  [drop]\n" in printed
    assert "--rollout.vllm.max-num-seqs" in printed
    assert "--algorithm." not in printed
    assert cli.main(["train", "tiny", "--help", "rollout.vllm"]) == 0
    assert "--rollout.group-size" not in capsys.readouterr().out
    assert cli.main(["train", "--help", "rolout"]) == 2
    assert "no section 'rolout'. There are: model, tasks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("export", "--file-gb"),
        ("doctor", "optional packages"),
        ("plan", "--gpus-per-node"),
        ("serve", "--port"),
    ],
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str, told: str) -> None:
    assert cli.main([command, "--help"]) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("dynamic sampling", "algorithm"),
        ("TIS", "algorithm"),
        ("IcePop", "algorithm"),
        ("MIS", "algorithm"),
        ("zero-variance", "algorithm"),
        ("micro-batch", "update"),
        ("off-policy", "rollout"),
        ("all-reduce", "strategy"),
    ],
)
def test_the_words_of_the_field_are_found_in_help(
    capsys: pytest.CaptureFixture[str], word: str, found: str
) -> None:
    assert cli.main(["train", "--help", found]) == 0
    assert word in " ".join(capsys.readouterr().out.split())


def test_a_layer_that_undoes_another_one_is_told(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "dapo", "tiny", "--steps", "2"]) == 0
    assert "tiny sets rollout.group_size to 4, which dapo had set to 16." in capsys.readouterr().err
    assert cli.main(["train", "grpo", "lora"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("algorithm", ["dapo", "ppo", "ttrl", "grpo"])
def test_a_task_leaves_the_algorithm_alone(app: App, algorithm: str) -> None:
    for task in ("gsm8k_qwen", "demo"):
        assert cli.main(["train", algorithm, task]) == 0
        ours, theirs = app.asked[1], layers.load([algorithm], Config)
        assert ours.algorithm == theirs.algorithm
        assert ours.rollout.group_size == theirs.rollout.group_size
        assert ours.update.num_minibatches == theirs.update.num_minibatches


def test_config_of_sft_prints_what_would_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["config", "sft", "sft_tiny", "lora", "--batch-size", "5"]) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    flags = ["--batch-size", "5", "--name", "sft_tiny-lora"]
    assert layers.load([str(tmp_path / "all.yaml")], SFTConfig) == layers.load(
        ["sft_tiny", "lora", *flags], SFTConfig
    )


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["config", "tiny"], ["train", "tniy"]])
def test_torch_is_not_imported_before_a_command_needs_it(args: list[str]) -> None:
    code = f"import sys; from lightrft.cli import main; main({args}); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr.decode()


def test_the_public_names_are_there() -> None:
    import lightrft

    assert lightrft.Trajectory.__module__ == "lightrft.types"
    assert lightrft.Config is Config
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lightrft.nothing  # noqa: B018
