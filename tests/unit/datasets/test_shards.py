"""Rows in several files, in saved data sets, at addresses, and in fields inside of fields."""

import json

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from lightrft.config import TaskConfig
from lightrft.datasets.formats import columns
from lightrft.datasets.shards import base_of, fetched
from lightrft.datasets.sources import BadRecords, read
from lightrft.tasks.table import load_task


def rows(place, split="train"):
    return list(read(str(place), split, BadRecords()))


def jsonl(*numbers):
    return "".join(json.dumps({"n": n}) + "\n" for n in numbers)


@pytest.fixture
def folder(tmp_path):
    for name, numbers in (("b.jsonl", (3,)), ("a/x.jsonl", (1, 2)), ("c/x.jsonl", (4,))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(jsonl(*numbers))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.jsonl").write_text(jsonl(9))
    return tmp_path


WHOLE = [("a/x.jsonl:1", 1), ("a/x.jsonl:2", 2), ("b.jsonl:1", 3), ("c/x.jsonl:1", 4)]


def test_a_folder_is_its_shards_in_the_order_of_their_names(folder):
    assert [(where, row["n"]) for where, row in rows(folder)] == WHOLE


def test_a_pattern_names_its_files_below_its_fixed_part(folder):
    assert [(w, r["n"]) for w, r in rows(f"{folder}/*/x.jsonl")] == [WHOLE[0], WHOLE[1], WHOLE[3]]
    assert [r["n"] for _, r in rows(f"{folder}/**/*.jsonl")] == [1, 2, 3, 4]


def test_a_file_with_a_sign_of_patterns_in_its_name_is_a_file(tmp_path):
    (tmp_path / "a[1].jsonl").write_text(jsonl(5))
    assert rows(tmp_path / "a[1].jsonl") == [("a[1].jsonl:1", {"n": 5})]


def test_parquet_shards_are_read_as_well(tmp_path):
    for name, number in (("1.parquet", 2), ("0.parquet", 1)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"n": number}]), tmp_path / name)
    assert rows(tmp_path) == [("0.parquet[0]", {"n": 1}), ("1.parquet[0]", {"n": 2})]


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("{}/nothing", "no data file"),
        ("{}/*.parquet", "no json, jsonl, csv or parquet file is there"),
        ("{}/*", "cannot read README.md"),
    ],
)
def test_what_is_not_there_is_said(folder, place, told):
    place = place.format(folder)
    with pytest.raises(ValueError, match="data file|file is there|cannot read") as error:
        rows(place)
    assert told in str(error.value)


def test_a_folder_of_several_kinds_is_refused_with_a_pattern_to_name(folder):
    (folder / "info.json").write_text("[]")
    with pytest.raises(ValueError, match="holds .json and .jsonl files") as error:
        rows(folder)
    assert "**/*.json" in str(error.value)


def test_data_sets_that_were_saved_by_datasets_are_read(tmp_path):
    one = Dataset.from_list([{"prompt": "2+2?", "target": "4"}])
    one.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": one, "held": one}).save_to_disk(str(tmp_path / "two"))
    assert rows(tmp_path / "one") == [("one/train[0]", {"prompt": "2+2?", "target": "4"})]
    assert rows(tmp_path / "two", "held") == [("two/held[0]", {"prompt": "2+2?", "target": "4"})]
    with pytest.raises(ValueError, match="no split 'test'; it has: held, train"):
        rows(tmp_path / "two", "test")
    config = TaskConfig(
        train_file=str(tmp_path / "two"), evaluate_file=str(tmp_path / "two"), evaluate_split="held"
    )
    assert [r.target for r in load_task("file").load("evaluate", config, "", 0)] == ["4"]


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    for name, numbers in (("bucket/a.jsonl", (1,)), ("bucket/deep/a.jsonl", (2,))):
        system.pipe(f"/{name}", jsonl(*numbers).encode())
    yield system
    system.rm("/bucket", recursive=True)


def test_files_at_an_address_are_read_one_after_the_other(memory):
    assert rows("memory://bucket/a.jsonl") == [("a.jsonl:1", {"n": 1})]
    assert rows("memory://bucket") == [("a.jsonl:1", {"n": 1}), ("deep/a.jsonl:1", {"n": 2})]
    assert [r["n"] for _, r in rows("memory://bucket/*/a.jsonl")] == [2]


def test_fetched_files_are_gone_when_the_next_comes(memory):
    seen = []
    for _, path in fetched("memory://bucket", lambda name: name.endswith(".jsonl")):
        assert [p.exists() for p in seen] == [False] * len(seen)
        seen.append(path)
    assert len(seen) == 2


def test_an_address_that_cannot_be_read_is_said(memory):
    for place, told in (
        ("memory://bucket/none.jsonl", "cannot be fetched"),
        ("memory://bucket/*.csv", "no json, jsonl, csv or parquet file"),
        ("nowhere://bucket/a.jsonl", "cannot be read"),
    ):
        with pytest.raises(ValueError, match="bucket") as error:
            rows(place)
        assert told in str(error.value)


def test_media_of_a_pattern_lie_below_its_fixed_part(folder):
    assert base_of(f"{folder}/*/x.jsonl") == folder
    assert base_of(str(folder)) == folder
    assert base_of(f"{folder}/b.jsonl") == folder


INSIDE = {
    "reward_model": {"ground_truth": "4", "all": ["4", "four"]},
    "extra": '{"answer": {"text": "5"}}',
    "a.b": "6",
}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("reward_model.ground_truth", "4"),
        ("reward_model.all.1", "four"),
        ("extra.answer.text", "5"),
        ("a.b", "6"),
    ],
)
def test_dotted_names_reach_into_fields_and_json_text(name, wanted):
    row = {"prompt": "2+2?", **INSIDE}
    assert columns(row, TaskConfig(target_field=name)).target == wanted


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "reward_model.truth",
            "'reward_model' has no 'truth'; it has: ground_truth, all. Set tasks.target_field",
        ),
        ("nothing.truth", "no field 'nothing'; the row has: prompt, reward_model"),
        ("prompt.truth", "'prompt' has no 'truth'; it is '2+2?'"),
        ("reward_model.all.7", "'reward_model.all' has no '7'"),
    ],
)
def test_a_dotted_name_that_leads_nowhere_says_where_it_ends(name, told):
    with pytest.raises(ValueError, match="field") as error:
        columns({"prompt": "2+2?", **INSIDE}, TaskConfig(target_field=name))
    assert told in str(error.value)


def test_messages_in_a_cell_of_text_are_messages_and_other_lists_are_text():
    messages = [{"role": "user", "content": "hi"}]
    config = TaskConfig(target_field="")
    assert columns({"prompt": json.dumps(messages)}, config).prompt == messages
    assert columns({"prompt": "[1, 2] is a list?"}, config).prompt == "[1, 2] is a list?"
    assert columns({"prompt": '["a", "b"]'}, config).prompt == '["a", "b"]'
