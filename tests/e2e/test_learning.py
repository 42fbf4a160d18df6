"""It learns: the reward on questions never trained on rises far above chance, with each shipped algorithm."""

from __future__ import annotations

import json

import pytest
import torch

from lightrft.models.export import save_model
from lightrft.testing import tiny_model, tiny_processor
from tests.e2e.runs import PLAIN, Lightrft, steps, summary

FORTY_STEPS = [
    *("--steps", "40", "--optimizer.learning-rate", "3e-3", "--update.tokens-per-micro-batch", "2048"),
    *("--rollout.prompts-per-step", "8", "--rollout.group-size", "8", "--evaluate.limit", "60"),
    *("--checkpoint.every-steps", "0", "--log.trajectories-every-steps", "0"),
]


ALGORITHMS = [
    (["grpo"], []),
    (["dr_grpo"], []),
    (["dapo"], ["--algorithm.overlong-buffer", "2", "--update.num-minibatches", "2", "--steps", "56"]),
    (["rloo"], []),
    (["opo"], []),
    (["otb"], []),
    (["gspo"], ["--algorithm.clip", "0.003", "0.004"]),
    (["gmpo"], ["--update.num-minibatches", "2"]),
    (["cispo"], ["--update.num-minibatches", "2"]),
    (["sapo"], ["--update.num-minibatches", "2"]),
    (["cpgd"], ["--update.num-minibatches", "2"]),
    (["reinforce_pp_baseline"], []),
    (["reinforce_pp"], ["--rollout.prompts-per-step", "64", "--rollout.group-size", "1"]),
    (
        ["remax"],
        [
            "--rollout.prompts-per-step",
            "64",
            "--rollout.group-size",
            "1",
            "--algorithm.whiten",
            "true",
            "--algorithm.kl-coefficient",
            "0",
            "--steps",
            "70",
        ],
    ),
    (
        ["a_star_po"],
        ["--rollout.prompts-per-step", "64", "--rollout.group-size", "1", "--tasks.train-limit", "200"],
    ),
    (["pf_ppo"], []),
    (["pods"], []),
    (["online_dpo"], []),
    (["maxrl"], []),
    (["pass_at_k"], ["--algorithm.options", "k", "2", "right_from", "0.25", "--steps", "60"]),
    (["gpg"], ["--rollout.prompts-per-step", "16"]),
    (["luspo"], ["--algorithm.clip", "0.003", "0.004"]),
    (["dppo"], []),
    (["dcpo"], []),
    (["topr"], []),
    (["dro"], []),
    (["clip_cov"], []),
    (["kl_cov"], []),
    (["m2po"], []),
    (["vespo"], []),
    (["aspo", "opsm"], []),
    (
        ["ppo"],
        [
            "--rollout.prompts-per-step",
            "64",
            "--rollout.group-size",
            "1",
            "--critic.optimizer.learning-rate",
            "3e-3",
        ],
    ),
    (
        ["grpo", "entropy_tokens"],
        ["--algorithm.high-entropy-fraction", "0.5", "--rollout.prompts-per-step", "16", "--steps", "70"],
    ),
    (["grpo", "fire"], ["--rollout.first-token-temperature", "2", "--rollout.first-token-top-k", "0"]),
    (["grpo", "sampling_mask"], []),
    (["grpo", "prioritized"], []),
    (["grpo"], ["--algorithm.mismatch-correction", "truncate", "--algorithm.mismatch-level", "sequence"]),
    (["reinforce"], ["--rollout.prompts-per-step", "64", "--rollout.group-size", "1"]),
    (["grpo", "bf16"], []),
    (["dr_grpo"], ["--update.num-minibatches", "2", "--algorithm.group-filter", "mixed_outcomes"]),
]


@pytest.mark.parametrize(
    ("layers", "flags"),
    ALGORITHMS,
    ids=lambda value: " ".join(value),
)
def test_it_learns_to_answer_in_the_kind_of_the_question(lightrft, tmp_path, layers, flags):
    lightrft("train", "tiny", *layers, *PLAIN, *FORTY_STEPS, "--run", "run", *flags)
    assert_learned(tmp_path / "run")


