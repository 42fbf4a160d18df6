"""What a Python program gives becomes the settings that a command line would give."""

import logging
import subprocess
import sys
import threading
import typing

import datasets
import pytest

import lightrft
from lightrft import Config
from lightrft.api import process
from lightrft.api.settings import Given, add_data, add_held_out, add_rewards, loaded, scored_by
from lightrft.config import EvaluateConfig, RolloutConfig, SFTConfig
from lightrft.rewards.signature import refuse_async
from lightrft.tasks.table import load_task
from lightrft.utils import inline

ROWS = [{"prompt": "2 + 3?", "target": "5"}, {"prompt": "1 + 1?", "target": "2"}]


def short(answer: str) -> float:
    return -len(answer)


def settings(*, data=None, evaluate=None, rewards=None, layers=(), config=None, **options):
    given = Given("lightrft.train")
    for name, value in options.items():
        given.put(name, value)
    add_data(given, data, evaluate, Config)
    if rewards is not None:
        add_rewards(given, rewards)
    return loaded(Config, given, config=config, named_layers=layers, resume=None), given.objects


def test_rows_become_a_task_and_functions_become_names():
    config, objects = settings(data=ROWS, rewards={short: 0.5, "math": 1.0})
    assert config.tasks.train == {"inline:rows": 1.0}
    assert config.rewards.functions == {"inline:short": 0.5, "math": 1.0}
    assert objects["inline:short"] is short
    assert not config.evaluate.before_and_after
    with inline.held(objects):
        found = load_task("inline:rows").load("train", config.tasks, "", 0)
    assert [(one.id, one.messages[-1]["content"], one.target, one.source) for one in found] == [
        ("rows/data[0]", "2 + 3?", "5", "rows"),
        ("rows/data[1]", "1 + 1?", "2", "rows"),
    ]


def test_a_dataset_and_a_list_give_the_same_records():
    found = []
    for rows in (ROWS, datasets.Dataset.from_list(ROWS)):
        config, objects = settings(data=rows)
        with inline.held(objects):
            found.append(list(load_task("inline:rows").load("train", config.tasks, "", 0)))
    assert found[0] == found[1]


def test_rows_without_an_answer_and_plain_texts_are_prompts():
    config, objects = settings(data=["Hello", "Bye"], evaluate=["Well"])
    assert config.tasks.target_field == ""
    assert config.evaluate.before_and_after
    with inline.held(objects):
        task = load_task("inline:rows")
        assert [r.messages[0]["content"] for r in task.load("train", config.tasks, "", 0)] == ["Hello", "Bye"]
        assert [r.id for r in task.load("evaluate", config.tasks, "", 0)] == ["rows/evaluate[0]"]


@pytest.mark.parametrize(
    ("given", "train", "evaluate", "file"),
    [
        ({"data": "gsm8k"}, {"gsm8k": 1.0}, {}, ""),
        ({"data": {"gsm8k": 2, "math": 1}}, {"gsm8k": 2.0, "math": 1.0}, {}, ""),
        ({"data": "rows.jsonl"}, {"file": 1.0}, {}, "rows.jsonl"),
        ({"data": "owner/name:subset"}, {"file": 1.0}, {}, "owner/name:subset"),
        ({"data": "mine.py:riddles", "evaluate": "svamp"}, {"mine.py:riddles": 1.0}, {"svamp": 1.0}, ""),
        ({"data": load_task("tiny"), "evaluate": ROWS}, {"inline:tiny": 1.0}, {"inline:rows": 1.0}, ""),
        ({"data": ROWS, "evaluate": "gsm8k"}, {"inline:rows": 1.0}, {"gsm8k": 1.0}, ""),
    ],
)
def test_data_is_a_name_a_file_a_task_or_rows(given, train, evaluate, file):
    tasks = settings(**given)[0].tasks
    assert (tasks.train, tasks.evaluate, tasks.train_file) == (train, evaluate, file)


