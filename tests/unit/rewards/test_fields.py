"""Fields of rows on their way to a reward: only those that are asked for, through a checkpoint and back, in another process."""

from __future__ import annotations

from dataclasses import replace

from lightrft.config import RewardConfig, TaskConfig
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import prepare
from lightrft.rewards.asked import wanted_fields
from lightrft.rewards.base import RewardRunner
from lightrft.runs.storage import restored, stored
from lightrft.tasks.rows import task_of
from lightrft.testing import tiny_processor
from lightrft.types import Trajectory

ROWS = [{"prompt": f"{n} + 3?", "target": str(n + 3), "level": n, "note": object.__name__} for n in range(4)]
GRADED = """
def graded(answer, target, level):
    return level * float(answer == target)
"""


def prompts(names):
    records = task_of("rows", {"train": ROWS}).load("train", TaskConfig(), "", 0)
    assert records[0].columns is ROWS[0]
    return prepare(records, tiny_processor(), TaskConfig(), wanted_fields(records, names))[0]


def test_prompts_keep_the_fields_that_rewards_ask_for_and_no_others(tmp_path):
    file = tmp_path / "graded.py"
    file.write_text(GRADED, encoding="utf-8")
    assert [p.columns for p in prompts(["math"])] == [{}] * 4
    assert [p.columns for p in prompts(["math", f"{file}:graded"])] == [{"level": n} for n in range(4)]


def test_a_field_reaches_a_reward_in_another_process_also_after_a_checkpoint(tmp_path):
    file = tmp_path / "graded.py"
    file.write_text(GRADED, encoding="utf-8")
    name = f"{file}:graded"
    found = prompts([name])
    loader = PromptLoader([(found, 1.0)], seed=0)
    answers = [Trajectory(p, n, [7], [True], [-0.5], "stop", answer=p.target) for n, p in enumerate(found)]
    packed = stored(answers)
    assert all(content["columns"] == {} for content in packed["prompts"])
    back = restored(packed, loader.completed)
    assert [t.prompt for t in back] == [replace(t.prompt) for t in answers]
    with RewardRunner({"rows": {name: 1.0}}, RewardConfig(workers=1)) as judge:
        judge(back)
    assert [t.reward for t in back] == [0.0, 1.0, 2.0, 3.0]
