"""Tasks for models that draw: gold pictures get full marks and counter-examples none, whatever their size."""

from __future__ import annotations

import io
import itertools
import random

import numpy as np
import pytest

from lightrft.config import TaskConfig
from lightrft.rewards.drawn import PLACES as JUDGED
from lightrft.rewards.drawn import compressible, drawn_shapes, drawn_shapes_share, incompressible
from lightrft.tasks.drawings import ANIMALS, ASKED, COLOURS, KINDS, PLACES, SHAPES, draw_shapes, jpeg
from lightrft.tasks.shape_pictures import SIDE, SIZE, placed
from lightrft.tasks.table import load_task
from lightrft.utils.shapes import drawn, read

SPOTS = ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
WHERE = {
    "left of": ((0.5, 0.2), (0.55, 0.8)),
    "right of": ((0.5, 0.8), (0.45, 0.2)),
    "above": ((0.2, 0.5), (0.8, 0.55)),
    "below": ((0.8, 0.5), (0.2, 0.4)),
}


def judged(reward, image, *target):
    return reward.function(image, *target)


def gold(target):
    """(colour, shape, row, column) of all that is asked for."""
    spots = WHERE[target["place"]] if "place" in target else SPOTS
    kinds = [(colour, shape) for number, colour, shape in target["objects"] for _ in range(number)]
    return [(*kind, *spot) for kind, spot in zip(kinds, spots, strict=False)]


