"""`lightrft reward` from the command line: it learns, it resumes to the same end, and what it leaves behind scores and teaches."""

from __future__ import annotations

import json
import random
import re
import signal
from typing import Optional

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lightrft.config import ModelConfig
from lightrft.console.web import answers
from lightrft.models.reward import load_reward_model, scores
from lightrft.runs.reader import Run
from lightrft.tasks.tiny import pairs
from tests.distributed.test_strategies import needs_deepspeed
from tests.e2e.runs import PLAIN, Lightrft, assert_same_run, model_bytes, rows, summary, wait_until
from tests.published import published

QUIET = ["--log.tensorboard=false", "--log.curves=false", "--log.progress=false"]
SHORT = [
    "--steps",
    "8",
    "--checkpoint.every-steps",
    "3",
    "--evaluate.every-steps",
    "4",
    "--evaluate.limit",
    "12",
]
VARIANTS = {
    "plain": [],
    "lora": ["lora"],
    "bf16": ["bf16"],
    "centred": ["--options", "centring", "0.01", "margin", "0.5", "--update.tokens-per-micro-batch", "30"],
}


def arguments(variant):
    layers = [x for x in VARIANTS[variant] if x in ("lora", "bf16")]
    return [
        "reward",
        "reward_tiny",
        *layers,
        *QUIET,
        *SHORT,
        *(x for x in VARIANTS[variant] if x not in layers),
    ]


@pytest.fixture(scope="session")
def rated(server, tmp_path_factory):
    """The folder of one finished run of the layer `reward_tiny` that tests read and never change."""
    folder = tmp_path_factory.mktemp("reward")
    said = Lightrft(server, folder)("reward", "reward_tiny", "--log.progress=false", "--run", "run")
    (folder / "said.txt").write_text(said)
    return folder / "run"


def test_its_steps_can_be_looked_at(lightrft, rated):
    said = lightrft("view", str(rated)).splitlines()
    assert said[0].split() == [
        "step",
        "loss",
        "pairs",
        "right",
        "gradient",
        "rate",
        "length",
        "held-out",
        "pairs",
    ]
    assert [line.split()[0] for line in said[1:] if line.strip()][:2] == ["0", "1"]
    last = f"{summary(rated)['pair_accuracy']['after']:.1%}"
    assert any(last in line for line in said)