@pytest.mark.parametrize(
    ("evaluate", "expected"),
    [
        (False, EvaluateConfig(before_and_after=False)),
        (EvaluateConfig(limit=3), EvaluateConfig(limit=3)),
        ({"limit": 3, "data": ROWS}, EvaluateConfig(limit=3)),
        ({"samples": 4, "temperature": 1.0}, EvaluateConfig(samples=4, temperature=1.0)),
    ],
)
def test_evaluate_is_data_or_options_or_both(evaluate, expected):
    assert settings(data="gsm8k", evaluate=evaluate)[0].evaluate == expected


def test_options_are_dicts_classes_or_dotted_and_stand_over_layers():
    config, objects = settings(
        layers=["grpo", "tiny"],
        steps=7,
        rollout={"group_size": 2, "stop": ["-end", "None"]},
        **{"rollout.max_tokens": 5, "algorithm.loss": short, "optimizer.betas": (0.8, 0.9), "name": "yes"},
    )
    assert (config.steps, config.name, config.optimizer.betas) == (7, "yes", [0.8, 0.9])
    assert (config.rollout.group_size, config.rollout.max_tokens, config.rollout.stop) == (
        2,
        5,
        ["-end", "None"],
    )
    assert config.algorithm.kl_coefficient == 0.04  # of the layer
    assert config.algorithm.loss == "inline:short"
    assert objects == {"inline:short": short}


def test_what_a_layer_sets_and_is_left_out_is_told(tmp_path, caplog):
    file = tmp_path / "my_rows.yaml"
    file.write_text("tasks: {train: {file: 1}, train_file: rows.jsonl, rewards: {math: 1}}")
    found = loaded(SFTConfig, Given("lightrft.sft"), config=None, named_layers=[str(file)], resume=None)
    assert found.tasks.train_file == "rows.jsonl"
    assert caplog.messages == ["my_rows sets tasks.rewards, and this command scores no responses: left out."]


def test_a_config_is_the_ground_for_what_is_given_by_name():
    ground = Config(steps=3, rollout=RolloutConfig(stop=["\\n", "-x"], group_size=2))
    config, _ = settings(config=ground, steps=4)
    assert config == Config(steps=4, rollout=ground.rollout)


def test_one_function_twice_is_one_and_two_of_one_name_are_refused():
    other = lambda answer: 0.0  # noqa: E731  # two lambdas, as in a notebook
    assert len(settings(rewards=[short, short])[1]) == 1
    with pytest.raises(ValueError, match="two different objects are called 'reward'"):
        settings(rewards=[other, lambda answer: 1.0])
    config, objects = settings(rewards={"zero": other, "one": (short, -2.0)})
    assert config.rewards.functions == {"inline:zero": 1.0, "inline:one": -2.0}
    assert objects["inline:one"] is short


