import gzip
import json
import sys

import pytest

from lightrft.config import RewardConfig, TaskConfig
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.rewards.confidence import confident_math
from lightrft.rewards.text import json_object
from lightrft.tasks.table import TASKS, Task, load_task

GSM = {"question": "Two and two?", "answer": "It is <<2+2=4>>4.\n#### 4"}


def store(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def need(name):
    """Skips the test if the task's package is not there."""
    if name.startswith("reasoning_gym"):
        pytest.importorskip("reasoning_gym")


def load(name, split="train", data="", seed=0, **options):
    return load_task(name).load(split, TaskConfig(**options), str(data), seed)


def test_gsm8k_is_read_from_the_data_folder(tmp_path):
    store(tmp_path / "gsm8k/train.jsonl", GSM)
    (record,) = load("gsm8k", data=tmp_path)
    assert (record.id, record.source, record.target) == ("gsm8k/train.jsonl:1", "gsm8k", "4")
    assert record.messages == [
        {
            "role": "user",
            "content": "Two and two?\nThink step by step, and write the final answer inside \\boxed{}.",
        }
    ]


def test_gsm8k_may_ask_how_sure_an_answer_is(tmp_path):
    store(tmp_path / "gsm8k/train.jsonl", GSM)
    (record,) = load("gsm8k:confidence", data=tmp_path)
    task = load_task("gsm8k:confidence")
    assert (record.source, record.target, task.rewards) == ("gsm8k:confidence", "4", {"confident_math": 1.0})
    assert record.messages[-1]["content"].endswith("like this: Confidence: 70%")
    assert confident_math(task.gold(record), record.target) == 1.0
    with pytest.raises(ValueError, match="there are gsm8k and gsm8k:confidence"):
        load_task("gsm8k:sure")


def test_system_and_instruction_can_be_set(tmp_path):
    store(tmp_path / "gsm8k/train.jsonl", GSM)
    (record,) = load("gsm8k", data=tmp_path, system="Be brief.", instruction="Only the number.")
    assert record.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two and two?\nOnly the number."},
    ]


def test_a_missing_file_of_a_task_is_named_with_the_cure(tmp_path):
    with pytest.raises(
        ValueError, match=r"task 'gsm8k' needs .*gsm8k/test\.jsonl, which is not there. Set data=FOLDER"
    ):
        load("gsm8k", "evaluate", tmp_path)


def test_a_bad_row_of_a_task_is_named_by_file_and_line(tmp_path):
    store(tmp_path / "gsm8k/train.jsonl", GSM, {"question": "x"})
    with pytest.raises(ValueError, match=r"train\.jsonl:2: no field 'answer'; the row has: question"):
        load("gsm8k", data=tmp_path)


def test_bad_rows_are_counted_when_skipped(tmp_path):
    store(tmp_path / "gsm8k/train.jsonl", GSM, {"question": "x"}, GSM)
    found = load("gsm8k", data=tmp_path, on_bad_record="skip")
    assert (len(found), found.skipped) == (2, 1)


def test_math_leaves_out_training_rows_without_answer(tmp_path):
    store(
        tmp_path / "math_train/train.jsonl.gz",
        {"problem": "1+1", "answer": "2"},
        {"problem": "?", "answer": None},
        {"problem": "?", "answer": ""},
    )
    assert [r.target for r in load("math", data=tmp_path)] == ["2"]


def test_aime_evaluates_on_both_years_or_on_the_one_asked_for(tmp_path):
    store(tmp_path / "aime/aime_2024.jsonl", {"problem": "a", "answer": "24"})
    store(tmp_path / "aime/aime_2025.jsonl", {"problem": "b", "answer": "25"})
    assert [r.target for r in load("aime", "evaluate", tmp_path)] == ["24", "25"]
    assert [(r.source, r.target) for r in load("aime:2025", "evaluate", tmp_path)] == [("aime:2025", "25")]


