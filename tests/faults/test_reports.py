"""What a run reports: pass@k, maj@k and metrics say what happened, with several rewards and tasks too."""

import pytest

from lightrft.config import EvaluateConfig, RewardConfig
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardRunner
from lightrft.tasks.table import Records, Task
from lightrft.testing import tiny_processor
from lightrft.trainer.evaluate import EvalSet, Evaluator
from lightrft.trainer.metrics import describe
from lightrft.types import Prompt, Trajectory
from tests.faults.small_runs import begin


def answered(*texts, target, source="t", group=0):
    prompt = Prompt(f"q{group}", [1], [], target, source)
    return [Trajectory(prompt, group, [1], [True], [0.0], "stop", answer=text) for text in texts]


def estimates(folder, rewards, *groups, majority_k=(), extract=None):
    task = Task("t", lambda *_: Records(), rewards, lambda record: "", extract=extract)
    judge = RewardRunner({"t": rewards}, RewardConfig(workers=0))
    config = EvaluateConfig(samples=len(groups[0]), majority_k=list(majority_k), temperature=1.0)
    found = Evaluator(
        eval_sets=[EvalSet(task, [], 1.0)], rewards=judge, processor=tiny_processor(), config=config, max_tokens=4,
        stop=(), seed=0, folder=folder, world=World(),
    )  # fmt: skip
    judge([t for group in groups for t in group])
    found.report([list(group) for group in groups], "answers")
    import json

    return json.loads((folder / "answers.json").read_text())["t"]


FOUR = [
    answered(text, target=target, group=n)
    for n, (text, target) in enumerate([("1", "1"), ("2", "2"), ("3", "9"), ("4", "9")])
]


@pytest.mark.parametrize(
    "rewards", [{"math": 1.0}, {"math": 1.0, "length": -0.1}, {"math": 0.5}, {"math": 1.0, "length": 0.0}]
)
def test_an_answer_is_right_if_all_that_is_rewarded_has_full_marks(tmp_path, rewards):
    assert estimates(tmp_path, rewards, *FOUR)["pass@1"]["mean"] == 0.5


def test_a_wrong_answer_in_the_right_tags_is_wrong(tmp_path):
    found = estimates(tmp_path, {"math": 1.0, "answer_tags": 1.0}, answered("<answer>9</answer>", target="2"))
    assert (found["score"]["mean"], found["pass@1"]["mean"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("reward", "target", "texts", "right"),
    [
        ("choice", "B", ["B", "B", "A", "B"], 1.0),
        ("choice", "A", ["B", "B", "A", "B"], 0.0),
        ("words", "dog", ["dog", "Dog.", "cat", "dog"], 1.0),
        ("exact", "yes", ["yes", "yes", "no", "yes"], 1.0),
        ("math", "7", ["I do not know", "I give up", "no idea at all", "\\boxed{7}", "\\boxed{7}"], 1.0),
        ("math", "5", ["\\boxed{5 cm}", "\\boxed{5}", "\\boxed{5\\text{ cm}}", "6", "6"], 1.0),
        (
            "math",
            "\\sqrt{12}",
            ["\\boxed{2\\sqrt{3}}", "\\boxed{\\sqrt{12}}", "\\boxed{\\sqrt{4\\cdot 3}}", "6", "6"],
            1.0,
        ),
        ("json", {"a": 1}, ['{"a": 1}', '{ "a":1 }', '{"a": 2}'], 1.0),
    ],
)
def test_a_majority_counts_what_the_reward_compares_and_silence_has_no_vote(
    tmp_path, reward, target, texts, right
):
    k = len(texts)
    assert (
        estimates(tmp_path, {reward: 1.0}, answered(*texts, target=target), majority_k=[k])[f"maj@{k}"][
            "mean"
        ]
        == right
    )


def test_a_reward_is_averaged_over_the_answers_of_tasks_that_have_it():
    one, other = answered("a", target="", source="a"), answered("b", "c", target="", source="b", group=1)
    for t in one:
        t.reward, t.parts = 1.0, {"one": 1.0, "both": 0.0}
    for t in other:
        t.reward, t.parts = 1.0, {"both": 3.0}
    found = describe([one, other], World())
    assert (found["reward/one"], found["reward/both"]) == (1.0, 2.0)


def test_a_step_without_a_token_to_learn_from_says_nothing_of_tokens_and_moves_no_coefficient(tmp_path):
    settings = {"rollout.max_tokens": 1, "algorithm.kl_coefficient": 0.1, "algorithm.kl_target": 0.05}
    learned = begin(tmp_path / "a", 2, settings)
    assert {"ratio/mean", "entropy", "kl", "mismatch/max", "mismatch/perplexity_ratio"} <= learned.told[
        2
    ].keys()
    assert learned.told[2]["kl_coefficient"] < 0.1
    found = begin(tmp_path / "b", 2, {**settings, "algorithm.truncated": "mask"})
    for metrics in found.told.values():
        assert metrics["length/truncated_fraction"] == 1.0
        assert (metrics["grad_norm"], metrics["kl_coefficient"]) == (0.0, 0.1)
        of_tokens = ("ratio/", "entropy", "kl", "approx_kl", "clip/", "mismatch/")
        assert [n for n in metrics if n.startswith(of_tokens)] == ["kl_coefficient"]