@pytest.mark.parametrize("option", ASKED)
def test_gold_pictures_get_full_marks_and_counter_examples_none(option):
    asked = list(ASKED[option]())
    for n, (_, target) in enumerate(asked[:: max(1, len(asked) // 12)]):
        objects = gold(target)
        assert judged(drawn_shapes, drawn(objects, side=(64, 96)[n % 2]), target) == 1.0
        colour, shape, row, column = objects[0]
        wrong = {
            "one too few": objects[1:],
            "one too many": [*objects, (colour, shape, 0.5, 0.5)]
            if "place" not in target
            else [*objects, (colour, shape, 0.85, 0.15)],
            "another colour": [
                (next(c for c in COLOURS if c not in {o[0] for o in objects}), shape, row, column),
                *objects[1:],
            ],
            "another shape": [
                (colour, next(s for s in SHAPES if s not in {o[1] for o in objects}), row, column),
                *objects[1:],
            ],
        }
        if len(target["objects"]) > 1:
            a, b = objects
            wrong["colours changed round"] = [(b[0], *a[1:]), (a[0], *b[1:])]
        if "place" in target:
            wrong["places changed round"] = [(*a[:2], *b[2:]), (*b[:2], *a[2:])]
            wrong["across"] = [
                (*a[:2], *WHERE["above" if "of" in target["place"] else "left of"][0]),
                (*b[:2], *WHERE["above" if "of" in target["place"] else "left of"][1]),
            ]
        for name, others in wrong.items():
            assert judged(drawn_shapes, drawn(others), target) == 0.0, (target, name)
            assert judged(drawn_shapes_share, drawn(others), target) < 1.0, (target, name)


def test_the_share_of_shapes_counts_what_is_missing_and_what_is_too_much():
    three = {"objects": [[3, "red", "circle"]]}
    row = [("red", "circle", 0.25, 0.25), ("red", "circle", 0.25, 0.75), ("red", "circle", 0.75, 0.25)]
    other = ("blue", "square", 0.75, 0.75)
    right = {0: 0.0, 1: 1 / 3, 2: 2 / 3, 3: 1.0}
    assert {n: judged(drawn_shapes_share, drawn(row[:n]), three) for n in right} == pytest.approx(right)
    assert judged(drawn_shapes_share, drawn([*row, other]), three) == pytest.approx(3 / 4)
    assert judged(drawn_shapes_share, drawn([*row[:2], other]), three) == pytest.approx(2 / 4)
    assert judged(drawn_shapes_share, drawn([other]), three) == 0.0
    beside = {"objects": [[1, "red", "circle"], [1, "blue", "square"]], "place": "left of"}
    assert judged(drawn_shapes_share, drawn([row[2], other]), beside) == 1.0
    assert judged(drawn_shapes_share, drawn([row[0], other]), beside) == 0.5, "below as much as beside"
    assert judged(drawn_shapes_share, drawn([row[0]]), beside) == 0.25


def test_noise_and_blank_pictures_show_nothing_that_was_asked_for():
    target = {"objects": [[1, "red", "circle"]]}
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for image in (
        noise,
        np.full((64, 64, 3), 255, np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.full((64, 64, 3), (220, 40, 40), np.uint8),
    ):
        assert judged(drawn_shapes, image, target) == 0.0


@pytest.mark.parametrize(("colour", "shape"), KINDS)
def test_each_kind_is_read_at_any_size_in_any_place_through_a_jpeg_and_noise(colour, shape):
    from PIL import Image

    rng = np.random.default_rng(0)
    for side, size, (row, column) in itertools.product((64, 200), (0.12, 0.2), ((0.3, 0.3), (0.61, 0.52))):
        image = drawn([(colour, shape, row, column)], side=side, size=size)
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=90)
        noisy = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
        for seen in (image, noisy, np.asarray(Image.open(file))):
            (found,) = read(seen)
            assert (found.colour, found.shape) == (colour, shape)
            assert (found.row, found.column) == pytest.approx((row, column), abs=0.04)


def test_pictures_that_only_seem_to_show_what_was_asked_for_get_nothing():
    red, blue = COLOURS["red"], COLOURS["blue"]

    def on_white(*spots):
        image = np.full((64, 64, 3), 255, np.uint8)
        for (top, left, side), colour in spots:
            image[top : top + side, left : left + side] = colour
        return image

    inside = on_white(((12, 12, 40), red), ((22, 22, 20), blue))
    both = {"objects": [[1, "red", "circle"], [1, "blue", "square"]]}
    assert judged(drawn_shapes, inside, both) == 0.0, "a square with another in it is no circle"
    one = {"objects": [[1, "red", "square"]]}
    assert judged(drawn_shapes, on_white(((12, 12, 40), red)), one) == 1.0
    assert judged(drawn_shapes, np.full((64, 64, 3), red, np.uint8), one) == 0.0, "a ground is no shape"
    assert judged(drawn_shapes, on_white(((0, 12, 40), red)), one) == 0.0, "it may go on beyond the border"
    assert judged(drawn_shapes, on_white(((12, 12, 40), red), ((22, 22, 20), (255,) * 3)), one) == 0.0
    plus = on_white(*(((12 + a, 12 + b, 20), red) for a, b in ((0, 10), (10, 0), (20, 10), (10, 20))))
    assert judged(drawn_shapes, plus, {"objects": [[1, "red", "circle"]]}) == 0.0


@pytest.mark.parametrize("side", [256, 512])
def test_small_shapes_of_large_pictures_are_told_apart(side):
    rng = np.random.default_rng(1)
    for size, shape, _ in itertools.product((0.05, 0.06, 0.07), SHAPES, range(2)):
        (found,) = read(drawn([("green", shape, *rng.uniform(0.2, 0.8, 2))], side=side, size=size))
        assert (found.colour, found.shape) == ("green", shape)


MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def in_words(text):
    """Texts that ask for the same two kinds of shape, and the same text where there is one kind."""
    for between in ("and", *MIRRORED):
        one, found, other = text.partition(f" {between} ")
        if found:
            pairs = [(one, other), (other, one)]
            return {f"{a} {way} {b}" for a, b in pairs for way in ("and", *MIRRORED)}
    return {text}


def test_combinations_are_held_out_and_their_parts_are_not():
    whole = {r.messages[0]["content"] for r in draw_shapes("").load("train", TaskConfig(), "", 0)}
    for option in ("", *ASKED):
        task = draw_shapes(option)
        train, evaluate = (
            {r.messages[0]["content"] for r in task.load(s, TaskConfig(), "", 0)}
            for s in ("train", "evaluate")
        )
        assert not train & evaluate
        assert not {same for text in evaluate for same in in_words(text)} & whole, option
        assert len(evaluate) / len(train | evaluate) == pytest.approx(0.2, abs=0.01)
        words = [set(" ".join(texts).replace("s ", " ").split()) for texts in (train, evaluate)]
        assert {w.rstrip("s") for w in words[1]} <= {w.rstrip("s") for w in words[0]}
    with pytest.raises(ValueError, match="draw_shapes:size': there are draw_shapes and draw_shapes:count"):
        draw_shapes("size")
    assert set(PLACES) == set(JUDGED)


def test_the_size_of_a_picture_counts_either_way():
    from PIL import Image

    plain = np.full((64, 64, 3), 200, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    assert judged(incompressible, noise) == len(file.getvalue()) / 1000
    assert judged(compressible, noise) == -judged(incompressible, noise)
    assert judged(compressible, plain) > judged(compressible, noise)
    assert judged(incompressible, plain) < 1.0 < judged(incompressible, noise)
    found = {
        s: {r.target for r in jpeg("compressible", "").load(s, TaskConfig(), "", 0)}
        for s in ("train", "evaluate")
    }
    assert found["train"] | found["evaluate"] == set(ANIMALS)
    assert not found["train"] & found["evaluate"]
    assert len(found["evaluate"]) == 9


def test_pictures_to_learn_from_show_what_was_asked_for_and_nothing_that_is_held_out():
    draw = random.Random(0)
    for option in ASKED:
        for _, target in ASKED[option]():
            image = drawn(placed(target, draw), side=SIDE, size=SIZE)
            assert judged(drawn_shapes, image, target) == 1.0
    for option, share in (("", 0.0), ("count", 0.0), ("colour:30", 0.3), ("40", 0.4)):
        kind = option.split(":")[0] if option.split(":")[0] in ASKED else ""
        shown, asked = (
            {s: load_task(name).load(s, TaskConfig(), "", 0) for s in ("train", "evaluate")}
            for name in (f"shape_pictures:{option}" if option else "shape_pictures", f"draw_shapes:{kind}" if kind else "draw_shapes")
        )  # fmt: skip
        targets = {r.messages[0]["content"]: r.target for r in [*asked["train"], *asked["evaluate"]]}
        for split, among in shown.items():
            texts = {r.messages[0]["content"] for r in among}
            assert texts <= {r.messages[0]["content"] for r in asked[split]}, "no pair of the other split"
            images = [r.target[0]["content"][0]["image"] for r in among[:150]]
            right = [
                judged(drawn_shapes, image.make(), targets[r.messages[0]["content"]])
                for image, r in zip(images, among, strict=False)
            ]
            wrong = 1 - sum(right) / len(right)
            # A text at random is now and then the right one.
            assert wrong == pytest.approx(share if split == "train" else 0.0, abs=0.09 if share else 0)


@pytest.mark.parametrize("option", ["size", "100", "count:x", "30:count", "count:30:1"])
def test_pictures_of_what_is_not_known_are_refused(option):
    with pytest.raises(ValueError, match=f"task 'shape_pictures:{option}': name one of count, colour, place"):
        load_task(f"shape_pictures:{option}")
