from pathlib import Path

import pytest
from PIL import Image

from lightrft.config import TaskConfig
from lightrft.datasets.scenes import kinds, questions
from lightrft.datasets.sources import BadRecords

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


def test_of_each_kind_half_of_the_boxes_have_one():
    def box(*objects):
        return [{"color": colour, "type": shape} for colour, shape in objects]

    scene = [
        box(("Yellow", "circle"), ("Black", "square")),
        box(("#0099ff", "circle")),
        box(("Black", "circle")),
    ]
    found = dict(
        questions(
            [],
            [("a", {"image": "a.png", "structured_rep": scene})],
            Path(),
            "train",
            BadRecords("raise"),
            kinds,
        )
    )
    answers = {place: (row["question"], row["target"]) for place, row in found.items()}
    assert answers["a left yellow circle"] == ("Is there a yellow circle?", "yes")
    assert answers["a left black square"] == ("Is there a black square?", "yes")
    assert answers["a middle blue circle"] == ("Is there a blue circle?", "yes")
    assert answers["a right black circle"] == ("Is there a black circle?", "yes")
    without = {place for place, (_, target) in answers.items() if target == "no"}
    assert len(without) == len(answers) / 2 == 4
    assert not without & {"a left yellow circle", "a left black square"}
    assert not any("triangle" in place for place in found)


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