def test_an_evaluation_by_rewards_of_its_own_sets_aside_those_of_the_task():
    given = Given("lightrft.evaluate")
    add_held_out(given, scored_by("tiny", short), Config, "data")
    add_rewards(given, short)
    config = loaded(Config, given, config=None, named_layers=(), resume=None)
    assert config.tasks.evaluate == {"inline:tiny": 1.0}
    assert given.objects["inline:tiny"].rewards == {}
    assert load_task("tiny").rewards == {"same_kind": 1.0}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"stepz": 1}, "lightrft.train: no option 'stepz'. Perhaps you meant: steps"),
        ({"steps": "ten"}, "lightrft.train: steps=ten: expected a whole number."),
        ({"rollout": 3}, "lightrft.train: 'rollout' is a section"),
        ({"num_generations": 8}, "In LightRFT this is rollout.group_size"),
        ({"model": object()}, "model is a object. Save it with save_pretrained(FOLDER)"),
        ({"data": []}, "data=[]: there are no rows."),
        ({"data": iter(ROWS)}, "of what can be read only once make a list: data=list(rows)"),
        ({"rewards": 3}, "rewards is a int. Give a function, a name"),
        ({"rewards": [3]}, "rewards has 3, which is no function and no name."),
        (
            {"rewards": {"math": 1, "workers": 0}},
            "rewards has functions and the option 'workers' side by side.",
        ),
        ({"seed": object()}, "is no setting. Give a text, a number"),
        ({"algorithm": "grop"}, "no layer named 'grop'. Perhaps you meant: grpo."),
        ({"steps": 0}, "steps=0: must be at least 1."),
        ({"resume": "nowhere"}, "is not the folder of a run."),
        ({}, "tasks.train is empty"),
    ],
)
def test_a_mistake_is_one_line_before_anything_loads(asked, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # the message is compared below
        lightrft.train(**({"model": "random:llama"} | asked))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(raised.traceback) <= 3  # this test, and the function that was called


def test_what_a_run_changes_in_the_process_is_as_before_and_a_second_at_the_same_time_is_refused():
    import random

    import torch

    log = logging.getLogger("lightrft")
    log.setLevel(logging.ERROR)
    before = (random.getstate(), torch.get_num_threads(), torch.get_rng_state().tolist(), log.level)
    refused = []

    def second():
        try:
            process.as_guest(lambda: None, {"inline:mine": 2})
        except RuntimeError as error:
            refused.append(str(error))

    def run():
        random.seed(5)
        torch.manual_seed(5)
        log.setLevel(logging.INFO)
        other = threading.Thread(target=second)
        other.start()
        other.join()
        assert inline.find("inline:mine", "reward") == 1  # not that of the run which was refused
        raise ValueError("it failed")

    try:
        with pytest.raises(ValueError, match="it failed"):
            process.as_guest(run, {"inline:mine": 1})
        assert before == (
            random.getstate(),
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            log.level,
        )
        assert refused[0].startswith("another run goes on in this process")
        assert process.as_guest(lambda: 7) == 7
    finally:
        log.setLevel(logging.NOTSET)


def test_a_mistake_in_the_arguments_is_told_before_torch_is_imported():
    """In seconds, whatever else the program is to load."""
    program = """
import sys
import lightrft
rows = [{"prompt": "a", "target": "b"}]
for wrong in (dict(rewards="maht"), dict(stepz=1), dict(steps="ten"), dict(tasks={"train": {"gsm9k": 1.0}}, data=None)):
    try:
        lightrft.train(**{"layers": "tiny", "model": "random:llama", "data": rows, **wrong})
    except ValueError as error:
        print(str(error).splitlines()[0], "torch" in sys.modules)
try:
    lightrft.evaluate(model="random:llama", data=rows, rewards="maht")
except ValueError as error:
    print(str(error).splitlines()[0], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == ["False"] * 5, done.stderr
    for name in ("maht", "stepz", "ten", "gsm9k"):
        assert name in done.stdout


def test_types_of_the_public_functions_can_be_asked_for():
    assert typing.get_type_hints(lightrft.train)["return"] is lightrft.Run


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lightrft.train,
            r"lightrft.train: config is a dict. Give its options by name, as lightrft.train\(\*\*options\)",
        ),
        (lightrft.evaluate, "lightrft.evaluate: config is a dict"),
        (lightrft.sft, "lightrft.sft: config is a dict.* or give a SFTConfig"),
    ],
)
def test_a_dict_in_the_place_of_a_config_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call({"steps": 3})


def test_a_config_of_another_command_is_refused():
    with pytest.raises(ValueError, match="lightrft.sft: config is a Config. Give a SFTConfig; layers"):
        lightrft.sft(Config())


def test_an_error_in_one_line_has_no_marks_that_point_into_the_line_above():
    with pytest.raises(ValueError, match="^reward 'mine 2 ~ 3' is an async function") as raised:
        process.one_line(refuse_async)("mine\n     ^^^^~~~^^^\n  2 ~ 3")
    assert "\n" not in str(raised.value)