def test_adapters_learn_it_too(lightrft, tmp_path):
    """On a model whose frozen head is sharp enough to prefer anything at all."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
    save_model(model, tiny_processor(), tmp_path / "model")
    lightrft("train", "tiny", "grpo", "lora", *PLAIN, *FORTY_STEPS, "--model", "./model", "--run", "run")
    assert_learned(tmp_path / "run")


def assert_learned(run):
    score = summary(run)["evaluation"]
    assert score["before"] < 0.2
    assert score["after"] > score["before"] + 0.3
    taken = steps(run)
    assert max(row["mismatch/mean_abs"] for row in taken) < 0.01, (
        "the engine samples from the weights being trained"
    )
    rewards = [row["reward/mean"] for row in taken]
    assert sum(rewards[-5:]) > 1.4 * sum(rewards[:5])


def test_with_learning_rate_zero_nothing_changes_and_the_engine_goes_on_agreeing(lightrft, tmp_path):
    """A difference between engine and trainer that grows although nothing is learned would be a bug."""
    flags = ["--optimizer.learning-rate", "0", "--steps", "4", "--optimizer.weight-decay", "0"]
    lightrft("train", "tiny", *PLAIN, "--run", "run", *flags)
    score = summary(tmp_path / "run")["evaluation"]
    assert score["before"] == score["after"]
    assert all(row["mismatch/max"] < 1e-5 for row in steps(tmp_path / "run"))
    assert not (tmp_path / "run" / "curves.png").exists(), "log.curves=false"


@pytest.fixture(scope="module")
def teacher(server, tmp_path_factory):
    """The folder of a model that has learned the task."""
    folder = tmp_path_factory.mktemp("teacher")
    Lightrft(server, folder)(
        "train", "tiny", "dr_grpo", *PLAIN, *FORTY_STEPS, "--steps", "60", "--run", "run"
    )
    return folder / "run" / "model"


@pytest.mark.parametrize("enters", ["advantage", "loss"])
def test_from_a_teacher_alone_it_learns_what_the_teacher_knows(lightrft, tmp_path, teacher, enters):
    """No reward is learned from: the advantage is the teacher's alone, or that of rewards scaled to 0."""
    base = ["--algorithm.advantage", "group_mean", "--rewards.scale", "tiny", "0"]
    base = [] if enters == "advantage" else base
    flags = ["--teacher.path", teacher, "--algorithm.teacher-in", enters]
    lightrft("train", "tiny", "distil", *PLAIN, *FORTY_STEPS, *flags, *base, "--run", "run")
    assert_learned(tmp_path / "run")
    gap = [row["teacher_kl"] for row in steps(tmp_path / "run")]
    assert sum(gap[-3:]) / 3 < 0.2 * gap[0]


def test_a_cost_stays_below_its_limit_while_the_reward_rises(lightrft, tmp_path):
    """Left alone the answers stay as long as they may be."""
    (tmp_path / "costs.py").write_text("def long(answer, num_tokens):\n    return num_tokens / 8\n")
    constraint = ["--constraint.cost", "costs.py:long", "--constraint.limit", "0.5"]
    rate = ["--constraint.multiplier", "0.7", "--constraint.learning-rate", "0.02", "--steps", "100"]
    lightrft("train", "tiny", "dr_grpo", *PLAIN, *FORTY_STEPS, *constraint, *rate, "--run", "run")
    taken = steps(tmp_path / "run")
    assert taken[0]["reward/long"] > 0.9
    assert sum(row["reward/long"] for row in taken[-20:]) / 20 < 0.5
    first, last = (sum(row["reward/same_kind"] for row in part) / 20 for part in (taken[:20], taken[-20:]))
    assert last > 2.5 * first


NAMES = [a + b for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdef"]


def half_sure(folder):
    """A model that has read off the last digit of a question, but says another one in two of five answers."""
    model, processor = tiny_model("llama"), tiny_processor()
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        rows = []
        for name, digit in zip(
            torch.randint(len(NAMES), (32,), generator=draw),
            torch.randint(3, (32,), generator=draw),
            strict=True,
        ):
            wrong = torch.rand((), generator=draw) < 0.4
            said = (digit + torch.randint(1, 3, (), generator=draw)) % 3 if wrong else digit
            question = processor.tokens([{"role": "user", "content": f"{NAMES[name]}{digit + 1}"}])
            rows.append([*question, *processor.tokenizer.encode(str(int(said) + 1)), *processor.stop_ids])
        tokens = torch.tensor(rows)
        logits = model(input_ids=tokens[:, :-1]).logits[:, -2:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, -2:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, processor, folder)


def test_from_votes_alone_it_learns_to_say_what_it_mostly_says(lightrft, tmp_path):
    """The questions it learns from have wrong labels throughout, so that none can have helped."""
    half_sure(tmp_path / "model")
    for file, names, shift in (("train.jsonl", NAMES[::2], 1), ("held.jsonl", NAMES[1::2], 0)):
        rows = [
            {"prompt": f"{name}{n + 1}", "target": str((n + shift) % 3 + 1)}
            for name in names
            for n in range(3)
        ]
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [
        "--tasks.train",
        "file",
        "1",
        "--tasks.train-file",
        "train.jsonl",
        "--tasks.rewards",
        "number",
        "1",
    ]
    drawn = ["--evaluate.samples", "4", "--evaluate.temperature", "1", "--tasks.evaluate-file", "held.jsonl"]
    votes = ["--rollout.group-size", "16", "--algorithm.options", "responses_to_learn_from", "8"]
    few = ["--rollout.max-tokens", "3", "--optimizer.learning-rate", "1e-3", "--steps", "20", "--run", "run"]
    lightrft(
        "train", "tiny", "ttrl", *PLAIN, *FORTY_STEPS, "--model", "./model", *files, *drawn, *votes, *few
    )
    score = summary(tmp_path / "run")["evaluation"]
    assert 0.4 < score["before"] < 0.75
    assert score["after"] > score["before"] + 0.3
