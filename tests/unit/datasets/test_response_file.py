"""Saved responses in Parquet: every field and column comes back, one is read by itself, and what is broken is named."""

import io
import json
import math
import random

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lightrft.datasets import response_file

TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)
NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.5, math.nan, math.inf, 1e30, 9999.99999, 1e-9])


@st.composite
def responses(draw):
    """Rows as a run saves them, with texts of any characters and numbers of any size."""
    length = draw(st.integers(0, 5))
    some = st.lists(NUMBERS, min_size=length, max_size=length)
    row = {
        "step": 7, "group": draw(st.integers(0, 3)), "prompt_id": draw(TEXTS), "source": "sums",
        "messages": [{"role": "user", "content": draw(TEXTS)}], "target": draw(TEXTS | st.none() | st.integers()),
        "response": draw(TEXTS), "length": length, "finish": "stop", "reward": draw(st.none() | st.floats(-9, 9)),
        "parts": {draw(TEXTS): 0.5}, "origin": "sampled", "use": draw(st.sampled_from(["trained", "extra"])),
        "weight_version": draw(st.integers(0, 2**40)),
    }  # fmt: skip
    row |= draw(
        st.sampled_from([{}, {"failed": "why"}, {"said": row["messages"], "step_rewards": [None, 1.5]}])
    )
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length))
    pieces = draw(st.lists(TEXTS, min_size=length, max_size=length))
    tokens = {"ids": ids, "mask": [n % 2 == 0 for n in ids], "behavior": draw(some), "pieces": pieces}
    tokens |= {name: draw(some) for name in ("old", "new", "weight", "mine") if draw(st.booleans())}
    return row | {"tokens": tokens}


def written(tmp_path, rows):
    file = tmp_path / "step-000007.parquet"
    with file.open("wb") as opened:
        response_file.write(opened, rows)
    return file


def same(name, was, now):
    """What is kept of a number: five decimals, of a log-prob or entropy four, of a weight five digits; None of what is not finite."""
    if not math.isfinite(was):
        return now is None
    if name == "weight":
        return now == float(f"{np.float32(was):.5g}")
    places = 5.1e-6 if name == "mine" else 5.6e-5
    return math.isclose(was, now, abs_tol=places, rel_tol=1e-12)


@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(responses(), max_size=6))
def test_every_field_comes_back_and_every_number_to_its_last_place(tmp_path_factory, rows):
    file = written(tmp_path_factory.mktemp("any"), rows)
    found = response_file.read(file)
    for was, now in zip(rows, found, strict=True):
        assert {**was, "tokens": 0} == {**now, "tokens": 0}
        assert was["tokens"].keys() == now["tokens"].keys()
        for name, column in was["tokens"].items():
            if name in ("ids", "mask", "pieces"):
                assert column == now["tokens"][name]
            else:
                assert all(same(name, a, b) for a, b in zip(column, now["tokens"][name], strict=True)), name
    assert [{**row, "tokens": 0} for row in rows] == [
        {**row, "tokens": 0} for row in response_file.read(file, tokens=False)
    ]
    for place, row in enumerate(found):
        assert response_file.read(file, [place]) == [row]


def many(groups=40, siblings=8, length=300):
    """A step whose groups do not stand together, as those left out by a filter do not."""
    draw = random.Random(0)
    rows = []
    for n in range(groups * siblings):
        behavior = [-abs(draw.gauss(0, 1)) for _ in range(length)]
        tokens = {
            "ids": [draw.randrange(50_000) for _ in behavior],
            "mask": [True] * length,
            "behavior": behavior,
        }
        rows.append(
            {"step": 7, "group": n % groups, "prompt_id": f"q{n % groups}", "source": "s", "messages": [], "target": n}
            | {"response": f"r{n}", "length": length, "finish": "stop", "reward": n / 7, "parts": {}}
            | {"origin": "sampled", "use": "trained", "weight_version": 3, "tokens": tokens}
        )  # fmt: skip
    return rows


