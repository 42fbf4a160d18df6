"""What `lightrft check` says, with one broken case for each thing it looks at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightrft.cli import main
from lightrft.cli.loading import load
from lightrft.commands.check import preflight
from lightrft.commands.check.costs import judge_disk, judge_memory
from lightrft.commands.check.policy import judge_mismatch
from lightrft.commands.check.questions import histogram
from lightrft.commands.check.report import Mark, Report, Section
from lightrft.commands.check.template import end_of_answer, keeps_prefixes, own_text
from lightrft.config import Config
from lightrft.models.processor import Processor
from lightrft.testing import tiny_processor
from lightrft.types import Message

Check = Callable[..., tuple[int, str]]
USER = [Message(role="user", content="How many?")]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Check:
    """Runs the check of the tiny layer with flags on top; gives its status, and what it printed with blanks joined."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> tuple[int, str]:
        status = preflight(load("check", ["tiny", "--rewards.workers", "0", *flags]))
        return status, " ".join(capsys.readouterr().out.split())

    return run


def rows(path: Path, questions: Sequence[str]) -> str:
    """A file with these questions, each with the target 7."""
    path.write_text(
        "".join(json.dumps({"prompt": q, "target": "7"}) + "\n" for q in questions), encoding="utf-8"
    )
    return str(path)


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., list[str]]:
    """Flags for a task over two small files, judged by `exact`."""

    def flags(train: Sequence[str], evaluate: Sequence[str]) -> list[str]:
        files = rows(tmp_path / "train.jsonl", train), rows(tmp_path / "test.jsonl", evaluate)
        data = [
            "--tasks.train",
            "file",
            "1",
            "--tasks.train-file",
            files[0],
            "--tasks.evaluate-file",
            files[1],
        ]
        return [*data, "--rewards.functions", "exact", "1"]

    return flags


def test_a_sound_run_is_found_ready_with_every_section_in_order(check: Check) -> None:
    status, told = check()
    assert status == 0
    titles = [
        "settings ok",
        "data ok",
        "chat template ok",
        "rewards on gold answers ok",
        "sampled responses",
        "engine against trainer ok",
        "time and memory ok",
        "disk ok",
    ]
    places = [told.index(title) for title in titles]
    assert places == sorted(places)
    assert told.rsplit("─", 1)[-1].startswith(" ready")


def test_the_arithmetic_of_a_step_is_written_out(check: Check) -> None:
    step = ["--rollout.prompts-per-step", "6", "--update.num-minibatches", "2", "--update.epochs", "3"]
    _, told = check(*step, "--steps", "4")
    assert "6 prompts x 4 responses = 24 responses of at most 8 tokens" in told
    assert "= at most 192 response tokens, in 6 updates of 12 responses" in told
    assert "4 steps = 96 responses, 24 updates" in told
    assert "a pass for old log-probs, no reference model" in told


def test_a_critic_is_counted_in_time_memory_and_disk(check: Check) -> None:
    assert "critic optimizer" not in check()[1]
    status, told = check("--algorithm.advantage", "gae")
    assert status == 0
    assert "critic optimizer" in told


def test_values_before_the_first_step_are_counted_in_time_and_memory(check: Check) -> None:
    flags = [
        "--algorithm.advantage",
        "optimal_value",
        "--algorithm.value-samples",
        "5",
        "--rollout.max-tokens",
        "4",
    ]
    status, text = check(*flags, "--algorithm.loss", "policy_gradient", "--tasks.train-limit", "30")
    assert status == 0
    assert "values 5 responses to each of 30 training prompts: 150 before the first step" in text
    assert "about values, once rollout score train" in text
    _, plain = check("--rollout.max-tokens", "4")
    assert "values, once" not in plain


def test_a_check_writes_no_file(check: Check, tmp_path: Path) -> None:
    check()
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_quick_and_exits_with_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    begin = time.process_time()
    assert main(["check", "tiny"]) == 0
    assert time.process_time() - begin < 15


def test_long_prompts_are_counted_and_skipping_them_is_a_warning(
    check: Check, own: Callable[..., list[str]]
) -> None:
    status, told = check(
        *own(["short", "long " * 20, "long " * 30], ["another"]), "--tasks.max-prompt-tokens", "40"
    )
    assert status == 0
    assert "file, train: 2 of 3 prompts have more than tasks.max_prompt_tokens=40; they are skipped" in told


