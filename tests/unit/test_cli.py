"""The command line: what words ask for, what a mistake looks like, and how fast help comes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from lightrft import cli
from lightrft.cli.commands import AskedEvaluation, AskedRun
from lightrft.config import Config, SFTConfig, layers


def training(*args: str) -> AskedRun:
    """What `lightrft train` is asked for by these words."""
    return AskedRun.of("train", args)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(layers.to_yaml(layers.load(["tiny", "--name", "kept"], Config)))
    return tmp_path


def test_train_reads_layers_and_flags() -> None:
    asked = training("dr_grpo", "tiny", "--steps", "7", "--data", "d", "--capture-steps", "3,7")
    assert (asked.config.steps, asked.config.data, asked.config.algorithm.average) == (7, "d", "fixed")
    assert asked.config.log.capture_steps == [3, 7]
    assert asked.resume is None
    assert not asked.launch.is_wanted


def test_the_words_of_the_launcher_are_not_handed_to_the_processes() -> None:
    asked = training("tiny", "--processes", "2", "--steps=3")
    assert (asked.launch.processes, asked.words) == (2, ["tiny", "--steps=3"])


def test_a_run_is_named_after_its_layers_unless_it_names_itself() -> None:
    assert training("dr_grpo", "tiny").config.name == "dr_grpo-tiny"
    assert training("dr_grpo", "tiny", "--name", "mine").config.name == "mine"


def test_resume_takes_the_configuration_of_the_run_with_flags_on_top(run: Path) -> None:
    asked = training("--resume", str(run), "--steps", "9")
    assert (asked.config.name, asked.config.steps, asked.resume) == ("kept", 9, run)
    assert asked.words == ["--resume", str(run), "--steps", "9"]
    assert training(f"--resume={run}").resume == run


def test_the_configuration_file_of_a_run_describes_it_wholly(run: Path) -> None:
    asked = training(str(run / "config.yaml"))
    assert asked.config == layers.load(["tiny", "--name", "kept"], Config)
    assert asked.resume is None


def test_evaluate_takes_a_task_then_layers_then_flags() -> None:
    words = ["tiny", "--model=hub/name", "--samples", "4", "--evaluate.temperature", "0.7"]
    asked = AskedEvaluation.of(["gsm8k", *words])
    assert asked.config.tasks.evaluate == {"gsm8k": 1.0}
    assert (asked.config.model.path, asked.config.evaluate.samples) == ("hub/name", 4)
    assert (asked.task, asked.words, asked.check) == ("gsm8k", words, False)
    assert AskedEvaluation.of(["gsm8k", "--check"]).check


def test_evaluate_takes_several_tasks_and_suites() -> None:
    asked = AskedEvaluation.of(["tiny,suite:words", "tiny"])
    assert asked.config.tasks.evaluate == {"tiny": 1.0, "gsm8k": 1.0, "svamp": 1.0}
    with pytest.raises(ValueError, match="name svamp there too"):
        AskedEvaluation.of(["gsm8k,svamp", "--tasks.evaluate", "gsm8k", "1"])


def test_evaluate_with_check_tries_the_gold_answers_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "tiny", "--check", "--rewards.workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("train: ")
    assert "evaluate: " in printed


def test_a_check_of_gold_answers_that_saw_none_is_no_success(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["evaluate", "gsm8k", "--check", "--rewards.workers", "0", "--data", str(tmp_path)]
    assert cli.main(command) == 1
    assert "evaluate: not checked" in capsys.readouterr().out
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(
        '{"question": "1 + 2?", "answer": "3\\n#### 3"}\n' * 2 + "{"
    )
    assert cli.main(command) == 2
    assert "test.jsonl" in capsys.readouterr().err


def test_check_returns_the_status_of_the_pre_flight(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "tiny", "--rollout.engine", "natve"]) == 1
    assert "Did you mean 'native'?" in " ".join(capsys.readouterr().out.split())


def test_replay_wants_a_run_and_a_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(run), "--step", "7"]) == 2
    assert f"{run} has no capsule of step 7" in capsys.readouterr().err
    assert cli.main(["replay", str(run)]) == 2
    assert "step" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train", "--resume"], ["view"], ["replay", "--step", "1"]])
def test_a_run_that_is_arranged_in_another_way_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (run / "format.json").write_text('{"format": 3, "lightrft": "9.1.0"}')
    assert cli.main([*command, str(run)]) == 2
    assert "the run has format 3" in capsys.readouterr().err


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
        (
            ["train", "tiny", "--load_in_4bit", "true"],
            "In LightRFT this is --model.lora.quantize-base.",
        ),
        (["train", "tiny", "--report_to", "wandb"], "In LightRFT this is --log.to."),
        (
            ["train", "tiny", "--rollout.max-draws", "1"],
            "is called --rollout.max-sampling-rounds now.",
        ),
        (["train", "tiny", "steps=3"], "'steps=3' is no layer. Write it as a flag: --steps 3"),
        (["train", "tiny", "lr=3"], "'lr=3' is no layer. In LightRFT this is --optimizer.learning-rate."),
        (["config", "rollout.n=4"], "In LightRFT this is --rollout.group-size."),
        (
            ["train", "--rollout.group-size", "4", "tiny", "fsdp", "--steps", "2"],
            "the layers tiny, fsdp stand behind flags. Layers come first: tiny fsdp --rollout.group-size 4 --steps 2",
        ),
        (["train", "--tasks.train", "tiny", "1", "grpo"], "Layers come first: grpo --tasks.train tiny 1"),
        (["train", "tiny", "--seed", "1", "2"], "'2' belongs to no option"),
        (["train", "--steps", "3", "tiny"], "Layers come first: tiny --steps 3"),
        (["train", "tiny", "--nothing.like.it", "3"], "--help-all lists all options"),
        (["plan", "tiny", "--gpus", "0"], "--gpus 0: needs a number above 0"),
        (["train", "tiny", "--update.num-minibatches", "17"], "a step has only 16 responses"),
        (
            ["train", "tiny", "--rollout.top-p", "2"],
            "lightrft: rollout.top_p=2: must be above 0 and at most 1.",
        ),
        (
            ["train", "tiny", "--critic.optimizer.learning-rate", "-1"],
            "lightrft: critic.optimizer.learning_rate=-1:",
        ),
        (
            ["train", "tiny", "--rewards.timeout-seconds", "nan"],
            "rewards.timeout_seconds=nan: must be above 0.",
        ),
        (["train", "sft_tiny"], "'sft_tiny' holds settings of `lightrft sft`"),
        (["sft"], "lightrft sft sft_tiny"),
        (["sft", "grpo"], "'grpo' holds settings of `lightrft train`"),
        (["sft", "sft_tiny", "--bach-size", "4"], "--batch-size"),
        (["sft", "sft_tiny", "--epochs", "3"], "epochs=3.0 has no effect with steps=60"),
        (["sft", "sft_tiny", "--steps", "0", "--epochs", "0"], "epochs=0: must be above 0"),
        (["sft", "sft_tiny", "--update.epochs", "3"], "update.epochs=3 has no effect"),
        (
            ["sft", "sft_tiny", "--log.held-out-prompts", "0"],
            "log.sampled_tokens=16 has no effect with log.held_out_prompts=0",
        ),
        (
            ["dpo", "dpo_tiny", "--log.held-out-prompts", "0", "--log.media-mib", "1"],
            "log.media_mib=1.0 has no effect",
        ),
        (
            ["reward", "reward_tiny", "--log.held-out-prompts", "0", "--log.token-columns=false"],
            "log.token_columns=False has no effect",
        ),
        (
            ["sft", "sft_tiny", "--log.sample-sharded=true"],
            "log.sample_sharded=True has no effect with strategy.backend=single",
        ),
        (
            [
                "sft",
                "sft_tiny",
                "--log.sample-sharded=true",
                "--log.sampled-tokens",
                "0",
                "--strategy.backend",
                "fsdp",
            ],
            "with log.sampled_tokens=0",
        ),
        (
            ["sft", "sft_tiny", "--evaluate.before=false", "--evaluate.before-and-after=false"],
            "evaluate.before=False has no effect",
        ),
        (
            ["train", "tiny", "--evaluate.before=false", "--evaluate.before-and-after=false"],
            "evaluate.before=False has no effect",
        ),
        (["sft", "sft_tiny", "--update.skip-zero-advantage=false"], "lightrft sft, which has no advantages"),
        (["sft", "sft_tiny", "--tasks.rewards", "math", "1"], "tasks.rewards={'math': 1.0} has no effect"),
    ],
)
def test_a_mistake_is_one_message_and_status_2_before_anything_is_begun(
    args: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert "─" not in printed
    assert not list(tmp_path.iterdir())


def test_an_error_that_we_did_not_raise_keeps_its_traceback(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def backend(config, device):\n    raise ValueError('from somewhere else')\n")
    args = ["train", "tiny", "--strategy.backend", f"{file}:backend", "--run", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="from somewhere else"):
        cli.main(args)


OF_OTHER_COMMANDS = (
    "sft_", "reward_", "dpo_", "diffusion_dpo", "diffusion_sft", "digits_dpo", "digits_reward", "digits_sft", "two_digits_sft",
    "moving_sft", "shapes_sft",
)  # fmt: skip
"""Beginnings of the names of layers that are none of `lightrft train`."""


def test_help_lists_commands_and_shipped_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)
    assert cli.main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(
        f"\n  {name} " in printed for name in layers.shipped() if not name.startswith(OF_OTHER_COMMANDS)
    )
    assert "sft_tiny" not in printed
    assert len(printed.splitlines()) < 120
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
    assert cli.main(["train", f"--help={found}"]) == 0
    assert word in " ".join(capsys.readouterr().out.split())


def test_a_layer_that_undoes_another_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    training("dapo", "tiny", "--steps", "2")
    assert "tiny sets rollout.group_size to 4, which dapo had set to 16." in capsys.readouterr().err
    training("grpo", "lora")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("algorithm", ["dapo", "ppo", "ttrl", "grpo"])
def test_a_task_leaves_the_algorithm_alone(algorithm: str) -> None:
    for task in ("gsm8k_qwen", "demo"):
        ours, theirs = training(algorithm, task).config, layers.load([algorithm], Config)
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


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["train", "--help"],
        ["config", "tiny"],
        ["completion"],
        ["train", "tniy"],
        ["train", "tiny", "--rewards.functions", "maht", "1"],
        ["train", "tiny", "--tasks.train", "gsm9k", "1"],
        ["sft", "sft_tiny", "--tasks.evaluate", "gsm9k", "1"],
        ["train", "tiny", "--rewards.functions", "nowhere.py:mine", "1"],
    ],
)
def test_torch_is_not_imported_before_a_command_needs_it(args: list[str]) -> None:
    code = f"import sys; from lightrft.cli import main; main({args}); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr.decode()


def test_a_run_as_a_layer_is_told_from_another_folder_with_settings(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(ValueError, match="is a folder. Name a file in it, e.g. .*config.yaml"):
        training(str(tmp_path))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(
        ValueError, match="is the folder of a run. .*config.yaml is the same run anew; --resume "
    ):
        training(str(tmp_path))


def test_a_folder_with_a_run_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    words = ["train", "tiny", "--run", "run"]
    code = f"import sys; from lightrft.cli import main; print(main({words}), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.stdout == "2 False\n"
    assert "run=run: there is a run already. Go on with `lightrft train --resume run`" in done.stderr


def test_a_reward_that_could_not_be_called_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("print('run')\ndef score(completion):\n    return 1.0\n")
    words = ["train", "tiny", "--rewards.functions", f"{tmp_path / 'mine.py'}:score", "1"]
    code = f"import sys; from lightrft.cli import main; print(main({words}), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.stdout == "2 False\n"  # and the file was read, not run
    assert "asks for 'completion', which is called 'answer' here" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_public_names_are_there() -> None:
    import lightrft

    assert lightrft.Trajectory.__module__ == "lightrft.types"
    assert lightrft.Config is Config
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lightrft.nothing  # noqa: B018