def test_aime_trains_on_no_problem_after_2023(tmp_path):
    store(
        tmp_path / "aime/aime_1983_2023.jsonl",
        {"problem": "a", "answer": "1", "year": 2023},
        {"problem": "b", "answer": "2", "year": 2024},
    )
    assert [r.target for r in load("aime", data=tmp_path)] == ["1"]


def test_svamp_has_no_training_rows():
    with pytest.raises(
        ValueError, match="task 'svamp' has no training rows: it is a test set. Train on gsm8k"
    ):
        load("svamp")


@pytest.mark.parametrize(
    "name", ["gsm8k:x", "math:algebra", "file:x", "demo:x", "tiny:x", "aime:2019", "reasoning_gym", "svamp:x"]
)
def test_options_that_a_task_does_not_have_are_refused(name):
    with pytest.raises(ValueError, match="task"):
        load_task(name)


def test_a_misspelt_task_gets_a_suggestion():
    with pytest.raises(ValueError, match="no task named 'gsm8'. Did you mean 'gsm8k'"):
        load_task("gsm8")


def test_a_misspelt_reasoning_gym_task_gets_a_suggestion():
    need("reasoning_gym")
    with pytest.raises(ValueError, match="Did you mean 'chain_sum'"):
        load_task("reasoning_gym:chain_sums")


def test_a_task_of_ones_own_is_named_by_path(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from lightrft.tasks.table import Records, Task\n"
        "riddles = Task('riddles', lambda split, config, data, seed: Records(), {'exact': 1.0}, str)\n"
        "number = 5\n"
    )
    assert isinstance(load_task(f"{tmp_path}/mine.py:riddles"), Task)
    with pytest.raises(ValueError, match="is a int; it must be a"):
        load_task(f"{tmp_path}/mine.py:number")


def own(tmp_path):
    train = store(
        tmp_path / "train.jsonl", {"prompt": "2+2?", "target": "4"}, {"prompt": "3+3?", "target": "6"}
    )
    return train, store(tmp_path / "test.jsonl", {"prompt": "4+4?", "target": "8"})


def test_own_files_give_records(tmp_path):
    train, test = own(tmp_path)
    found = load("file", train_file=train, evaluate_file=test)
    assert [(r.id, r.target) for r in found] == [("file/train.jsonl:1", "4"), ("file/train.jsonl:2", "6")]
    assert [r.target for r in load("file", "evaluate", train_file=train, evaluate_file=test)] == ["8"]
    assert len(load("file", train_file=train, evaluate_file=test, train_limit=1)) == 1


def test_own_files_may_be_named_relative_to_the_data_folder(tmp_path):
    own(tmp_path)
    assert len(load("file", data=tmp_path, train_file="train.jsonl")) == 2


def test_paths_of_media_are_looked_for_beside_the_rows(tmp_path):
    path = store(tmp_path / "mine/a.jsonl", {"prompt": "What?", "image": "pictures/a.png", "target": "4"})
    (record,) = load("file", train_file=path)
    assert record.messages[0]["content"] == [
        {"type": "image", "image": f"{tmp_path}/mine/pictures/a.png"},
        {"type": "text", "text": "What?"},
    ]


def test_an_instruction_is_added_to_a_question_with_media(tmp_path):
    rows = [
        {"prompt": "What?<image>", "image": "/a.png", "target": "4"},
        {"prompt": "<image>What?", "image": "/a.png", "target": "4"},
    ]
    path = store(tmp_path / "a.jsonl", *rows)
    first, second = load("file", train_file=path, instruction="Be brief.", media_root="/")
    picture = {"type": "image", "image": "/a.png"}
    assert first.messages[0]["content"] == [
        {"type": "text", "text": "What?"},
        picture,
        {"type": "text", "text": "\nBe brief."},
    ]
    assert second.messages[0]["content"] == [picture, {"type": "text", "text": "What?\nBe brief."}]


