"""Runs whose answers are judged by models: a reward model, a judge of its own, the policy itself, an engine from a file."""

import json

import pytest
import torch

from lightrft.testing import tiny_processor
from tests.e2e.runs import PLAIN
from tests.unit.models.test_reward import reward_folder

SHORT = ["tiny", *PLAIN, "--steps", "2", "--checkpoint.every-steps", "0", "--run", "run"]
LONG = ["--judge.max-length", "2000"]
"""Tiny models are made for 256 tokens."""
RATED = [
    *LONG,
    "--judge.max-tokens",
    "64",
    "--judge.samples",
    "8",
    "--judge.temperature",
    "1",
    "--judge.score-pattern",
    "([0-9])",
]
"""Some of the bytes that a random model says are digits."""
ENGINE = '''
"""Says for every question how many letters e it holds."""
from lightrft.types import Completion


class Counting:
    def __init__(self, module, processor, config):
        self.processor = processor

    def generate(self, prompts, sampling, progress=None):
        return [[self.reply(prompt)] for prompt in prompts]

    def reply(self, prompt):
        said = self.processor.text(prompt.token_ids)
        text = f"Score: {min(10, said.split('[Answer]')[1].split('[End')[0].count('e'))}"
        tokens = self.processor.tokenizer.encode(text, add_special_tokens=False)
        return Completion(tokens, [0.0] * len(tokens), "stop")
'''


def steps_of(folder):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "reward/mean" in row]


def answers_of(folder):
    files = sorted((folder / "run" / "trajectories").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_reward_model_is_learned_from_and_held_in_the_score_phase(lightrft, tmp_path):
    reward_folder(tmp_path / "rm", "llama")
    options = ["--reward_model.path", "rm", "--rewards.functions", "reward_model", "1", "length", "0"]
    out = lightrft("train", *SHORT, *options)
    (row,) = [line for line in out.splitlines() if "reward model weights" in line]
    assert [cell.strip() for cell in row.split("│")[3:7]] == ["", "x", "", ""], "rollout, score, sync, train"
    rewards = [row["reward/mean"] for row in steps_of(tmp_path)]
    assert len(rewards) == 2
    assert len({answer["reward"] for answer in answers_of(tmp_path)}) > 4


@pytest.mark.parametrize("path", ["policy", "random:llama"])
def test_a_model_judges_in_words(lightrft, tmp_path, path):
    options = [
        "--judge.path",
        path,
        *RATED,
        "--rewards.functions",
        "judge",
        "1",
        "--rewards.on-failure",
        "drop",
    ]
    out = lightrft("train", *SHORT, *options)
    assert ("judge weights" in out) == (path != "policy")
    assert len(steps_of(tmp_path)) == 2
    for row in steps_of(tmp_path):
        assert 0 < row["reward/mean"] < 1
        assert row["reward/judge"] == pytest.approx(row["reward/mean"])
        drawn = row["length/mean"] * row["counts/responses"]
        judging = row["rollout/tokens_per_second"] * row["seconds/rollout"] / drawn
        assert (judging > 3) == (path == "policy"), "the rate of a rollout counts no replies of a judge"


TOGETHER = ["--processes", "2", "--strategy.backend", "fsdp"]


def test_two_processes_rate_their_answers_as_transformers_does(lightrft, tmp_path):
    """By a template of its own, other than the one in its folder."""
    model = reward_folder(tmp_path / "rm", "llama")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    (tmp_path / "plain.jinja").write_text(template)
    options = ["--reward_model.path", "rm", "--reward_model.chat-template", "plain.jinja"]
    lightrft("train", *SHORT, *options, "--rewards.functions", "reward_model", "1", *TOGETHER)
    assert len(steps_of(tmp_path)) == 2
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = template
    for answer in answers_of(tmp_path):
        said = [*answer["messages"], {"role": "assistant", "content": answer["response"]}]
        tokens = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
        with torch.no_grad():
            right = float(model(torch.tensor([tokens])).logits[0, 0])
        assert answer["reward"] == pytest.approx(right, abs=1e-4)
    assert len(answers_of(tmp_path)) > 8


def test_two_processes_with_a_policy_in_pieces_let_it_judge_in_words(lightrft, tmp_path):
    options = [*RATED, "--rewards.functions", "judge", "1", "--rewards.on-failure", "drop"]
    lightrft("train", *SHORT, "--judge.path", "policy", *options, *TOGETHER)
    assert [0 < row["reward/judge"] < 1 for row in steps_of(tmp_path)] == [True, True]


def test_an_engine_from_a_file_judges_and_a_run_resumes_with_it(lightrft, tmp_path):
    (tmp_path / "counting.py").write_text(ENGINE)
    options = [
        "--judge.path",
        "random:llama",
        "--judge.engine",
        "counting.py:Counting",
        *LONG,
        "--rewards.functions",
        "judge",
        "1",
    ]
    lightrft("train", *SHORT, *options)
    for answer in answers_of(tmp_path):
        assert answer["reward"] == pytest.approx(min(10, answer["response"].count("e")) / 10)
    lightrft("train", "--resume", "run", "--steps", "3")
    assert len(steps_of(tmp_path)) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rewards.functions", "judge", "1"], "reward 'judge' needs a model. Set judge.path"),
        (
            ["--reward_model.path", "rm"],
            "reward_model.path=rm has no effect without the reward 'reward_model'",
        ),
        (
            [
                "--judge.path",
                "policy",
                "--rewards.functions",
                "judge",
                "1",
                "--rollout.overlap-rewards",
                "true",
                "--rewards.workers",
                "1",
            ],
            "rollout.overlap_rewards with the reward 'judge'",
        ),
        (
            ["--judge.path", "x", "--judge.engine", "vllm", "--rewards.functions", "judge", "1"],
            "judge.engine=vllm: a judge's engine is native, or the import path",
        ),
        (
            ["--judge.path", "nowhere", "--rewards.functions", "judge", "1"],
            "judge.path=nowhere: there is no such folder",
        ),
        (
            [
                "--judge.path",
                "random:llama",
                "--judge.chat-template",
                "no.jinja",
                "--rewards.functions",
                "judge",
                "1",
            ],
            "judge.chat_template=no.jinja: there is no such file",
        ),
        (
            ["--reward_model.path", "nowhere", "--rewards.functions", "reward_model", "1"],
            "reward_model.path=nowhere: there is no such folder",
        ),
        (
            ["--judge.path", "policy", "--judge.chat-template", "x", "--rewards.functions", "judge", "1"],
            "judge.chat_template=x has no effect with judge.path=policy",
        ),
        (
            [
                "--judge.path",
                "random:llama",
                "--judge.max-tokens",
                "999",
                "--rewards.functions",
                "judge",
                "1",
            ],
            "judge.max_tokens=999 leaves no room for a prompt: the judge takes",
        ),
        (
            ["--judge.samples", "2", "--judge.temperature", "1"],
            "judge.samples=2 has no effect with judge.path=nothing",
        ),
    ],
)
def test_what_cannot_judge_is_named_before_weights_load(lightrft, options, told):
    out = lightrft("train", *SHORT, *options, status=2)
    assert told in " ".join(out.split())
