"""Runs whose answers are judged by models: a reward model, a judge of its own, the policy itself, an engine from a file."""

import json
from dataclasses import replace

import pytest
import torch

from lightrft.config import Config, ModelConfig
from lightrft.models.load import load_processor
from lightrft.models.reward import load_reward_model, scores
from lightrft.rewards.function import Answer, Question
from lightrft.rewards.models import ScalarReward
from lightrft.runs.reader import Run
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
    run = Run(folder / "run")
    return [row for step in run.steps for row in run.responses(step)]


def test_a_reward_model_is_learned_from_and_held_in_the_score_phase(lightrft, tmp_path):
    reward_folder(tmp_path / "rm", "llama")
    options = ["--reward_model.paths", "rated", "rm", "--rewards.functions", "rated", "1", "length", "0"]
    out = lightrft("train", *SHORT, *options)
    (row,) = [line for line in out.splitlines() if "reward model rated weights" in line]
    assert [cell.strip() for cell in row.split("│")[3:7]] == ["", "x", "", ""], "rollout, score, sync, train"
    rewards = [row["reward/mean"] for row in steps_of(tmp_path)]
    assert len(rewards) == 2
    assert len({answer["reward"] for answer in answers_of(tmp_path)}) > 4


def two_models(folder):
    """One with the outputs general and cost, and one with a single output."""
    model = reward_folder(folder / "both", "llama", labels=2)
    model.config.id2label, model.config.label2id = {0: "general", 1: "cost"}, {"general": 0, "cost": 1}
    model.config.save_pretrained(folder / "both")
    reward_folder(folder / "one", "qwen2")


def test_rewards_of_two_models_are_those_of_each_alone_and_a_folder_named_twice_is_held_once(
    lightrft, tmp_path
):
    two_models(tmp_path)
    paths = ["--reward_model.paths", "general", "both", "harm", "both:cost", "sky", "one"]
    functions = ["--rewards.functions", "general", "1", "sky", "0.5", "--constraint.cost", "harm"]
    out = lightrft("train", *SHORT, *paths, *functions)
    rows = [line for line in out.splitlines() if "reward model" in line and "│" in line]
    assert [row.split("│")[1].strip() for row in rows] == [
        "reward model general+harm weights",
        "reward model sky weights",
    ]
    config, said = Config(model=ModelConfig(dtype="float32")), answers_of(tmp_path)
    for name, folder, place in (("general", "both", 0), ("harm", "both", 1), ("sky", "one", 0)):
        model = replace(config.model, path=str(tmp_path / folder))
        module, processor = load_reward_model(model), load_processor(model)
        ask = ScalarReward(lambda rows, module=module: scores(module, rows, 1000), processor, None)
        alone = ask([spoken(answer) for answer in said])
        assert [a["parts"][name] for a in said] == pytest.approx([row[place] for row in alone], abs=1e-5)
    for answer in said:
        parts = answer["parts"]
        assert answer["reward"] == pytest.approx(parts["general"] + 0.5 * parts["sky"], abs=2e-5)
    assert all("constraint/multiplier" in row for row in steps_of(tmp_path))


def spoken(row):
    question = Question("q", row["messages"], None, "tiny")
    return Answer(question, 0, [0], row["response"], row["finish"])


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("both:safe", "there is no output 'safe'; both has general, cost. Name one, e.g. both:general"),
        ("both:2", "there is no output '2'; both has general, cost"),
        ("both", "it has several outputs; both has general, cost"),
    ],
)
def test_an_output_that_a_reward_model_has_not_is_named_with_those_it_has(lightrft, tmp_path, path, told):
    two_models(tmp_path)
    (tmp_path / "both" / "model.safetensors").unlink()
    options = ["--reward_model.paths", "rated", path, "--rewards.functions", "rated", "1"]
    out = lightrft("train", *SHORT, *options, status=2)
    assert f"reward_model.paths.rated={path}: {told}" in " ".join(out.split())


def test_rewards_are_given_by_task_and_called_by_their_own_names(lightrft, tmp_path):
    rows = [{"prompt": f"Say {n}", "target": str(n)} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = ["--tasks.train", "tiny", "1", "file", "1", "--tasks.train-file", "rows.jsonl"]
    functions = ["--rewards.functions", "length", "-1", "tiny/same_kind", "1", "file/repetition", "2"]
    off = ["--evaluate.before-and-after", "false"]
    lightrft("train", *SHORT, *tasks, *functions, *off)
    parts = {(answer["source"], *sorted(answer["parts"])) for answer in answers_of(tmp_path)}
    assert parts == {("tiny", "length", "same_kind"), ("file", "length", "repetition")}
    told = "rewards.functions has 'chat/length', and 'chat' is not among tasks.train: tiny"
    out = lightrft("train", *SHORT, "--rewards.functions", "chat/length", "1", status=2)
    assert told in " ".join(out.split())


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
    options = ["--reward_model.paths", "rated", "rm", "--reward_model.chat-template", "plain.jinja"]
    lightrft("train", *SHORT, *options, "--rewards.functions", "rated", "1", *TOGETHER)
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
            ["--reward_model.paths", "rated", "rm"],
            "reward_model.paths.rated=rm has no effect without the reward 'rated'",
        ),
        (
            ["--reward_model.paths", "math", "rm"],
            "reward_model.paths has the key 'math', which is a built-in reward",
        ),
        (
            ["--reward_model.paths", "rated", "rm", "--rewards.functions", "ratde", "1"],
            "no reward named 'ratde'. Did you mean 'rated'",
        ),
        (["--reward_model.path", "rm"], "--reward-model.path is called --reward-model.paths now"),
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
            ["--reward_model.paths", "rated", "nowhere:cost", "--rewards.functions", "rated", "1"],
            "reward_model.paths.rated=nowhere: there is no such folder",
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


def test_parts_that_are_normalised_by_themselves_teach_the_same_whatever_the_scale_of_one(lightrft, tmp_path):
    (tmp_path / "big.py").write_text(
        "def kind(answer: str, num_tokens: int) -> float:\n    return num_tokens / 1000\n\n\n"
        "def big(answer: str, num_tokens: int) -> float:\n    return num_tokens * 1000.0\n"
    )
    for name in ("kind", "big"):
        functions = ["--rewards.functions", "same_kind", "1", f"big.py:{name}", "-0.5"]
        run = ["--steps", "1", "--run", name]
        lightrft("train", "tiny", "gdpo", *SHORT[1:], *functions, *run)
    rows = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("kind", "big")]
    first, second = (next(json.loads(line) for line in lines if "reward/mean" in line) for lines in rows)
    assert first["reward/mean"] != pytest.approx(second["reward/mean"])
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
