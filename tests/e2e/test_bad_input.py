"""What a user can get wrong before a run begins: each is named with its cure before any weight loads."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from lightrft.testing import tiny_folder
from tests.e2e.runs import PLAIN, rows, steps

SMALL = [*PLAIN, "--run", "run", "--steps", "1", "--rollout.max-tokens", "4", "--evaluate.limit", "4"]
ROWS = [{"prompt": f"{n} and {n + 1}?", "target": str(2 * n + 1)} for n in range(12)]


def refused(lightrft, *args):
    """The output of a run that is refused with a message, before weights load, and without a traceback."""
    output = lightrft("train", "tiny", *SMALL, *args, status=2)
    assert "device memory by phase" not in output, "weights were loaded first"
    assert "Traceback" not in output
    return output


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" if isinstance(row, dict) else row + "\n" for row in rows))
    return path


@pytest.fixture
def task(tmp_path):
    """Flags for the task `file` over twelve good training rows and four others."""
    write_rows(tmp_path / "train.jsonl", ROWS)
    write_rows(tmp_path / "test.jsonl", [{"prompt": f"{n}!", "target": str(n)} for n in range(4)])
    return [
        "--tasks.train",
        "file",
        "1",
        "--tasks.train-file",
        "train.jsonl",
        "--tasks.evaluate-file",
        "test.jsonl",
        "--rewards.functions",
        "exact",
        "1",
    ]


# -- the data ----------------------------------------------------------------------------------------------------------


def test_ones_own_rows_can_be_learned(lightrft, tmp_path, task):
    lightrft("train", "tiny", *SMALL, *task)
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 1]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"prompt": "1 and', "not JSON"),
        ('["1 and 2?", "3"]', "expected an object"),
        ('{"target": "3"}', "prompt"),
        ('{"prompt": "", "target": "3"}', "empty"),
    ],
)
def test_a_broken_row_names_its_file_and_line(lightrft, tmp_path, task, row, complaint):
    write_rows(tmp_path / "train.jsonl", [*ROWS[:2], row, *ROWS[2:]])
    output = refused(lightrft, *task)
    assert "train.jsonl" in output
    assert "3" in output.split("train.jsonl", 1)[1][:12], "the line"
    assert complaint.lower() in output.lower()


def test_a_broken_row_can_be_skipped_and_is_counted(lightrft, tmp_path, task):
    write_rows(tmp_path / "train.jsonl", [*ROWS[:2], "{", '{"target": "3"}', *ROWS[2:]])
    output = lightrft("train", "tiny", *SMALL, *task, "--tasks.on-bad-record", "skip")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "2" in output
    assert "skip" in output
    assert "12 prompts" in log


def test_a_data_file_that_is_not_there_is_named(lightrft, task, tmp_path):
    (tmp_path / "train.jsonl").unlink()
    assert "train.jsonl" in refused(lightrft, *task)


def test_evaluating_on_the_training_rows_is_refused(lightrft, task):
    assert "memorised" in refused(lightrft, *task, "--tasks.evaluate-file", "train.jsonl")


@pytest.mark.parametrize("policy", ["raise", "skip", "truncate_left"])
def test_prompts_over_the_limit_follow_the_policy(lightrft, tmp_path, task, policy):
    """The template adds 3 tokens. Of the rows, one is long: 40 bytes against a limit of 20."""
    write_rows(tmp_path / "train.jsonl", [*ROWS, {"prompt": "x" * 40, "target": "1"}])
    flags = [*task, "--tasks.max-prompt-tokens", "20", "--tasks.on-long-prompt", policy]
    if policy == "raise":
        output = refused(lightrft, *flags)
        assert "train.jsonl" in output
        assert "tasks.max_prompt_tokens=20" in output
        return
    output = lightrft("train", "tiny", *SMALL, *flags)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert ("skipped 1 over 20 tokens" if policy == "skip" else "1 of them truncated on the left") in output
    assert f"{12 if policy == 'skip' else 13} prompts, longest 43 tokens" in log


def test_when_every_prompt_is_too_long_the_limit_is_named(lightrft, task):
    assert "tasks.max_prompt_tokens=2" in refused(lightrft, *task, "--tasks.max-prompt-tokens", "2")


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """A Hugging Face folder whose weights are no weights: whoever reads them fails."""
    folder = tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"nothing that could be loaded")
    return folder


def edit(file, **changes):
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def test_a_model_folder_that_is_not_there_is_named(lightrft):
    output = refused(lightrft, "--model", "./nowhere")
    assert "model.path=./nowhere: there is no such folder" in output


def test_a_folder_that_is_no_model_is_named(lightrft, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "model.path=./empty: the folder has no config.json" in refused(lightrft, "--model", "./empty")


def test_no_model_at_all_is_told(lightrft):
    assert "model.path is empty" in refused(lightrft, "--model", "")


def test_a_tiny_model_that_does_not_exist_names_those_that_do(lightrft):
    output = refused(lightrft, "--model", "random:lama")
    assert "random:lama" in output
    assert "llama" in output


def test_a_model_without_chat_template_says_how_to_give_one(lightrft, model):
    (model / "chat_template.jinja").unlink()
    output = refused(lightrft, "--model", "./model")
    assert "no chat template" in output
    assert "model.chat_template" in output
    assert "plain" in output


def test_a_chat_template_that_is_not_there_is_named(lightrft, model):
    assert "model.chat_template=none.jinja: there is no such file" in refused(
        lightrft, "--model", "./model", "--model.chat-template", "none.jinja"
    )


def test_a_tokenizer_and_model_without_end_token_are_named_with_the_cure(lightrft, model):
    edit(model / "tokenizer_config.json", eos_token=None)
    edit(model / "config.json", eos_token_id=None)
    edit(model / "generation_config.json", eos_token_id=None)
    output = refused(lightrft, "--model", "./model")
    assert "model.path=./model" in output
    assert "no end token" in output
    assert "eos_token" in output


def test_a_model_without_tokenizer_is_named(lightrft, model):
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "model.path=./model" in refused(lightrft, "--model", "./model")


def test_weights_that_cannot_be_read_are_named(lightrft, model):
    output = lightrft("train", "tiny", *SMALL, "--model", "./model", status=2)
    assert "model.path=./model" in output
    assert "Traceback" not in output


def test_weights_that_are_not_all_there_are_named(lightrft, tmp_path):
    """transformers would leave them random, with a warning that nobody reads."""
    folder = tiny_folder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    output = lightrft("train", "tiny", *SMALL, "--model", "./model", status=2)
    assert "lack 1 weights of the model, among them model.layers.1.mlp.up_proj.weight" in output


def test_a_tokenizer_without_pad_token_needs_none(lightrft, tmp_path):
    """Nothing is ever padded here."""
    folder = tiny_folder(tmp_path / "good")
    assert "pad_token" not in json.loads((folder / "tokenizer_config.json").read_text())
    lightrft("train", "tiny", *SMALL, "--model", "./good")
    assert "pad_token_id" not in json.loads(
        (tmp_path / "run" / "model" / "generation_config.json").read_text()
    )


def test_a_base_model_can_go_on_from_plain_text(lightrft, tmp_path):
    folder = tiny_folder(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    lightrft("train", "tiny", *SMALL, "--model", "./base", "--model.chat-template", "plain")
    assert len(steps(tmp_path / "run")) == 1


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--rollout.group-size", "1"],
            [
                "rollout.group_size=1",
                "algorithm.advantage=group_norm",
                "rollout.group_size=8",
                "algorithm.advantage=reinforce",
            ],
        ),
        (
            ["--update.num-minibatches", "17"],
            ["update.num_minibatches=17", "16 responses", "Lower update.num_minibatches"],
        ),
        (["--rollout.temperature", "0"], ["rollout.temperature=0", "above 0"]),
        (["--rollout.top-p", "0"], ["rollout.top_p=0"]),
        (["--evaluate.pass-k", "4"], ["evaluate.samples=4"]),
        (["--evaluate.samples", "2"], ["evaluate.temperature=0", "0.7"]),
        (["--algorithm.clip", "0.2"], ["algorithm.clip", "two numbers"]),
        (["--algorithm.loss", "cliped"], ["cliped", "clipped"]),
        (
            ["--algorithm.kl", "k1", "--algorithm.kl-coefficient", "0.1"],
            ["algorithm.kl=k1", "algorithm.kl_in=loss", "k3"],
        ),
        (["--algorithm.options", "clipp", "3"], ["algorithm.options.clipp"]),
        (["--strategy.device", "cuda:99"], ["strategy.device=cuda:99"]),
        (["--strategy.backend", "sinle"], ["sinle", "single"]),
        (["--rollout.engine", "nativ"], ["nativ", "native"]),
        (["--trainer", "rll"], ["rll"]),
        (["--tasks.train", "tny", "1"], ["tny", "tiny"]),
        (["--tasks.train", "tiny", "0"], ["tiny", "above 0"]),
        (["--steps", "0"], ["steps=0", "at least 1"]),
        (["--optimizer.learning-rate", "-1"], ["optimizer.learning_rate=-1"]),
        (["--checkpoint.keep-last", "0"], ["checkpoint.keep_last=0"]),
        (["--log.capture-spikes", "0.5"], ["log.capture_spikes=0.5"]),
        (["--rollout.first-token-temperature", "-1"], ["rollout.first_token_temperature=-1", "at least 0"]),
        (
            ["--algorithm.gamma", "0.9"],
            ["algorithm.gamma=0.9", "group_norm", "algorithm.advantage=reinforce"],
        ),
        (["--algorithm.gamma", "1.5", "--algorithm.advantage", "gae"], ["algorithm.gamma=1.5"]),
        (["--algorithm.gae-lambda", "0.9"], ["algorithm.gae_lambda=0.9", "algorithm.advantage=gae"]),
        (
            ["--algorithm.high-entropy-fraction", "0"],
            ["algorithm.high_entropy_fraction=0", "above 0 and at most 1"],
        ),
        (["--algorithm.mismatch-limit", "1"], ["algorithm.mismatch_limit=1", "above 1"]),
        (["--algorithm.overlong-buffer", "5"], ["algorithm.overlong_buffer=5", "rollout.max_tokens=4"]),
        (["--algorithm.response-filter", "best_wurst"], ["best_wurst", "best_worst"]),
        (["--algorithm.response-filter", "random_responses"], ["responses_to_learn_from"]),
        (["--critic.value-clip", "0.5"], ["critic.value_clip=0.5", "algorithm.advantage=gae"]),
        (["--critic.optimizer.learning-rate", "1"], ["critic.optimizer has no effect", "Leave it out"]),
        (
            ["--algorithm.advantage", "gae", "--critic.warmup-steps", "1"],
            ["critic.warmup_steps=1", "steps=1", "Lower critic.warmup_steps"],
        ),
        (["--algorithm.kl-target", "0.1"], ["algorithm.kl_target=0.1", "algorithm.kl_coefficient"]),
        (
            ["--algorithm.reference-update-steps", "5"],
            ["algorithm.reference_update_steps=5", "algorithm.kl_coefficient"],
        ),
        (
            ["--algorithm.kl-coefficient", "0.1", "--algorithm.reference-update-rate", "0.5"],
            ["algorithm.reference_update_rate=0.5", "algorithm.reference_update_steps=1"],
        ),
        (
            [
                *("--algorithm.kl-coefficient", "0.1", "--algorithm.reference-update-steps", "1"),
                *("--model.lora.rank", "2"),
            ],
            ["algorithm.reference_update_steps=1", "model.lora.rank=2"],
        ),
        (["--algorithm.advantage", "none"], ["algorithm.advantage=none", "teacher.path"]),
        (["--algorithm.teacher-coefficient", "1"], ["algorithm.teacher_coefficient=1", "teacher.path"]),
        (["--teacher.path", "random:llama"], ["teacher.path=random:llama", "algorithm.teacher_coefficient"]),
        (["--constraint.limit", "1"], ["constraint.limit=1", "constraint.cost"]),
        (
            [
                *("--algorithm.advantage", "none", "--algorithm.teacher-coefficient", "1"),
                *("--teacher.path", "random:llama", "--rewards.normalise", "scale"),
            ],
            ["rewards.normalise=scale", "no effect", "algorithm.advantage=none"],
        ),
        (
            [
                *("--algorithm.advantage", "none", "--algorithm.teacher-coefficient", "1"),
                *("--teacher.path", "random:llama", "--constraint.cost", "length"),
            ],
            ["constraint.cost=length", "no effect", "algorithm.advantage=none"],
        ),
        (
            [
                *("--algorithm.advantage", "none", "--algorithm.teacher-coefficient", "1"),
                *("--teacher.path", "random:llama", "--algorithm.overlong-buffer", "1"),
            ],
            ["algorithm.overlong_buffer=1", "no effect", "algorithm.advantage=none"],
        ),
        (
            ["--algorithm.kl-coefficient", "0.1", "--algorithm.kl-gain", "0.2"],
            ["algorithm.kl_gain=0.2", "algorithm.kl_target=0.0", "Set it to 0.1"],
        ),
        (["--algorithm.teacher-in", "loss"], ["algorithm.teacher_in=loss", "Set it to 'advantage'"]),
        (
            ["--algorithm.overlong-penalty", "2"],
            ["algorithm.overlong_penalty=2", "algorithm.overlong_buffer"],
        ),
        (
            ["--algorithm.high-entropy-scope", "sequence"],
            ["algorithm.high_entropy_scope=sequence", "high_entropy_fraction=0.2"],
        ),
        (["--teacher.revision", "v2"], ["teacher.revision=v2", "teacher.path"]),
        (["--replay.max-age", "2"], ["replay.max_age=2", "replay.groups_per_step=nothing"]),
        (["--constraint.cost", "lenght"], ["lenght", "length"]),
        (
            ["--constraint.cost", "length", "--constraint.multiplier", "-1"],
            ["constraint.multiplier=-1", "at least 0"],
        ),
        (["--rewards.scale", "tny", "2"], ["rewards.scale", "tny", "tiny"]),
        (
            ["--rollout.extra-groups", "carry_over"],
            ["rollout.extra_groups=carry_over", "algorithm.group_filter=mixed_outcomes"],
        ),
        (
            ["--replay.groups-per-step", "1", "--algorithm.loss", "policy_gradient"],
            ["replay.groups_per_step", "algorithm.loss=policy_gradient", "algorithm.loss=clipped"],
        ),
        (["--replay.max-age", "0"], ["replay.max_age=0"]),
        (
            [
                *("--algorithm.group-filter", "mixed_outcomes", "--rollout.group-size", "1"),
                *("--algorithm.advantage", "reinforce"),
            ],
            ["algorithm.group_filter=mixed_outcomes", "rollout.group_size=1", "algorithm.group_filter=all"],
        ),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_settings_that_cannot_work_are_refused_with_the_cure(lightrft, flags, words):
    output = " ".join(refused(lightrft, *flags).split())
    for word in words:
        assert word in output


def test_a_vote_is_not_taken_for_a_held_out_score(lightrft, tmp_path):
    rows = "".join(json.dumps({"prompt": f"Say {n}.", "target": n}) + "\n" for n in range(20))
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "held.jsonl").write_text(rows.replace("Say", "Write"))
    files = [
        "--tasks.train",
        "file",
        "1",
        "--tasks.train-file",
        "train.jsonl",
        "--tasks.evaluate-file",
        "held.jsonl",
    ]
    vote = [*files, "--rewards.functions", "majority", "1"]
    output = " ".join(refused(lightrft, *vote).split())
    assert "task 'file' would be evaluated by 'majority'" in output
    assert "--tasks.rewards math 1" in output
    lightrft("train", "tiny", *SMALL, *vote, "--tasks.rewards", "number", "1")
    report = json.loads((tmp_path / "run" / "evaluation" / "after.json").read_text())
    assert report["file"]["score"]["mean"] == 0.0, (
        "by the number that is right, not by the vote of one answer"
    )


def test_a_teacher_of_other_tokens_is_refused_before_any_weight_loads(lightrft, tmp_path):
    folder = tiny_folder(tmp_path / "teacher")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    first, second = list(tokenizer["model"]["vocab"])[:2]
    words = tokenizer["model"]["vocab"]
    words[first], words[second] = words[second], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors").unlink()
    output = " ".join(
        refused(lightrft, "--algorithm.teacher-coefficient", "1", "--teacher.path", "./teacher").split()
    )
    assert "teacher.path=./teacher: 4 tokens differ" in output
    assert "same tokenizer" in output


SILENT_ENGINE = '''
from lightrft.engines.native import native_engine
from lightrft.types import Completion

def silent(module, processor, config):
    """The native engine, but the first answer of each group has no token."""
    engine = native_engine(module, processor, config)
    draw = engine.generate

    def generate(prompts, sampling, progress=None):
        groups = draw(prompts, sampling, progress)
        for answers in groups:
            answers[0] = Completion([], [], "stop", engine.weight_version)
        return groups

    engine.generate = generate
    return engine
'''


@pytest.mark.parametrize("layers", [["grpo", "entropy_tokens"], ["ppo"], ["rloo"]], ids=" ".join)
def test_answers_of_zero_tokens_are_judged_and_not_learned_from(lightrft, tmp_path, layers):
    (tmp_path / "engines.py").write_text(SILENT_ENGINE)
    flags = ["--rollout.engine", "engines.py:silent", "--rollout.prompts-per-step", "4"]
    groups = ["--rollout.group-size", "4", "--steps", "2", "--run", "run"]
    lightrft("train", "tiny", *layers, *PLAIN, *flags, *groups)
    for row in steps(tmp_path / "run"):
        assert row["counts/responses"] == 16
        assert row["grad_norm"] > 0
