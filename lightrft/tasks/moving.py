"""Questions about clips that a program draws, for models that see clips: which way a shape moves, how often it flashes.

`direction`: a shape that leaves on one side comes back on the other, and begins anywhere, so that its place in any one frame is the same whichever
way it goes: who looks at single frames can only guess. `flashes`: it is there in some of the frames, never in two that follow each other.
No kind of shape, a colour with a form, is in both splits; every colour and every form is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, asked
from lightrft.datasets.sources import BadRecords, Row
from lightrft.media.parts import Made
from lightrft.tasks.base import Records, Split, Task, bare_gold, limited, records
from lightrft.utils.answers import plain_words
from lightrft.utils.shapes import COLOURS, INSIDE, SHAPES

SIDE = 56
"""Rows and columns of a frame, pixels."""
FRAMES = 8
FPS = 1.0
"""Frames per second; media.fps may take fewer, not more."""
STEPS = (5, 6, 7)
"""Pixels that a shape may move from one frame to the next, the same in all of a clip."""
HALF = 14
"""Half of a shape's height, pixels."""
TRAIN, EVALUATE = 600, 240
"""Clips of each kind of question."""
HELD_OUT = tuple((colour, SHAPES[place % len(SHAPES)]) for place, colour in enumerate(COLOURS))
"""One form of each colour, which the evaluation alone shows."""
TRAINED = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)
WAYS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Answer -> which way a step goes, in rows and columns."""

Frames = NDArray[np.uint8]
Places = list[tuple[int, int] | None]
"""Row and column of the shape in each frame; None where it is not there."""


def moving(answer: str, draw: random.Random) -> Places:
    """A straight way around the frame."""
    row, column = draw.randrange(SIDE), draw.randrange(SIDE)
    down, right = (draw.choice(STEPS) * way for way in WAYS[answer])
    return [((row + n * down) % SIDE, (column + n * right) % SIDE) for n in range(FRAMES)]


def flashing(answer: str, draw: random.Random) -> Places:
    """One place, in as many frames as the answer says."""
    place = draw.randrange(SIDE), draw.randrange(SIDE)
    first = draw.randrange(2)
    seen = draw.sample(range(first, FRAMES, 2), int(answer))
    return [place if n in seen else None for n in range(FRAMES)]


KINDS: Mapping[str, tuple[str, tuple[str, ...], Callable[[str, random.Random], Places]]] = {
    "direction": (
        "Which way does the shape move? Answer up, down, left or right.",
        tuple(WAYS),
        moving,
    ),
    "flashes": (
        "How often does the shape flash? Answer with the number.",
        ("1", "2", "3", "4"),
        flashing,
    ),
}
"""Kind -> question, its answers, and what draws the places for one of them."""


def questions(split: Split, seed: int, kinds: Sequence[str]) -> list[tuple[str, Row]]:
    """Name and row (question, target, video) of each clip, each answer equally often, mixed in an order that is always the same.

    The evaluation is the same for every seed.
    """
    held_out = split == "evaluate"
    salt, count, shapes = ("evaluate", EVALUATE, HELD_OUT) if held_out else (f"train-{seed}", TRAIN, TRAINED)
    found = []
    for kind in kinds:
        question, answers, _ = KINDS[kind]
        for number in range(count):
            answer, name = answers[number % len(answers)], f"{salt}-{kind}-{number}"
            video = Made(name, partial(clip, name, kind, answer, shapes))
            found.append((name, {"question": question, "target": answer, "video": video}))
    random.Random(f"moving/{salt}").shuffle(found)
    return found


def clip(name: str, kind: str, answer: str, shapes: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """{"frames": (FRAMES, SIDE, SIDE, 3) uint8, "fps": FPS}: a shape on dark noise; the same clip for the same name."""
    draw = random.Random(f"moving/{name}")
    colour, shape = draw.choice(shapes)
    frames = np.random.default_rng(draw.getrandbits(64)).integers(0, 48, (FRAMES, SIDE, SIDE, 3), np.uint8)
    for frame, place in zip(frames, KINDS[kind][2](answer, draw), strict=True):
        if place is not None:
            frame[_inside(shape, *place)] = COLOURS[colour]
    return {"frames": frames, "fps": FPS}


def _inside(shape: str, row: int, column: int) -> NDArray[np.bool_]:
    """(SIDE, SIDE): where the shape is whose middle is there; what leaves on one side is there on the other."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    down, right = (
        (at - middle + SIDE // 2) % SIDE - SIDE // 2 for at, middle in ((rows, row), (columns, column))
    )
    return np.asarray(INSIDE[shape](down / HALF, abs(right) / HALF))


def task(option: str) -> Task:
    """What a drawn shape does in a clip; all kinds of question, or the one in the option."""
    if option and option not in KINDS:
        raise ValueError(f"task 'moving:{option}': there are moving and moving:{', moving:'.join(KINDS)}.")
    name, kinds = f"moving:{option}" if option else "moving", [option] if option else list(KINDS)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:  # as every task
        rows = questions(split, seed, kinds)
        found = records(rows, _example, config, BadRecords(), source=name, instruction="")
        return limited(found, split, config)

    return Task(name, load, {"words": 1.0}, bare_gold, extract=plain_words, max_tokens=16)


def _example(row: Row, config: TaskConfig) -> Example:  # as every Format
    return Example(asked(row["question"], row), row["target"])


TASKS = {"moving": task}
