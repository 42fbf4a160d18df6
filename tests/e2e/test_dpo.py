"""`lightrft dpo` from the command line: it learns, it resumes to the same end, and every loss runs on every backend it may."""

from __future__ import annotations

import json
import random
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightrft.runs.reader import Run
from lightrft.tasks.tiny import pairs
from tests.distributed.test_strategies import needs_deepspeed
from tests.e2e.runs import Lightrft, assert_same_run, model_bytes, rows, summary, wait_until

QUIET = ["--log.tensorboard=false", "--log.curves=false", "--log.progress=false"]
SHORT = [
    "--steps",
    "6",
    "--checkpoint.every-steps",
    "2",
    "--evaluate.every-steps",
    "3",
    "--evaluate.limit",
    "12",
]
KTO = ["--loss", "kto", "--options", "beta", "0.1"]
FILE = ["--tasks.train", "file", "1", "--tasks.train-file", "rows.jsonl"]
UNPAIRED = ["--tasks.format", "lightrft.datasets.preferences:unpaired"]


@pytest.fixture(scope="session")
def preferring(server, tmp_path_factory):
    """The folder of one finished run of the layer `dpo_tiny` that tests read and never change."""
    folder = tmp_path_factory.mktemp("dpo")
    said = Lightrft(server, folder)("dpo", "dpo_tiny", "--log.progress=false", "--run", "run")
    (folder / "said.txt").write_text(said)
    return folder / "run"


def updates(run):
    return [row for row in rows(run) if "logp_shift/chosen" in row]