def test_an_unknown_part_of_a_message_is_a_bad_record(tmp_path):
    content = [{"type": "smell", "smell": "a.txt"}]
    path = store(tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": content}], "target": "4"})
    with pytest.raises(ValueError, match=r"a\.jsonl:1: a part of a message has the type 'smell'"):
        load("file", train_file=path)


def test_an_evaluation_split_is_never_guessed(tmp_path):
    train, _ = own(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"none are split off by guess. Set tasks.evaluate_file, or evaluate.before_and_after=false",
    ):
        load("file", "evaluate", train_file=train)


def test_evaluating_on_the_training_file_is_refused(tmp_path):
    train, _ = own(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="are the same file"):
        load("file", train_file=train, evaluate_file=str(tmp_path / "other" / ".." / "train.jsonl"))


def test_evaluating_on_the_training_split_of_the_hub_is_refused():
    with pytest.raises(
        ValueError, match="tasks.train_split and tasks.evaluate_split are both 'train' of some/data"
    ):
        load("file", train_file="some/data", evaluate_file="some/data", evaluate_split="train")


def test_training_rows_must_be_named():
    with pytest.raises(ValueError, match="task 'file' needs tasks.train_file"):
        load("file")


def test_an_unusable_file_is_refused(tmp_path):
    path = store(tmp_path / "a.jsonl", {"q": 1})
    with pytest.raises(ValueError, match=r"holds no usable rows \(1 skipped\)"):
        load("file", train_file=path, on_bad_record="skip")


def test_a_format_of_ones_own_is_named_by_path(tmp_path):
    (tmp_path / "forms.py").write_text(
        "from lightrft.datasets.formats import Example\ndef shout(row, config):\n    return Example(row['prompt'].upper(), row['target'])\n"
    )
    path = store(tmp_path / "a.jsonl", {"prompt": "go", "target": "1"})
    (record,) = load("file", train_file=path, format=f"{tmp_path}/forms.py:shout")
    assert record.messages[0]["content"] == "GO"


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_generated_tasks_have_200_evaluation_questions_that_no_training_question_equals(name):
    train, evaluate = load(name), load(name, "evaluate")
    assert len(evaluate) >= 200
    questions = [str(r.messages) for r in evaluate]
    assert len(set(questions)) == len(questions)
    assert not set(questions) & {str(r.messages) for r in train}


@pytest.mark.parametrize("name", ["demo", "tiny", "reasoning_gym:chain_sum"])
def test_generated_tasks_depend_on_the_seed_alone_and_evaluate_on_the_same_questions(name):
    need(name)
    assert load(name, seed=3, train_limit=50) == load(name, seed=3, train_limit=50)
    assert load(name, seed=3, train_limit=50) != load(name, seed=4, train_limit=50)
    assert load(name, "evaluate", seed=3) == load(name, "evaluate", seed=4)


def test_the_words_of_the_demos_evaluation_never_occur_in_its_training():
    def words(split):
        return {v for r in load("demo", split) for v in r.target.values() if isinstance(v, str)}

    assert len(words("evaluate")) > 30
    assert not words("evaluate") & words("train")


@pytest.mark.parametrize("split", ["train", "evaluate"])
def test_the_demos_kinds_of_sentence_are_tasks_that_share_out_all_of_them(split):
    keys = {
        "person": ["name", "age", "city"],
        "job": ["name", "job", "city"],
        "trip": ["start", "goal", "hours"],
        "sale": ["name", "item", "count", "price"],
    }
    parts = {kind: load(f"demo:{kind}", split) for kind in keys}
    assert all(list(record.target) == keys[kind] for kind, part in parts.items() for record in part)
    whole = sorted(record.messages[0]["content"] for record in load("demo", split))
    assert sorted(record.messages[0]["content"] for part in parts.values() for record in part) == whole
    assert {len(part) for part in parts.values()} == {len(whole) // 4}


def test_the_demo_states_every_value_in_its_sentence():
    for record in load("demo", "evaluate"):
        sentence, order = record.messages[0]["content"].split("\n")
        assert all(str(value) in sentence for value in record.target.values())
        assert all(key in order for key in record.target)


def test_a_missing_reasoning_gym_is_named_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(
        RuntimeError, match=r'reasoning_gym is not installed: pip install "reasoning-gym>=0.1.19"'
    ):
        load_task("reasoning_gym:chain_sum")


def test_reasoning_gym_keeps_evaluation_questions_out_of_training():
    need("reasoning_gym")

    def questions(split):
        return {r.messages[0]["content"] for r in load("reasoning_gym:coin_flip", split, train_limit=500)}

    assert not questions("train") & questions("evaluate")


@pytest.mark.parametrize("name", ["demo", "tiny", "reasoning_gym:chain_sum", "reasoning_gym:leg_counting"])
def test_gold_answers_of_generated_tasks_score_full_marks(name):
    need(name)
    task = load_task(name)
    with RewardRunner({task.name: task.rewards}, RewardConfig(workers=0)) as judge:
        for split in ("train", "evaluate"):
            report = check_gold(name, load(name, split, train_limit=60)[:60], task.gold, judge)
            assert report.ok, str(report)
            assert report.wrong_score < 0.1


def test_every_task_but_those_of_rows_and_comparisons_brings_its_reward():
    need("reasoning_gym")
    options = {"reasoning_gym": "chain_sum", "mmmlu": "DE_DE"}
    without = [name for name, make in TASKS.items() if not make(options.get(name, "")).rewards]
    assert without == [
        "demo_pairs", "file", "tiny_pairs", "nlvr_pairs", "spoken_digits_pairs", "digit_pairs", "digit_pictures",
        "two_digit_pictures", "shape_pictures", "xstest_pairs",
    ]  # fmt: skip


def test_pairs_are_graded_by_kind_and_lengths_say_nothing():
    found = {split: load("tiny_pairs", split) for split in ("train", "evaluate")}
    assert [len(records) for records in found.values()] == [600, 240]
    assert found["train"] == load("tiny_pairs")
    asked = [{r.messages[0]["content"] for r in records} for records in found.values()]
    assert not asked[0] & asked[1]
    kinds = {"small": str.islower, "capital": str.isupper, "digit": str.isdigit}
    for record in found["evaluate"]:
        question = record.messages[0]["content"]
        right = next(kind for kind in kinds.values() if kind(question))
        chosen, rejected = (one["messages"][0]["content"] for one in record.target)
        assert (right(chosen), right(rejected)) == (True, False)
        assert load_task("tiny_pairs").gold(record) == chosen


def test_the_chosen_response_of_the_demo_is_right_the_rejected_one_wrong_and_lengths_say_nothing():
    found = {split: load("demo_pairs", split) for split in ("train", "evaluate")}
    assert {split: len(records) for split, records in found.items()} == {"train": 2000, "evaluate": 240}
    questions = {split: [record.messages[0]["content"] for record in load("demo", split)] for split in found}
    targets = {record.messages[0]["content"]: record.target for record in load("demo", "evaluate")}
    right = json_object
    longer = []
    for record in found["evaluate"]:
        target = targets[record.messages[0]["content"]]
        chosen, rejected = (one["messages"][0]["content"] for one in record.target)
        assert (right(chosen, target), right(rejected, target)) == (1.0, 0.0)
        longer.append(1.0 if len(chosen) > len(rejected) else 0.5 if len(chosen) == len(rejected) else 0.0)
    assert abs(sum(longer) / len(longer) - 0.5) < 0.05  # pairs that a rule of lengths gets right
    assert [record.messages[0]["content"] for record in found["train"]] == questions["train"]


def test_a_generated_question_without_answer_has_no_gold():
    need("reasoning_gym")
    task = load_task("reasoning_gym:rubiks_cube")
    (record,) = load("reasoning_gym:rubiks_cube", train_limit=1)
    with pytest.raises(ValueError, match="there is no gold answer to check"):
        task.gold(record)
