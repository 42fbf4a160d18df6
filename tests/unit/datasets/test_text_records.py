"""Questions that are kept as columns are those that rows one by one make, in every respect; whatever is not plain is left to those."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lightrft.build import data as build
from lightrft.config import Config, ModelConfig, TaskConfig
from lightrft.datasets import arrow_rows, deferred
from lightrft.datasets.arrow_rows import read_table
from lightrft.datasets.deferred import _measured, _most, defer, defer_texts
from lightrft.datasets.loader import PromptLoader, _told
from lightrft.datasets.prompts import Opener
from lightrft.datasets.sources import BadRecords, read
from lightrft.datasets.text_records import TextRecords, alike, plain
from lightrft.tasks.base import records
from lightrft.tasks.stream import text_records
from lightrft.tasks.table import load_task, row_format
from lightrft.testing import tiny_processor

PROCESSOR = tiny_processor()
TEXTS = st.text(st.sampled_from('ab 1é한ﷺ\u00a0\u2028\n\t[]{}"\\'), min_size=1, max_size=12)
SAID = st.one_of(TEXTS, st.sampled_from(["[1, 2]", '[{"role": "user", "content": "hi"}]', " [x", "\u3000"]))
CELLS = st.one_of(TEXTS, st.integers(-5, 2**63), st.booleans(), st.just(None), st.floats(), st.just([1]))


def one_by_one(file, config):
    """The records as rows one by one make them, or what is wrong with them."""
    bad = BadRecords(config.on_bad_record)
    try:
        rows = list(read(str(file), "train", bad))
        return list(
            records(
                rows,
                row_format(config.format),
                config,
                bad,
                source="file",
                instruction="",
                folder=file.parent,
            )
        )
    except ValueError as error:
        return str(error)


def as_columns(file, config):
    table = read_table(str(file), "train", 1)
    return TextRecords(table, config, "file") if table is not None and plain(table, config) else None


def written(folder, rows, form):
    file = folder / f"rows.{form}"
    if form == "jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), file)
    return file


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(SAID, SAID, CELLS), min_size=1, max_size=5),
    form=st.sampled_from(["jsonl", "parquet"]),
    config=st.sampled_from([{}, {"instruction": "be é"}, {"system": "so"}, {"target_field": "more"}, {"target_field": ""}]),
)  # fmt: skip
def test_they_are_what_rows_one_by_one_make(tmp_path_factory, rows, form, config):
    asked = TaskConfig(on_bad_record="raise", max_prompt_tokens=30, **config)
    rows = [dict(zip(("prompt", "target", "more"), row, strict=True)) for row in rows]
    try:
        file = written(tmp_path_factory.mktemp("rows"), rows, form)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return  # cells of several kinds fit no column
    found, wanted = as_columns(file, asked), one_by_one(file, asked)
    if found is None:
        return
    assert list(found) == wanted
    assert [found[n] for n in range(len(rows))] == wanted
    assert list(found[1:]) == wanted[1:]
    assert b"".join(found.told()) == b"".join(map(_told, wanted))
    assert found.sizes(_most).tolist() == [_measured(one.messages)[1] for one in wanted]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("on_long", ["skip", "truncate_left"])
@pytest.mark.parametrize("fields", [(), ("target", "more"), None])
def test_prompts_are_left_out_and_counted_as_of_records(tmp_path, monkeypatch, form, on_long, fields):
    monkeypatch.setattr(deferred, "LONGEST", 3)
    config = TaskConfig(max_prompt_tokens=100, on_long_prompt=on_long, system="é")
    rows = [{"prompt": "é x" * (n * 7 % 40 + 1), "target": n, "more": f"{n}"} for n in range(40)]
    found = as_columns(written(tmp_path, rows, form), config)
    late, told = defer(list(found), PROCESSOR, config, fields)
    ours, counts = defer_texts(found, PROCESSOR, config, fields)
    assert counts == told
    assert told.too_long + told.truncated
    assert told.deferred
    assert list(ours) == late
    opened = Opener(PROCESSOR, config)
    assert list(map(opened, ours)) == list(map(opened, late))


GOOD = [{"prompt": f"What is {n} + 1?", "target": f"{n + 1}", "level": n, "hard": n > 3} for n in range(6)]
LINES = [json.dumps(row) for row in GOOD]
BAD_LINES = {
    "blank": "", "half": LINES[0][:-5], "two": f"{LINES[0]} {LINES[1]}", "list": "[1]", "twice": LINES[0][:-1] + ', "level": 3}',
    "surrogate": LINES[0].replace("What", "\\ud800"), "null": LINES[0].replace("false", "null"), "more": LINES[0][:-1] + ', "x": 1}',
    "fewer": '{"prompt": "a", "target": "b"}', "number": LINES[0].replace('"1"', "1"), "share": LINES[0].replace(": 0", ": 0.5"),
    "nan": LINES[0].replace(": 0", ": NaN"), "large": LINES[0].replace(": 0", ": 99999999999999999999"), "tab": LINES[0].replace("What", "a\tb"),
    "nothing": LINES[0].replace("What is 0 + 1?", " "), "no answer": LINES[0].replace('"1"', '"\\u00a0"'), "garbage": LINES[0] + " x",
    "place": LINES[0][:-1] + ', "\\u0000where": "x"}', "deep": json.dumps(GOOD[0] | {"prompt": "[" * 99_999}),
    "answered": json.dumps(GOOD[0] | {"prompt": json.dumps([{"role": "assistant", "content": "hi"}])}),
    "silent": json.dumps(GOOD[0] | {"prompt": json.dumps([{"role": "user", "content": ""}])}),
    "unread": json.dumps(GOOD[0] | {"prompt": json.dumps([{"role": "user", "content": "hi", "tools": []}])}),
    "nested": '{"a": ' + "[" * 99_999, "indented": " " + LINES[0], "said": json.dumps(GOOD[0] | {"prompt": json.dumps([{"role": "user", "content": "hi"}])}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_is_not_plain_leaves_all_to_the_reader_by_rows(tmp_path, name):
    file = tmp_path / "rows.jsonl"
    for place in (0, 3, 6):
        lines = [*LINES[:place], BAD_LINES[name], *LINES[place:]]
        file.write_text("\n".join(lines) + "\n")
        assert as_columns(file, TaskConfig()) is None
    file.write_text("\n".join(LINES))
    assert list(as_columns(file, TaskConfig())) == one_by_one(file, TaskConfig())


def test_a_file_whose_every_line_names_places_is_left_to_the_reader_by_rows(tmp_path):
    file = written(tmp_path, [GOOD[0] | {"\0where": "x"}] * 3, "jsonl")
    assert as_columns(file, TaskConfig()) is None


def test_messages_in_a_cell_that_are_refused_are_told_with_their_place(tmp_path):
    said = json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])
    file = written(tmp_path, [*GOOD, {**GOOD[0], "prompt": said}], "jsonl")
    assert text_records("train", TaskConfig(train_file=str(file)), "", 1) is None
    assert "rows.jsonl:7: field 'prompt' ends with the assistant's own message" in one_by_one(
        file, TaskConfig(on_bad_record="raise")
    )
    assert len(one_by_one(file, TaskConfig(on_bad_record="skip"))) == 6


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_texts_have_room_for_more_than_arrow_s_small_strings(tmp_path, form):
    table = read_table(str(written(tmp_path, GOOD, form)), "train", 1)
    assert [str(field.type) for field in table.schema] == [
        "large_string",
        "large_string",
        "int64",
        "bool",
        "large_string",
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_rows_that_do_not_suit_are_not_read(tmp_path, monkeypatch, kind):
    import datasets

    rows = [{"prompt": "2 + 3?", "target": "5", "image": "a.png"}] * 3
    if kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "kept")
    file = tmp_path / "kept" if kind == "saved" else written(tmp_path, rows, kind)
    sound = []
    monkeypatch.setattr(arrow_rows, "_sound", lambda table: sound.append(table))
    assert text_records("train", TaskConfig(train_file=str(file)), "", 1) is None
    assert text_records("train", TaskConfig(train_file=str(file), format="gsm8k"), "", 1) is None
    assert not sound


def test_bytes_that_are_no_text_leave_all_to_the_reader_by_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    for content in (
        b"\xef\xbb\xbf" + LINES[0].encode(),
        LINES[0].encode().replace(b"What", b"\xff"),
        b"",
        b"\n",
    ):
        file.write_bytes(content + b"\n" + LINES[1].encode())
        assert as_columns(file, TaskConfig()) is None


@pytest.mark.parametrize(
    ("row", "config"),
    [
        ({"system": "be kind"}, {}),
        ({"image": "a.png"}, {}),
        ({"history": []}, {}),
        ({"instruction": "do"}, {}),
        ({"tools": ""}, {}),
        ({"data.q": "text"}, {"prompt_field": "data.q"}),
        ({}, {"prompt_field": "question"}),
        ({}, {"target_field": "answer"}),
        ({}, {"format": "gsm8k"}),
        ({"target": None}, {}),
        ({"target": float("nan")}, {}),
        ({"target": ["1", "2"]}, {}),
        ({"prompt": [{"role": "user", "content": "hi"}]}, {}),
    ],
)
def test_rows_that_say_more_than_one_text_are_asked_one_by_one(tmp_path, row, config):
    file = written(tmp_path, [{"prompt": "2 + 3?", "target": "5"} | row] * 3, "parquet")
    assert as_columns(file, TaskConfig(**config)) is None


def test_shards_keep_their_names_and_other_places_are_left_alone(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, GOOD, "parquet")
    config = TaskConfig(train_file=str(tmp_path), train_limit=8, evaluate_file="")
    found = text_records("train", config, "", 12)
    assert list(found) == one_by_one(tmp_path, config)[:8]
    assert [one.id for one in found][5:7] == ["file/a/rows.parquet[5]", "file/b/rows.parquet[0]"]
    assert text_records("train", config, "", 13) is None
    for place in (
        "owner/name",
        "hf://datasets/owner/name/rows.jsonl",
        "missing.jsonl",
        str(tmp_path / "a" / "*.csv"),
    ):
        assert text_records("train", replace(config, train_file=place), "", 1) is None


def test_columns_that_nobody_asks_for_are_not_read(tmp_path):
    """Their bytes are broken, so that whoever reads them fails."""
    rows = [
        {"prompt": f"{n} + 3?", "target": str(n + 3), "level": n, "trace": f"thought {n}"} for n in range(9)
    ]
    file = written(tmp_path, rows, "parquet")
    chunk = next(
        column
        for column in map(parquet.read_metadata(file).row_group(0).column, range(4))
        if column.path_in_schema == "trace"
    )
    whole = bytearray(file.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    whole[begin : begin + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    file.write_bytes(bytes(whole))
    config = TaskConfig(train_file=str(file))
    few = text_records("train", config, "", 1, {"level"})
    assert [(one.target, one.columns) for one in few][:2] == [
        ("3", {"prompt": "0 + 3?", "target": "3", "level": 0}),
        ("4", {"prompt": "1 + 3?", "target": "4", "level": 1}),
    ]
    for fields in (
        None,
        {"trace"},
        {"colour"},
    ):  # of a field that is not there whoever asks can say which are
        assert text_records("train", config, "", 1, fields) is None


def test_a_reward_that_asks_for_a_field_that_is_not_there_is_told_all_that_are(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "AT_ONCE", 2)
    rows = [{"prompt": f"{n} + 3?", "target": str(n + 3), "level": n} for n in range(9)]
    file = written(tmp_path, rows, "parquet")
    (tmp_path / "r.py").write_text("def score(answer, colour):\n    return 1.0\n")
    tasks = TaskConfig(train={"file": 1.0}, train_file=str(file))
    told = "has no such field; it has: prompt, target, level"
    with pytest.raises(ValueError, match=told):
        build.prompts_of(
            Config(tasks=tasks), load_task("file"), "train", PROCESSOR, [f"{tmp_path}/r.py:score"]
        )


def test_a_saved_data_set_is_read_as_columns_too(tmp_path):
    import datasets

    datasets.Dataset.from_list(GOOD).select([4, 2, 5]).save_to_disk(tmp_path / "kept")
    assert read_table(str(tmp_path / "kept"), "train", 1, wanted={"target"}).column_names[:1] == ["target"]
    found = as_columns(tmp_path / "kept", TaskConfig())
    assert [(one.id, one.target) for one in found] == [
        ("file/kept/train[0]", "5"),
        ("file/kept/train[1]", "3"),
        ("file/kept/train[2]", "6"),
    ]
    assert list(found) == one_by_one(tmp_path / "kept", TaskConfig())


def test_a_run_asks_the_same_from_columns_as_from_rows(tmp_path, monkeypatch):
    file = written(tmp_path, GOOD, "jsonl")
    config = Config(
        model=ModelConfig(path="random:llama"), tasks=TaskConfig(train={"file": 1.0}, train_file=str(file))
    )
    made = partial(build.prompts_of, config, load_task("file"), "train", PROCESSOR, ["exact"])
    rows = made()
    monkeypatch.setattr(build, "AT_ONCE", 3)
    monkeypatch.setattr(deferred, "AT_ONCE", 3)
    found = made()
    assert isinstance(found, TextRecords)
    assert len(alike(found)) == 1
    assert list(map(Opener(PROCESSOR, config.tasks), found)) == rows
    broken = [*LINES[:4], '{"prompt": "", "target": "x"}', LINES[5]]
    file.write_text("\n".join(broken))
    with pytest.raises(ValueError, match=r"rows.jsonl:5: field 'prompt' is empty"):
        made()


def test_places_are_taken_as_of_a_list(tmp_path):
    found = as_columns(written(tmp_path, GOOD, "parquet"), TaskConfig())
    whole = list(found)
    assert found[-1] == whole[-1]
    assert list(found.where(np.arange(6) % 3 == 1)) == [whole[1], whole[4]]
    assert (list(found[1:5]), list(found[4:1:-2])) == (whole[1:5], whole[4:1:-2])
    with pytest.raises(IndexError):
        found[6]


def test_a_loader_looks_up_only_the_names_asked_for(tmp_path, monkeypatch):
    found = as_columns(written(tmp_path, GOOD, "parquet"), TaskConfig())
    records, opener = list(found), Opener(PROCESSOR, TaskConfig())
    ours, plain = (
        PromptLoader([(some, 1.0)], 3, open=opener, tokens=opener.tokens) for some in (found, records)
    )
    assert ours.draw(4) == plain.draw(4)
    monkeypatch.setattr(TextRecords, "__iter__", None)
    names = [(records[n].source, records[n].id) for n in (1, 4)] + [("file", "file/other[0]"), ("other", "x")]
    for loader in (ours, plain):
        loader.rest(names, 1)
    assert ours.resting == plain.resting
    assert ours.left_out == 2
    kept = [replace(opener(records[2]), target="text"), replace(opener(records[2]), id="none")]
    assert ours.completed(kept) == plain.completed(kept)
    assert [one.target for one in ours.completed(kept)] == [records[2].target, records[2].target]
    assert ours.rest([], 1) is None