def test_it_learns_which_response_is_better_and_the_first_loss_is_ln_2(preferring):
    shares, steps = summary(preferring)["pair_accuracy"], updates(preferring)
    assert shares["before"] == 0.5  # all are equal while the policy is its reference
    assert shares["after"] > 0.95
    assert steps[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert (steps[0]["logp_shift/chosen"], steps[0]["logp_shift/mean_abs"]) == (0.0, 0.0)
    assert steps[-1]["logp_shift/chosen"] > steps[-1]["logp_shift/rejected"] + 5
    assert "longer wins" in (preferring.parent / "said.txt").read_text()


def test_held_out_pairs_are_saved_with_how_their_log_probs_moved(preferring):
    run = Run(preferring)
    assert run.steps == [0, 20, 40, 60]
    before, after = run.responses(0), run.responses(-1)
    assert [row["reward"] for row in before] == [0.0] * 32
    tokenizer = AutoTokenizer.from_pretrained(preferring / "model")
    model = AutoModelForCausalLM.from_pretrained(preferring / "model")
    for was, row in list(zip(before, after, strict=True))[::11]:
        prompt = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=True)
        ids = torch.tensor([[*prompt["input_ids"], *row["tokens"]["ids"]]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        logp = float(log_probs[len(prompt["input_ids"]) - 1 :].sum())
        assert row["parts"]["logp"] == pytest.approx(logp, abs=1e-4)
        assert (
            row["reward"]
            == row["parts"]["logp_shift"]
            == pytest.approx(logp - was["parts"]["logp"], abs=1e-3)
        )
    for group in run.groups(-1):
        better, worse = sorted(group.responses, key=lambda row: -row["parts"]["given_preference"])
        assert (
            better["parts"]["ordered"]
            == worse["parts"]["ordered"]
            == float(better["reward"] > worse["reward"])
        )
    correct = [row["correct"] for row in run.evaluation("after").responses]
    assert sum(correct) / len(correct) > 0.8


@pytest.mark.parametrize("variant", [[], ["lora", *KTO]], ids=["dpo", "lora-kto"])
def test_killed_after_a_random_step_it_goes_on_to_the_same_end(lightrft, tmp_path, variant):
    words = ["dpo", "dpo_tiny", *variant, *QUIET, *SHORT]
    lightrft(*words, "--run", "whole")
    running = lightrft.start(*words, "--run", "run")
    step = random.Random(str(variant)).randrange(1, 6)

    def reached():
        run = tmp_path / "run"
        return (run / "metrics.jsonl").exists() and any(u["step"] >= step for u in updates(run))

    wait_until(reached, running=running)
    running.send(signal.SIGKILL)
    running.wait()
    lightrft("dpo", "--resume", "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "flags"),
    [
        (KTO, ["--strategy.backend", "fsdp"]),
        ([], ["--strategy.backend", "fsdp", "--strategy.sequence-parallel", "2"]),
        pytest.param([], ["--strategy.backend", "zero3"], marks=needs_deepspeed),
    ],
    ids=["kto", "teams", "zero3"],
)
def test_two_processes_learn_what_one_does(lightrft, tmp_path, layers, flags):
    few = [*QUIET, "--steps", "2", "--evaluate.limit", "8", "--optimizer.schedule", "constant"]
    lightrft("dpo", "dpo_tiny", *layers, *few, "--run", "one")
    lightrft("dpo", "dpo_tiny", *layers, *few, *flags, "--processes", "2", "--run", "two")
    for mine, theirs in zip(updates(tmp_path / "two"), updates(tmp_path / "one"), strict=True):
        for name in ("loss", "kto/divergence"):
            assert mine.get(name, 0.0) == pytest.approx(theirs.get(name, 0.0), abs=2e-3)
        assert mine["logp_shift/chosen"] == pytest.approx(theirs["logp_shift/chosen"], abs=0.05)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        # AdamW's first steps are as long as the learning rate whatever the gradient: a sign near 0 may turn over.
        assert (weight - two[name]).abs().mean() < 1e-4, name


@pytest.mark.parametrize("loss", ["ipo", "simpo", "orpo", "mine.py:mine"])
def test_every_kind_of_loss_runs(lightrft, tmp_path, loss):
    (tmp_path / "mine.py").write_text(
        "def mine(values, grades, groups, *, power=2.0):\n    return (values - grades).abs() ** power\n"
    )
    flags = ["--loss", loss, "--sft_coefficient", "0.1", "--steps", "2", "--evaluate.limit", "6"]
    lightrft("dpo", "dpo_tiny", *QUIET, *flags, "--options", *(["power", "1"] if "mine" in loss else ["beta", "0.5"]),
             "--run", "run")  # fmt: skip
    first = rows(tmp_path / "run")[1]
    assert ("logp_shift/chosen" in first) == (loss not in ("simpo", "orpo"))


def test_unpaired_rows_with_labels_are_learned_by_kto(lightrft, tmp_path):
    lines = []
    for row in pairs("train", 0)[:300]:
        lines.append({"prompt": row["prompt"], "completion": row["chosen"], "label": True})
        talk = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["rejected"]},
        ]
        lines += [{"messages": talk, "label": False}] * (len(lines) % 3 > 0)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-40]))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[-40:]))
    held = ["--tasks.evaluate-file", "held.jsonl"]
    kto = ["--loss", "kto", "--options", "beta", "0.3"]
    lightrft("dpo", "dpo_tiny", *QUIET, *kto, *FILE, *held, *UNPAIRED, "--steps", "60", "--run", "run")
    assert "undesirable responses: they weigh " in (tmp_path / "run/log.txt").read_text()
    assert summary(tmp_path / "run")["pair_accuracy"]["after"] > 0.8


def test_a_checkpoint_is_exported_as_the_same_folder(lightrft, preferring, tmp_path):
    lightrft("export", preferring, "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model_bytes(preferring)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks.train", "tiny", "1"], "task 'tiny' has no graded responses to compare"),
        (["--loss", "dpoo"], "Did you mean 'dpo'"),
        (["--loss", "ipo", "--options", "label_smoothing", "0.1"], "options.label_smoothing: loss=ipo does not take it"),
        (["--options", "beta", "0"], "options.beta=0: must be above 0"),
        (["--loss", "robust", "--options", "label_smoothing", "0.5"], "must be at least 0 and below 0.5"),
        ([*KTO, "--batch-size", "1"], "batch_size=1: loss=kto measures"),
        (["--output", "safety"], "no response has a grade for output=safety"),
        (["--max-tokens", "1"], "no comparison is left"),
        (["--update.epochs", "2"], "update.epochs=2 has no effect"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_any_weight_loads(lightrft, flags, message):
    assert message in lightrft("dpo", "dpo_tiny", *QUIET, *flags, "--run", "run", status=2)


def test_other_commands_refuse_its_settings_and_config_prints_them(lightrft, preferring):
    assert "settings of `lightrft dpo`" in lightrft("sft", "--resume", preferring, status=2)
    assert "sft_coefficient: 0" in lightrft("config", "dpo", "dpo_tiny")
