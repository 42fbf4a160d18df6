from pathlib import Path

import pytest
from PIL import Image

from lightrft.config import TaskConfig
from lightrft.datasets.sources import BadRecords
from lightrft.tasks.scenes import most, questions

SCENE = [[{"type": "square"}] * 3, [{"type": "triangle"}], []]


def test_a_question_shows_one_box_and_asks_for_its_objects(tmp_path):
    picture = Image.new("RGB", (400, 100), "white")
    for place, colour in enumerate(("red", "lime", "blue")):
        picture.paste(colour, (150 * place, 0, 150 * place + 100, 100))
    picture.save(tmp_path / "a.png")
    rows = [("dev.jsonl:1", {"image": "a.png", "structured_rep": SCENE})]
    found = dict(questions([], rows, tmp_path, "train", BadRecords("raise")))
    wanted = {"left": ("3", (255, 0, 0)), "middle": ("1", (0, 255, 0)), "right": ("0", (0, 0, 255))}
    assert found.keys() == {f"dev.jsonl:1 {box}" for box in wanted}
    for box, (count, colour) in wanted.items():
        row = found[f"dev.jsonl:1 {box}"]
        assert row["target"] == count
        shown = row["image"].make()
        assert shown.size == (100, 100)
        assert shown.getcolors() == [(10_000, colour)]


def test_a_box_is_asked_about_once_and_in_one_split():
    def row(name, *counts):
        scene = [[{"type": "square", "x_loc": n} for n in range(count)] for count in counts]
        return name, {"image": f"{name}.png", "structured_rep": scene}

    evaluated, others = [row("a", 1, 2, 1)], [row("b", 2, 3, 4), row("c", 4, 1, 5)]
    others[1][1]["structured_rep"][0].reverse()  # the same box, its objects named in another order

    def asked(split):
        found = questions(evaluated, others, Path(), split, BadRecords("raise"))
        return sorted((place, question["target"]) for place, question in found)

    assert asked("evaluate") == [("a left", "1"), ("a middle", "2")]
    assert asked("train") == [("b middle", "3"), ("b right", "4"), ("c right", "5")]


def test_what_most_objects_are_is_asked_where_it_is_clear_and_each_answer_is_right_equally_often():
    def box(*objects):
        return [{"color": colour, "type": shape} for colour, shape in objects]

    yellow = box(("Yellow", "circle"), ("Yellow", "square"), ("Black", "triangle"))
    blue = box(("#0099ff", "circle"), ("#0099ff", "triangle"), ("#0099ff", "circle"))
    black, black_too, none = box(("Black", "square")), box(("Black", "triangle")), box()
    undecided = box(("Black", "circle"), ("Yellow", "square"))
    rows = [
        ("a", {"image": "a.png", "structured_rep": [yellow, blue, black]}),
        ("b", {"image": "b.png", "structured_rep": [black_too, none, undecided]}),
    ]
    found = dict(questions([], rows, Path(), "train", BadRecords("raise"), most))
    colours = {place: row["target"] for place, row in found.items() if place.endswith("color")}
    assert sorted(colours.values()) == ["black", "blue", "yellow"]
    assert colours.items() >= {("a left color", "yellow"), ("a middle color", "blue")}
    shapes = {place: row["target"] for place, row in found.items() if place.endswith("type")}
    assert shapes == {"a middle type": "circle", "a right type": "square", "b left type": "triangle"}
    question = found["a left color"]["question"]
    assert question == "Which colour do most of the objects have? Answer black, blue or yellow."


def test_a_row_without_a_scene_is_a_bad_record(tmp_path):
    rows = [
        ("dev.jsonl:1", {"image": "a.png"}),
        ("dev.jsonl:2", {"image": "a.png", "structured_rep": SCENE[:2]}),
    ]
    with pytest.raises(ValueError, match="dev.jsonl:1: .*structured_rep"):
        questions([], rows, tmp_path, "train", BadRecords("raise"))
    with pytest.raises(ValueError, match="dev.jsonl:2: the scene has 2 boxes, not 3"):
        questions([], rows[1:], tmp_path, "train", BadRecords("raise"))
    skipping = BadRecords(TaskConfig(on_bad_record="skip").on_bad_record)
    assert questions([], rows, tmp_path, "train", skipping) == []
    assert skipping.skipped == 2