def test_long_prompts_that_would_stop_the_run_are_a_problem(
    check: Check, own: Callable[..., list[str]]
) -> None:
    limits = ["--tasks.max-prompt-tokens", "40", "--tasks.on-long-prompt", "raise"]
    status, told = check(*own(["short", "long " * 20], ["another"]), *limits)
    assert status == 1
    assert "1 of 2 prompts have more than tasks.max_prompt_tokens=40; the run would stop" in told
    assert "not ready; fix: data" in told


def test_cut_prompts_are_a_warning(check: Check, own: Callable[..., list[str]]) -> None:
    limits = ["--tasks.max-prompt-tokens", "40", "--tasks.on-long-prompt", "truncate_left"]
    status, told = check(*own(["short", "long " * 20], ["another"]), *limits)
    assert status == 0
    assert "they lose their first tokens" in told


def test_a_limit_that_leaves_no_prompt_is_a_problem_and_ends_the_check(check: Check) -> None:
    status, told = check("--tasks.max-prompt-tokens", "2")
    assert status == 1
    assert "600 of 600 prompts have more than tasks.max_prompt_tokens=2: none is left" in told
    assert "sampled responses" not in told


def test_questions_in_both_splits_are_counted(check: Check, own: Callable[..., list[str]]) -> None:
    status, told = check(*own(["one", "two", "three"], ["two", "three", "four"]))
    assert status == 0
    assert "data warning" in told
    assert "2 of 3 evaluation prompts are also in training" in told


def test_a_broken_row_is_a_problem_with_file_and_line(
    check: Check, own: Callable[..., list[str]], tmp_path: Path
) -> None:
    flags = own(["one"], ["two"])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": \n')
    status, told = check(*flags)
    assert status == 1
    assert "train.jsonl:2: not JSON" in told


def test_skipped_rows_are_a_warning(check: Check, own: Callable[..., list[str]], tmp_path: Path) -> None:
    flags = own(["one"], ["two"])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": \n')
    status, told = check(*flags, "--tasks.on-bad-record", "skip")
    assert status == 0
    assert "file, train: 1 broken or empty rows are skipped" in told


def test_an_answer_longer_than_a_batch_is_a_warning(check: Check) -> None:
    _, told = check("--update.tokens-per-micro-batch", "10")
    assert (
        "the longest prompt and a full response are 14 tokens, more than update.tokens_per_micro_batch=10"
        in told
    )


def reward(tmp_path: Path, body: str) -> list[str]:
    """Flags for a reward of one's own with this body."""
    file = tmp_path / f"rewards_{abs(hash(body))}.py"
    file.write_text(f"def mine(answer: str, target: str) -> float:\n    {body}\n", encoding="utf-8")
    return ["--rewards.functions", f"{file}:mine", "1"]


def test_a_reward_that_refuses_right_answers_is_a_problem(check: Check, tmp_path: Path) -> None:
    status, told = check(*reward(tmp_path, "return 0.0"))
    assert status == 1
    assert "rewards on gold answers problem" in told
    assert "32 of 32 gold answers do not get full marks" in told


def test_a_reward_that_ranks_right_answers_higher_is_a_warning(check: Check, tmp_path: Path) -> None:
    right = "return 0.5 * (target == ('digit' if answer.isdigit() else 'small' if answer.islower() else 'capital'))"
    status, told = check(*reward(tmp_path, right))
    assert status == 0
    assert "they score 0.50 on average" in told


def test_a_reward_that_likes_every_answer_is_a_warning(check: Check, tmp_path: Path) -> None:
    status, told = check(*reward(tmp_path, "return 1.0"))
    assert status == 0
    assert "Does the reward look at the response?" in told


def test_a_reward_that_raises_is_a_problem_and_the_answers_are_shown_all_the_same(
    check: Check, tmp_path: Path
) -> None:
    status, told = check(*reward(tmp_path, "return float(answer)"))
    assert status == 1
    assert "could not convert string to float" in told
    assert "reward nan" in told
    assert "engine against trainer ok" in told


@pytest.mark.parametrize(
    ("flags", "cure"),
    [
        (["--rewards.functions", "exakt", "1"], "Did you mean 'exact'?"),
        (["--algorithm.loss", "cliped"], "Did you mean 'clipped'?"),
        (["--rollout.engine", "natve"], "Did you mean 'native'?"),
        (["--tasks.train", "tny", "1"], "Did you mean 'tiny'?"),
    ],
)
def test_a_misspelt_name_is_a_problem_with_its_cure(check: Check, flags: list[str], cure: str) -> None:
    status, told = check(*flags)
    assert status == 1
    assert cure in told


