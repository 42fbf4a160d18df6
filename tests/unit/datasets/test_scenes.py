import random

import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.scenes import BOXES, TRAITS, about, questions
from lightrft.datasets.sources import BadRecords


def thing(colour, shape):
    return {"color": colour, "type": shape, "size": 20, "x_loc": 0, "y_loc": 0}


SCENE = [
    [thing("Yellow", "square"), thing("Yellow", "circle"), thing("Black", "square")],
    [thing("#0099ff", "triangle")] * 5,
    [],
]
COUNTS = {
    ("left", "yellow"): 2,
    ("left", "black"): 1,
    ("left", "squares"): 2,
    ("left", "circles"): 1,
    ("middle", "blue"): 5,
    ("middle", "triangles"): 5,
}
"""Those that are not 0, counted by hand."""


def test_one_question_is_asked_for_each_count_that_a_scene_offers():
    for seed in range(20):
        asked = about(SCENE, random.Random(seed))
        assert [count for _, _, count in asked] == [0, 1, 2, 5]
        assert all(COUNTS.get((box, trait), 0) == count for box, trait, count in asked)


def test_every_box_and_trait_is_asked_about():
    drawn = {(box, trait) for seed in range(200) for box, trait, _ in about(SCENE, random.Random(seed))}
    assert drawn == {(box, trait) for box in BOXES for trait in TRAITS}


def test_rows_hold_question_number_and_the_pictures_place(tmp_path):
    bad = BadRecords("raise")
    rows = [("dev.jsonl:1", {"image": "images/a.png", "structured_rep": SCENE})]
    found = questions(rows, tmp_path, "train", bad)
    assert len(found) == 4
    where, row = next(item for item in found if item[1]["target"] == "5")
    assert where in {"dev.jsonl:1 middle blue", "dev.jsonl:1 middle triangles"}
    assert row["question"] in {
        "How many objects in the middle box are blue?",
        "How many objects in the middle box are triangles?",
    }
    assert row["image"] == str(tmp_path / "images/a.png")
    assert questions(rows, tmp_path, "train", bad) == found


def test_a_row_without_a_scene_is_a_bad_record(tmp_path):
    rows = [
        ("dev.jsonl:1", {"image": "a.png"}),
        ("dev.jsonl:2", {"image": "a.png", "structured_rep": SCENE[:2]}),
    ]
    with pytest.raises(ValueError, match="dev.jsonl:1: .*structured_rep"):
        questions(rows, tmp_path, "train", BadRecords("raise"))
    with pytest.raises(ValueError, match="dev.jsonl:2: the scene has 2 boxes, not 3"):
        questions(rows[1:], tmp_path, "train", BadRecords("raise"))
    skipping = BadRecords(TaskConfig(on_bad_record="skip").on_bad_record)
    assert questions(rows, tmp_path, "train", skipping) == []
    assert skipping.skipped == 2
