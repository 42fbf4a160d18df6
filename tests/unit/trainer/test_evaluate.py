"""Held-out evaluation with the real engine on a tiny model."""

import json
from dataclasses import replace

import pytest

from lightrft.config import EvaluateConfig, ModelConfig, NativeEngineConfig, RewardConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.load import load_model
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardRunner
from lightrft.tasks.base import Measure
from lightrft.tasks.table import Records, Task, load_task
from lightrft.testing import tiny_processor, tiny_prompt
from lightrft.trainer.evaluate import EvalSet, Evaluator
from lightrft.types import Record

PROCESSOR = tiny_processor()
REWARDS = """
def length(answer: str, num_tokens: int) -> float:
    return float(num_tokens == 4)

def half(answer: str) -> float:
    return 0.5

def fails_on_long(answer: str, num_tokens: int) -> float:
    if num_tokens > 3:
        raise ValueError("too long for me")
    return 1.0
"""


def eval_set(name, questions, weight=1.0, first=0):
    prompts = [tiny_prompt(5 + n, seed=first + n, source=name) for n in range(questions)]
    return EvalSet(Task(name, lambda *_: Records(), {}, lambda record: ""), prompts, weight)


@pytest.fixture(scope="module")
def engine():
    return NativeEngine(
        load_model(ModelConfig(path="random:llama")), PROCESSOR.stop_ids, PROCESSOR.text, NativeEngineConfig()
    )


@pytest.fixture
def evaluator(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)

    def make(eval_sets, rewards, world=None, **options):
        judge = RewardRunner(
            {name: {f"{tmp_path}/rewards.py:{reward}": 1.0} for name, reward in rewards.items()},
            RewardConfig(workers=0, on_failure="drop"),
        )
        return Evaluator(
            eval_sets=eval_sets,
            rewards=judge,
            processor=PROCESSOR,
            config=EvaluateConfig(**options),
            max_tokens=4,
            stop=(),
            seed=0,
            folder=tmp_path / "evaluation",
            world=world or World(),
        )

    return make


def reported(evaluator, groups, label):
    """The scores of answers, after they were judged."""
    evaluator.rewards([t for group in groups for t in group])
    return evaluator.report(groups, label)


def test_scores_by_task_and_their_weighted_mean(engine, evaluator, tmp_path):
    found = evaluator([eval_set("a", 3), eval_set("b", 2, weight=3.0, first=9)], {"a": "length", "b": "half"})
    scores = reported(found, found.sample(engine), "before")
    assert scores == {"a": 1.0, "b": 0.5, "mean": (1.0 * 1 + 0.5 * 3) / 4}
    report = json.loads((tmp_path / "evaluation" / "before.json").read_text())
    assert report["a"]["pass@1"]["mean"] == 1.0
    assert report["b"]["pass@1"]["mean"] == 0.0, "half marks are not right"
    assert report["b"]["questions"] == 2


def test_every_answer_is_saved_with_its_question(engine, evaluator, tmp_path):
    found = evaluator([eval_set("a", 3)], {"a": "length"}, samples=2, temperature=1.0)
    groups = found.sample(engine)
    reported(found, groups, "after")
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "after.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["prompt-0"] * 2 + ["prompt-1"] * 2 + ["prompt-2"] * 2
    assert [row["response"] for row in rows] == [t.answer for group in groups for t in group]
    assert set(rows[0]) == {
        "id",
        "source",
        "messages",
        "target",
        "response",
        "finish",
        "length",
        "reward",
        "parts",
        "correct",
    }


def test_the_same_questions_get_the_same_answers_each_time(engine, evaluator):
    found = evaluator([eval_set("a", 3)], {"a": "length"}, samples=2, temperature=1.0)
    one, other = found.sample(engine), found.sample(engine)
    assert [[t.token_ids for t in group] for group in one] == [
        [t.token_ids for t in group] for group in other
    ]
    assert one[0][0].token_ids != one[0][1].token_ids


def test_answers_that_cannot_be_judged_are_counted_and_not_scored(engine, evaluator, tmp_path):
    found = evaluator([eval_set("a", 3)], {"a": "fails_on_long"})
    groups = found.sample(engine)
    groups[0][0].token_ids, groups[0][0].mask = groups[0][0].token_ids[:2], [True] * 2
    scores = reported(found, groups, "x")
    report = json.loads((tmp_path / "evaluation" / "x.json").read_text())
    assert scores["a"] == 1.0
    assert report["a"]["questions"] == 1
    assert report["a"]["failed_rewards"] == 2
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "x.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [1.0, None, None]


def test_each_rank_asks_its_own_share(engine, evaluator):
    eval_sets = [eval_set("a", 5)]
    shares = [evaluator(eval_sets, {"a": "length"}, world=World(rank, 2)).sample(engine) for rank in (0, 1)]
    asked = [[group[0].prompt.id for group in groups] for groups in shares]
    assert asked == [["prompt-0", "prompt-2", "prompt-4"], ["prompt-1", "prompt-3"]]


def test_the_majority_counts_answers_that_mean_the_same(engine, evaluator, tmp_path):
    found = evaluator(
        [eval_set("a", 2)], {"a": "length"}, samples=3, temperature=1.0, pass_k=[1, 3], majority_k=[3]
    )
    reported(found, found.sample(engine), "x")
    report = json.loads((tmp_path / "evaluation" / "x.json").read_text())["a"]
    assert set(report) >= {"score", "pass@1", "pass@3", "maj@3"}
    assert report["pass@3"]["mean"] >= report["pass@1"]["mean"]


def test_a_task_of_the_house_can_be_asked(engine, evaluator):
    task = load_task("tiny")
    records = [
        Record(id=str(n), messages=[{"role": "user", "content": q}], target=q, source="tiny")
        for n, q in enumerate(["abc", "123"])
    ]
    found = evaluator([EvalSet(task, [PROCESSOR.prompt(r) for r in records], 1.0)], {"tiny": "half"})
    assert reported(found, found.sample(engine), "x") == {"tiny": 0.5, "mean": 0.5}


def test_other_measures_stand_beside_the_score_and_prompts_count_by_their_weight(engine, evaluator, tmp_path):
    plain = eval_set("a", 2)
    prompts = [
        replace(prompt, target=target) for prompt, target in zip(plain.prompts, ([1], [1, 2, 3]), strict=True)
    ]
    (tmp_path / "seen.py").write_text(
        "def seen(answer: str, target: list) -> float:\n    return float(len(target) == 1)\n"
    )
    name = f"{tmp_path}/seen.py:seen"
    task = replace(plain.task, measures={"each": Measure(name), "by size": Measure(name, len)})
    found = evaluator([EvalSet(task, prompts, 1.0)], {"a": "half"})
    found.rewards = RewardRunner(
        {"a": {f"{tmp_path}/rewards.py:half": 1.0, name: 0.0}}, RewardConfig(workers=0)
    )
    assert reported(found, found.sample(engine), "before")["a"] == 0.5, (
        "a reward with weight 0 is only watched"
    )
    report = json.loads((tmp_path / "evaluation" / "before.json").read_text())["a"]
    assert (report["each"]["mean"], report["by size"]["mean"]) == (0.5, 0.25)
    assert 0 <= report["by size"]["low"] <= 0.25 <= report["by size"]["high"] <= 1
