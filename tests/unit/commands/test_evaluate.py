import json

import pytest

from lightrft.build.data import build_eval_sets
from lightrft.commands.evaluate import sampling_bar
from lightrft.config import Config, ModelConfig, RewardConfig, RolloutConfig, TaskConfig
from lightrft.tasks.rows import task_of
from lightrft.testing import tiny_processor
from lightrft.utils.inline import held


@pytest.mark.parametrize("visible", [True, False])
def test_the_bar_of_an_evaluation_is_shown_where_log_progress_says_so(capsys, visible):
    with sampling_bar(visible=visible) as told:
        told(3, 3)
    assert ("sampling" in capsys.readouterr().err) is visible


@pytest.mark.parametrize(("task", "room"), [("file", 24), ("inline:mine", 24), ("tiny", 8)])
def test_rows_of_ones_own_have_the_room_that_responses_have_in_training_and_other_tasks_their_own(
    tmp_path, task, room
):
    rows = [{"prompt": "2 + 3?", "target": "5"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    config = Config(
        model=ModelConfig(path="random:llama"),
        tasks=TaskConfig(
            evaluate={task: 1.0}, evaluate_file=str(tmp_path / "rows.jsonl") if task == "file" else ""
        ),
        rewards=RewardConfig(functions={"exact": 1.0}),
        rollout=RolloutConfig(max_tokens=24),
    )
    with held({"inline:mine": task_of("mine", {"evaluate": rows})}):
        eval_sets, judge = build_eval_sets(config, tiny_processor())
    judge.close()
    assert [one.task.max_tokens for one in eval_sets] == [room]