def test_a_model_that_is_not_there_is_a_problem(check: Check) -> None:
    status, told = check("--model.path", "./nowhere")
    assert status == 1
    assert "model.path=./nowhere: there is no such folder" in told


ENGINE = """
from dataclasses import replace
from lightrft.engines.native import native_engine

class Off:
    def __init__(self, module, processor, config):
        self.inner = native_engine(module, processor, config)
        self.weight_version = 0
        self.load_weights, self.parts = self.inner.load_weights, self.inner.parts
    def generate(self, prompts, sampling, progress=None):
        groups = self.inner.generate(prompts, sampling, progress)
        return [[replace(c, logprobs=[x - 0.5 for x in c.logprobs]) for c in group] for group in groups]
"""


def test_an_engine_whose_log_probs_are_off_is_a_warning_with_likely_causes(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "engine.py").write_text(ENGINE, encoding="utf-8")
    status, told = check("--rollout.engine", f"{tmp_path}/engine.py:Off")
    assert status == 0
    assert "the largest difference is 0.5" in told
    assert "Likely causes" in told


def test_an_engine_that_cannot_sample_beside_training_is_a_problem(check: Check, tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(ENGINE, encoding="utf-8")
    status, told = check("--rollout.engine", f"{tmp_path}/engine.py:Off", "--rollout.max-staleness", "1")
    assert status == 1
    assert "this engine does not say that it can sample while the trainer learns" in told


@pytest.mark.parametrize(
    ("dtype", "mean", "largest", "mark"),
    [
        ("float32", 1e-6, 9e-4, Mark.OK),
        ("float32", 1e-6, 2e-3, Mark.WARNING),
        ("bfloat16", 0.04, 0.3, Mark.OK),
        ("bfloat16", 0.2, 0.3, Mark.WARNING),
    ],
)
def test_the_limit_for_engine_and_trainer_depends_on_the_type(
    dtype: Any, mean: float, largest: float, mark: Mark
) -> None:
    section, config = Section(""), Config()
    judge_mismatch(section, replace(config, model=replace(config.model, dtype=dtype)), mean, largest)
    assert section.mark is mark


@pytest.mark.parametrize(("needed", "mark"), [(10, Mark.OK), (90, Mark.WARNING), (110, Mark.PROBLEM)])
def test_memory_and_disk_are_compared_with_what_is_free(needed: int, mark: Mark) -> None:
    memory, disk = Section(""), Section("")
    judge_memory(memory, needed=needed, available=100, place="cpu")
    judge_disk(disk, needed=needed, free=100, place="here")
    assert memory.mark is mark
    assert disk.mark is mark


def test_a_run_folder_that_holds_a_run_is_a_problem(check: Check, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    status, told = check("--run", str(tmp_path))
    assert status == 1
    assert "there is a run already" in told


def test_a_run_folder_below_a_file_is_a_problem(check: Check, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, told = check("--run", str(tmp_path / "file" / "run"))
    assert status == 1
    assert "is not a folder that can be written to" in told


def with_template(template: str) -> Processor:
    processor = tiny_processor()
    processor.tokenizer.chat_template = template
    return processor


MARKS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def test_a_system_message_of_the_template_is_found() -> None:
    assert own_text(tiny_processor()) == ""
    assert own_text(with_template("<|system|>Be kind.<|end|>" + MARKS)) == "<|system|>Be kind."


def test_a_template_that_drops_earlier_turns_does_not_keep_prefixes() -> None:
    assert keeps_prefixes(tiny_processor(), USER)
    assert not keeps_prefixes(with_template(MARKS.replace("in messages", "in messages[-1:]")), USER)


def test_an_answer_that_ends_with_a_token_that_stops_nothing_is_found(check: Check, tmp_path: Path) -> None:
    assert end_of_answer(tiny_processor()) in tiny_processor().stop_ids
    assert end_of_answer(with_template(MARKS.replace("<|end|>", "<|user|>"))) not in tiny_processor().stop_ids


def test_the_histogram_has_a_block_per_length() -> None:
    assert histogram([3, 3, 3, 5]) == "█▁▃"


def test_a_section_that_fails_becomes_a_problem_and_the_verdict_names_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(section: Section) -> None:
        raise ValueError("model.path is empty.")

    report = Report(Console(width=200))
    assert report.run("weights", fails) is None
    assert report.verdict() == 1
    told = capsys.readouterr().out
    assert "model.path is empty." in told
    assert "not ready; fix: weights" in told
