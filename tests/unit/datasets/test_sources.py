import csv
import gzip
import io
import json
import logging

import pyarrow
import pyarrow.parquet
import pytest

from lightrft.datasets.sources import BadRecords, is_file, read, stored

ROWS = [{"prompt": "2+2?", "target": "4"}, {"prompt": "3+3?", "target": "6"}]


def rows(path, policy="raise"):
    return list(read(str(path), "train", BadRecords(policy)))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl_rows_know_their_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"q": 1}\n\n{"q": 2}\n')
    assert rows(path) == [("a.jsonl:1", {"q": 1}), ("a.jsonl:3", {"q": 2})]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    write(tmp_path / "a.jsonl", text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    write(tmp_path / "c.json", json.dumps(ROWS))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "target"])
        writer.writeheader()
        writer.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.csv", "e.parquet"):
        assert [row for _, row in rows(tmp_path / name)] == ROWS, name


def test_a_broken_line_is_named_with_its_file(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"q": 1}\n{"q": 2,,}\n')
    with pytest.raises(
        ValueError, match=r"(?s)a\.jsonl:2: not JSON .*\{\"q\": 2,,\}.*tasks\.on_bad_record=skip"
    ):
        rows(path)


def test_a_line_that_is_no_object_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", "[1, 2]\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: expected an object"):
        rows(path)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"q": 1}\n{"q": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not JSON"):
        rows(tmp_path / "a.jsonl")


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"q": 1}\n')
    assert rows(tmp_path / "a.jsonl") == [("a.jsonl:1", {"q": 1})]


def test_bad_lines_are_skipped_counted_and_logged_when_told_to(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", '{"q": 1}\nbroken\n' * 7)
    bad = BadRecords("skip")
    with caplog.at_level(logging.WARNING, "lightrft"):
        assert len(list(read(str(path), "train", bad))) == 7
    assert bad.skipped == 7
    assert len(caplog.messages) == 6
    assert "a.jsonl:2" in caplog.messages[0]


def test_a_cut_off_gzip_file_is_named(tmp_path):
    whole = gzip.compress("".join(f'{{"q": {n}}}\n' for n in range(1000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: broken or cut off gzip"):
        rows(tmp_path / "a.jsonl.gz")


def test_json_lines_named_json_are_explained(tmp_path):
    path = write(tmp_path / "a.json", '{"q": 1}\n{"q": 2}\n')
    with pytest.raises(ValueError, match=r"If it holds one object per line, name it \.jsonl"):
        rows(path)


def test_a_csv_row_with_a_missing_column_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,target\n2+2?,4\n3+3?\n")
    with pytest.raises(
        ValueError, match=r"a\.csv:3: has more or fewer columns than the header \(prompt, target\)"
    ):
        rows(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no data file '.*none\.jsonl'"):
        rows(tmp_path / "none.jsonl")


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot read this kind of file. There are: \.csv, \.json, \.jsonl, \.parquet"
    ):
        rows(write(tmp_path / "a.txt", "hello"))


def test_pictures_and_sounds_of_the_hub_stay_undecoded():
    datasets = pytest.importorskip("datasets")
    file = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", (2, 2)).save(file, "png")
    picture = {"bytes": file.getvalue(), "path": None}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "images": datasets.List(datasets.Image()),
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    row = {"image": picture, "images": [picture, picture], "audio": {"bytes": b"x", "path": None}, "label": 1}
    table = datasets.Dataset.from_list([row] * 3, features=features).cast_column("audio", datasets.Audio())
    assert list(stored(table)) == [row] * 3


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("openai/gsm8k", False),
        ("openai/gsm8k:main", False),
        ("data/a.jsonl", True),
        ("./x", True),
        ("a.csv.gz", True),
    ],
)
def test_files_and_hub_names_are_told_apart(name, local):
    assert is_file(name) == local