def test_a_row_group_holds_whole_groups_and_one_response_is_read_with_its_row_group_alone(
    tmp_path, monkeypatch
):
    file = written(tmp_path, many())
    opened = parquet.ParquetFile(file)
    inside = [
        set(opened.read_row_group(n, ["group"]).column("group").to_pylist())
        for n in range(opened.num_row_groups)
    ]
    assert len(inside) > 5
    assert sum(map(len, inside)) == len(set().union(*inside)) == 40, "no group is in two"
    bytes_read = []

    class Counted(io.FileIO):
        def read(self, size=-1):
            found = super().read(size)
            bytes_read.append(len(found))
            return found

    plain = parquet.ParquetFile
    monkeypatch.setattr(response_file.parquet, "ParquetFile", lambda path: plain(Counted(path)))
    assert response_file.read(file, [77])[0]["response"] == "r77"
    largest = max(opened.metadata.row_group(n).total_byte_size for n in range(len(inside)))
    assert sum(bytes_read) < largest + 100_000 < file.stat().st_size / 2
    bytes_read.clear()
    index = response_file.index(file)
    assert sum(bytes_read) < 100_000
    assert [row["group"] for row in index] == [n % 40 for n in range(320)]
    assert index[77]["reward"] == 77 / 7


def test_any_program_reads_it_by_the_names_of_its_columns(tmp_path):
    found = parquet.read_table(written(tmp_path, many(2, 2, 3)))
    assert found.column("reward").to_pylist() == [0.0, 2 / 7, 1 / 7, 3 / 7]
    assert found.column("place").to_pylist() == [0, 2, 1, 3]
    assert {"response", "messages", "target", "token_ids", "token_mask", "token_behavior"} <= set(
        found.column_names
    )
    assert round(float(found.column("token_behavior")[0][0].as_py()), 5) == response_file.read(
        tmp_path / "step-000007.parquet"
    )[0]["tokens"]["behavior"][0]  # fmt: skip


@pytest.mark.parametrize("cut", [0, 3, 100, -9, -1])
def test_a_broken_file_is_named(tmp_path, cut):
    file = written(tmp_path, many(2, 2, 3))
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"step-000007\.parquet: the file is broken"):
        response_file.read(file)


def test_a_file_of_something_else_is_named(tmp_path):
    import pyarrow as pa

    parquet.write_table(pa.table({"a": [1]}), tmp_path / "step-000007.parquet")
    with pytest.raises(
        ValueError, match=r"step-000007\.parquet: the file holds no responses that a run has saved"
    ):
        response_file.index(tmp_path / "step-000007.parquet")


def test_no_response_at_all_is_a_file_too(tmp_path):
    file = written(tmp_path, [])
    assert response_file.read(file) == response_file.index(file) == []


def test_a_demo_kind_of_response_takes_few_bytes_for_a_token(tmp_path):
    """Sentences of a few words with every column of a run with a reference and several updates."""
    draw = np.random.default_rng(0)
    words = [f" {''.join(chr(97 + c) for c in draw.integers(0, 26, 5))}" for _ in range(600)]
    rows = many(16, 8, 32)
    for n, row in enumerate(rows):
        ids = np.minimum(draw.zipf(1.3, 32), 599)
        behavior = -draw.exponential(0.4, 32) * (draw.random(32) < 0.5)
        row["tokens"] = {
            "ids": ids.tolist(), "mask": [True] * 32, "behavior": behavior, "pieces": [words[i] for i in ids],
            "old": behavior + draw.normal(0, 1e-5, 32), "new": behavior * draw.normal(1, 0.03, 32),
            "entropy": -behavior * draw.uniform(0.5, 2, 32), "ref": behavior * draw.normal(1, 0.2, 32),
            "rewards": [0.0] * 31 + [row["reward"]], "advantages": [float(n % 3)] * 32,
            "returns": [row["reward"]] * 32, "weight": [1 / 32] * 32,
        }  # fmt: skip
        row |= {
            "response": "".join(words[i] for i in ids),
            "messages": [{"role": "user", "content": f"A question {n % 16}"}],
        }
    size = written(tmp_path, rows).stat().st_size
    as_json = sum(len(json.dumps(row, default=list)) for row in rows)
    assert size < 11 * len(rows) * 32
    assert size < as_json / 7
