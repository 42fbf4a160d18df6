"""Drawn clips: read back by a program that does not know how they were drawn, and nothing in a single frame that tells which way a shape moves."""

from collections import Counter

import numpy as np
import pytest

from lightrft.config import TaskConfig
from lightrft.media.parts import parts, read_media
from lightrft.tasks import moving
from lightrft.tasks.moving import EVALUATE, FRAMES, HELD_OUT, SIDE, TRAINED
from lightrft.tasks.table import load_task
from lightrft.utils.shapes import COLOURS, SHAPES

BRIGHT = 60
"""Darker is the ground."""


def load(name, split="evaluate", seed=0):
    return load_task(name).load(split, TaskConfig(), "", seed)


def frames_of(record):
    """(F, H, W, 3), as a model's processor is given them by default."""
    (video,) = read_media(
        record.messages, max_pixels=1 << 20, fps=1.0, max_frames=16, max_seconds=0, rate=1
    ).videos
    return video.frames


def is_there(frames):
    """(F, H, W)"""
    return frames.max(-1) > BRIGHT


def way(frames):
    """Which of the four shifts of all frames but the last is most like all but the first, found by trying all of them."""
    shape = is_there(frames)
    ways = {"up": (-1, 1), "down": (1, 1), "left": (-1, 2), "right": (1, 2)}
    alike = {
        name: max((np.roll(shape[:-1], sign * step, axis) & shape[1:]).sum() for step in range(1, SIDE // 2))
        for name, (sign, axis) in ways.items()
    }
    return max(alike, key=alike.get)


@pytest.mark.parametrize(
    ("name", "read"),
    [("moving:direction", way), ("moving:flashes", lambda frames: str(is_there(frames).any((1, 2)).sum()))],
)
def test_the_target_is_what_another_program_sees(name, read):
    for record in load(name)[:24]:
        assert read(frames_of(record)) == record.target


def test_a_single_frame_says_nothing_of_the_way():
    """Places of the middle by answer, over many draws of the way alone: alike in every frame, whichever way it goes."""
    import random

    draw = random.Random(0)
    for answer in moving.WAYS:
        places = np.array([moving.moving(answer, draw) for _ in range(4000)])  # (N, F, 2)
        assert places.min() >= 0
        assert places.max() < SIDE
        for frame in (0, FRAMES // 2, FRAMES - 1):
            for axis in (0, 1):
                counts = np.bincount(places[:, frame, axis] // 8, minlength=7)
                assert abs(counts - 4000 / 7).max() < 5 * (4000 / 7) ** 0.5


def test_flashes_never_follow_each_other():
    for record in load("moving:flashes")[:60]:
        seen = is_there(frames_of(record)).any((1, 2))
        assert not (seen[1:] & seen[:-1]).any()


@pytest.mark.parametrize("name", ["moving", "moving:direction", "moving:flashes"])
def test_each_answer_is_right_equally_often_and_no_clip_is_in_both_splits(name):
    found = {split: load(name, split) for split in ("train", "evaluate")}
    for records in found.values():
        assert len(set(Counter(r.target for r in records).values())) == 1
        assert {r.source for r in records} == {name}
        assert len({r.id for r in records}) == len(records)
    shown = {split: {parts(r.messages)[0][1].name for r in records} for split, records in found.items()}
    assert not shown["train"] & shown["evaluate"]


def test_kinds_of_shapes_are_held_out_and_every_colour_and_form_is_trained_on():
    assert not set(HELD_OUT) & set(TRAINED)
    assert {colour for colour, _ in TRAINED} == {colour for colour, _ in HELD_OUT} == set(COLOURS)
    assert {form for _, form in TRAINED} == set(SHAPES)
    for split, shapes in (("train", TRAINED), ("evaluate", HELD_OUT)):
        for record in load("moving:direction", split)[:40]:
            made = parts(record.messages)[0][1]
            assert made.make.args[3] == shapes
            frames = frames_of(record)
            (colour,) = {tuple(pixel) for pixel in frames[is_there(frames)].tolist()}
            assert colour in {COLOURS[name] for name, _ in shapes}


def test_the_evaluation_is_the_same_for_every_seed_and_training_is_not():
    one, other = (load("moving:direction", "evaluate", seed) for seed in (0, 1))
    assert len(one) == EVALUATE
    assert [r.id for r in one] == [r.id for r in other]
    assert np.array_equal(frames_of(one[3]), frames_of(other[3]))
    one, other = (load("moving:direction", "train", seed) for seed in (0, 1))
    assert not np.array_equal(frames_of(one[0]), frames_of(other[0]))


def test_other_questions_are_refused():
    with pytest.raises(
        ValueError, match="task 'moving:speed': there are moving and moving:direction, moving:flashes"
    ):
        load_task("moving:speed")