def test_held_out_pairs_are_saved_with_their_scores(rated):
    run, ours = Run(rated), load_reward_model(ModelConfig(path=str(rated / "model")))
    assert run.steps == [0, 50, 100, 150, 200]
    tokenizer = AutoTokenizer.from_pretrained(rated / "model")
    rows = run.responses(-1)
    assert len(rows) == 32
    talks = [[*row["messages"], {"role": "assistant", "content": row["response"]}] for row in rows]
    tokens = [tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"] for talk in talks]
    found = [score[0] for score in scores(ours, tokens, 10_000)]
    assert [row["reward"] for row in rows] == pytest.approx(found, abs=1e-4)
    for group in run.groups(-1):
        better, worse = sorted(group.responses, key=lambda row: -row["parts"]["given_score"])
        assert better["parts"]["ordered"] == float(better["parts"]["score"] > worse["parts"]["score"])
    shown = answers.answer([run], "0/evaluation/after")["responses"]
    assert sum(row["correct"] for row in shown) / len(shown) > 0.8


def test_the_check_shows_where_it_reads_its_score_and_what_right_answers_get(lightrft, rated):
    model = ["--reward_model.paths", "rated", str(rated / "model"), "--rewards.functions", "rated", "1"]
    said = " ".join(lightrft.start("check", "tiny", *model).wait().output.split())
    assert "rated reads a score at »the token«" in said
    found = re.search(r"rated: right answers get (\S+) on average, those to other prompts (-?[\d.]+)", said)
    assert float(found[1]) > 0 > float(found[2])


def test_a_critic_begins_with_what_a_reward_model_says_on_one_process_and_on_two(lightrft, rated, tmp_path):
    """A new critic says 0 of every state before its first update."""
    critic = [
        "tiny",
        "ppo",
        *QUIET,
        "--steps",
        "1",
        "--critic.path",
        str(rated / "model"),
        "--critic.optimizer.learning-rate",
        "0",
    ]
    lightrft("train", *critic, "--evaluate.before-and-after", "false", "--run", "one")
    lightrft(
        "train",
        *critic,
        "--evaluate.before-and-after",
        "false",
        "--strategy.backend",
        "fsdp",
        "--processes",
        "2",
        "--run",
        "two",
    )
    one, two = (rows(tmp_path / run)[0]["critic/value"] for run in ("one", "two"))
    assert abs(one) > 0.1
    assert one == pytest.approx(two, abs=1e-3)


def updates(run):
    return [row for row in rows(run) if "pairs/accuracy" in row]


def test_it_learns_which_response_is_better_where_lengths_say_nothing(rated):
    shares = summary(rated)["pair_accuracy"]
    assert 0.35 < shares["before"] < 0.65
    assert shares["after"] > 0.95
    found = summary(rated)["pairs_by_task"]["after"]
    assert found["tiny_pairs/score/pairs"] == 240
    assert max(found["tiny_pairs/score/longer_wins"], found["tiny_pairs/score/shorter_wins"]) < 0.55
    assert found["tiny_pairs/score/accuracy_balanced"] > 0.95
    said = (rated.parent / "said.txt").read_text()
    assert "held-out pairs (after), tiny_pairs, score: " in said
    assert "95 % interval" in said
    assert "longer wins" in said


@pytest.fixture(scope="module")
def talks():
    """25 pairs as conversations, the better one of each first."""
    return [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for row in pairs("evaluate", 0)[:25]
        for side in ("chosen", "rejected")
    ]


@pytest.fixture(scope="module")
def known(rated, talks):
    """Their tokens, and the scores that we compute."""
    tokenizer = AutoTokenizer.from_pretrained(rated / "model")
    tokens = [tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"] for talk in talks]
    ours = load_reward_model(ModelConfig(path=str(rated / "model")))
    found = [row[0] for row in scores(ours, tokens, 10_000)]
    assert max(found) - min(found) > 2
    return tokens, found


def in_batches(folder, tokens, side, score):
    """What `score` makes of eight padded conversations at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    found = []
    for start in range(0, len(tokens), 8):
        padded = tokenizer.pad({"input_ids": tokens[start : start + 8]}, return_tensors="pt")
        with torch.no_grad():
            found += score(padded)
    return found


@pytest.mark.parametrize("side", ["right", "left"])
def test_plain_transformers_scores_as_we_do_padded_on_either_side(rated, known, side):
    tokens, ours = known
    plain = AutoModelForSequenceClassification.from_pretrained(rated / "model")
    assert plain.config.architectures == ["LlamaForSequenceClassification"]
    assert (plain.config.num_labels, plain.config.id2label) == (1, {0: "score"})
    found = in_batches(rated / "model", tokens, side, lambda padded: plain(**padded).logits[:, 0].tolist())
    assert found == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_openrlhf_s_loader_reads_the_folder_and_scores_as_we_do(rated, known, side):
    tokens, ours = known
    needs = {"nn": torch.nn, "torch": torch, "AutoConfig": AutoConfig, "Optional": Optional}
    (make,) = published("openrlhf", "openrlhf/models/model.py", ("_get_reward_model",), needs)
    config = AutoConfig.from_pretrained(rated / "model")
    config.normalize_reward = False
    body = AutoModel._model_mapping[type(config)]
    theirs = make(body.__base__, body, "score").from_pretrained(rated / "model", config=config)

    def score(padded):
        return theirs(padded["input_ids"], padded["attention_mask"]).tolist()

    assert in_batches(rated / "model", tokens, side, score) == pytest.approx(ours, abs=1e-4)


def test_trl_takes_the_folder_and_counts_the_same_margins(rated, talks, known, tmp_path):
    """Its trainer begins with our model: the measures of its evaluation are those of our scores."""
    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install --no-deps trl)")
    ours = torch.tensor(known[1]).view(-1, 2)
    rows = datasets.Dataset.from_list(
        [{"chosen": better, "rejected": worse} for better, worse in zip(talks[::2], talks[1::2], strict=True)]
    )
    settings = {"report_to": "none", "use_cpu": True, "per_device_eval_batch_size": 25, "bf16": False}
    trainer = trl.RewardTrainer(
        model=str(rated / "model"),
        args=trl.RewardConfig(str(tmp_path), **settings),
        train_dataset=rows,
        eval_dataset=rows,
    )
    found = trainer.evaluate()
    gaps = ours[:, 0] - ours[:, 1]
    assert found["eval_margin"] == pytest.approx(float(gaps.mean()), abs=1e-4)
    assert found["eval_mean_reward"] == pytest.approx(float(ours.mean()), abs=1e-4)
    assert found["eval_accuracy"] == pytest.approx(float((gaps > 0).float().mean()))
    assert found["eval_loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(gaps).mean()), abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_after_a_random_step_it_goes_on_to_the_same_end(lightrft, tmp_path, variant):
    lightrft(*arguments(variant), "--run", "whole")
    running = lightrft.start(*arguments(variant), "--run", "run")
    step = random.Random(variant).randrange(1, 8)

    def reached():
        return (tmp_path / "run/metrics.jsonl").exists() and any(
            u["step"] >= step for u in updates(tmp_path / "run")
        )

    wait_until(reached, running=running)
    running.send(signal.SIGKILL)
    running.wait()
    lightrft("reward", "--resume", "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "together",
    [
        ["--strategy.backend", "fsdp"],
        ["--strategy.backend", "fsdp", "--strategy.sequence-parallel", "2"],
        ["lora", "--strategy.backend", "fsdp"],
        pytest.param(["--strategy.backend", "zero3"], marks=needs_deepspeed),
    ],
    ids=["fsdp", "teams", "lora", "zero3"],
)
def test_two_processes_learn_what_one_does(lightrft, tmp_path, together):
    layers, flags = [x for x in together if x == "lora"], [x for x in together if x != "lora"]
    few = [
        *QUIET,
        "--steps",
        "4",
        "--evaluate.every-steps",
        "0",
        "--evaluate.limit",
        "16",
        "--optimizer.schedule",
        "constant",
    ]
    lightrft("reward", "reward_tiny", *layers, *few, "--run", "one")
    lightrft("reward", "reward_tiny", *layers, *few, *flags, "--processes", "2", "--run", "two")
    for mine, theirs in zip(updates(tmp_path / "two"), updates(tmp_path / "one"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=2e-3)
        assert mine["pairs/accuracy"] == pytest.approx(theirs["pairs/accuracy"], abs=0.07)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        # AdamW's first steps are as long as the learning rate whatever the gradient: a sign near 0 may turn over.
        assert (weight - two[name]).abs().mean() < 1e-4, name
    assert (
        summary(tmp_path / "two")["pair_accuracy"]["before"]
        == summary(tmp_path / "one")["pair_accuracy"]["before"]
    )


def test_a_general_and_a_cost_output_are_learned_on_one_body_and_each_is_a_reward(lightrft, tmp_path):
    """With the columns of Safe-RLHF: digits are better, capitals are unsafe."""
    lines = []
    for row in pairs("train", 0)[:300]:
        sides = [row["chosen"], row["rejected"]]
        safe = [not side.isupper() for side in sides]
        safer = 0 if safe[0] else 1
        lines.append(
            {
                "prompt": row["prompt"],
                "response_0": sides[0],
                "response_1": sides[1],
                "better_response_id": 0,
                "safer_response_id": safer,
                "is_response_0_safe": safe[0],
                "is_response_1_safe": safe[1],
            }
        )
    for file, part in (("train.jsonl", lines[:240]), ("held.jsonl", lines[240:])):
        (tmp_path / file).write_text("".join(json.dumps(line) + "\n" for line in part))
    files = [
        "--tasks.train",
        "file",
        "1",
        "--tasks.train-file",
        "train.jsonl",
        "--tasks.evaluate-file",
        "held.jsonl",
    ]
    kind = [
        "--tasks.format",
        "lightrft.datasets.preferences:saferlhf",
        "--outputs",
        "general",
        "cost",
        "--signed",
        "cost",
    ]
    output = lightrft("reward", "reward_tiny", *QUIET, *files, *kind, "--steps", "60", "--run", "run")
    assert "sign " in output
    found = summary(tmp_path / "run")["pairs_by_task"]["after"]
    assert found["file/cost/sign_accuracy"] > max(0.9, found["file/cost/sign_base_rate"])
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["id2label"] == {"0": "general", "1": "cost"}
    options = ["--reward_model.paths", "cost", "run/model", "--rewards.functions", "cost", "-1"]
    more = ["--steps", "1", "--run", "rl"]
    lightrft("train", "tiny", *PLAIN, *options, *more)
    again = ["--model", "run/model", "--steps", "1", "--run", "again"]
    lightrft("reward", "reward_tiny", *QUIET, *files, *kind, *again)
    before, after = (summary(tmp_path / run)["pair_accuracy"] for run in ("again", "run"))
    assert before["before"] == pytest.approx(after["after"], abs=1e-3)
    lightrft("export", "run", "cost", "--output", "cost")
    both, alone = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        for folder in ("run/model", "cost")
    )
    asked = torch.tensor([list(b"AB"), list(b"12")])
    assert (alone.config.num_labels, alone.config.id2label) == (1, {0: "cost"})
    torch.testing.assert_close(alone(asked).logits[:, 0], both(asked).logits[:, 1])
    assert "--output safe: the run trained general, cost" in lightrft(
        "export", "run", "other", "--output", "safe", status=2
    )


def test_a_checkpoint_is_exported_as_the_same_folder(lightrft, rated, tmp_path):
    lightrft("export", rated, "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model_bytes(rated)
    names = ("config.json", "tokenizer_config.json")
    assert [(tmp_path / "out" / n).read_text() == (rated / "model" / n).read_text() for n in names] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks.train", "tiny", "1"], "task 'tiny' has no graded responses to compare"),
        (["--tasks.train", "file", "1"], "tasks.train_file"),
        (["--loss", "bradly_terry"], "Did you mean 'bradley_terry'"),
        (["--options", "margins", "1"], "options.margins: loss=bradley_terry does not take it"),
        (["--options", "centring", "-0.1"], "options.centring=-0.1: must be at least 0"),
        (["--outputs", "score", "cost"], "'cost' has no grades that loss=bradley_terry learns from"),
        (["--signed", "cost"], "'cost' is none of outputs=['score']"),
        (["--update.num-minibatches", "2"], "update.num_minibatches=2 has no effect"),
        (["--update.logits-per-chunk", "4096"], "update.logits_per_chunk=4096 has no effect"),
        (["--max-tokens", "1"], "no comparison is left"),
    ],
)
def test_a_mistake_is_told_before_any_weight_loads(lightrft, flags, message):
    assert message in lightrft("reward", "reward_tiny", *QUIET, *flags, "--run", "run", status=2)


def test_other_commands_refuse_its_settings_and_config_prints_them(lightrft, rated):
    assert "settings of `lightrft reward`" in lightrft("sft", "--resume", rated, status=2)
    assert "signed: []" in lightrft("config", "reward", "reward_tiny")
