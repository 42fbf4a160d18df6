"""Tasks for models that draw whose pictures a program judges: plain shapes by count, colour and place, short texts, and pictures that take few
or many bytes.

Which combinations of shapes are held out follows from their names alone: no task of this file trains on one of them, in whatever words, while the
shapes that it is made of are trained on. Of texts and animals a fifth is held out, again by their names.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from lightrft.config import TaskConfig
from lightrft.tasks.base import Records, Split, Task, limited, no_option
from lightrft.types import Message, Record
from lightrft.utils.shapes import COLOURS, SHAPES

NUMBERS = ("a", "two", "three", "four")
PLACES = ("left of", "right of", "above", "below")
KINDS = tuple(itertools.product(COLOURS, SHAPES))
Asked = tuple[str, dict[str, Any]]
"""What is asked for, and the target that tells it to the reward."""


def counts() -> Iterator[Asked]:
    """ "three red circles": a number of one kind of shape."""
    for number, (colour, shape) in itertools.product(range(1, 5), KINDS):
        text = f"{NUMBERS[number - 1]} {colour} {shape}{'s' if number > 1 else ''}"
        yield text, {"objects": [[number, colour, shape]]}


def colours() -> Iterator[Asked]:
    """ "a red circle and a blue square": two shapes, each with a colour of its own."""
    for (one, a), (other, b) in itertools.combinations(KINDS, 2):
        if one != other and a != b:
            yield f"a {one} {a} and a {other} {b}", {"objects": [[1, one, a], [1, other, b]]}


def places() -> Iterator[Asked]:
    """ "a red circle left of a blue square"."""
    for ((one, a), (other, b)), place in itertools.product(itertools.permutations(KINDS, 2), PLACES):
        if one != other and a != b:
            text = f"a {one} {a} {place} a {other} {b}"
            yield text, {"objects": [[1, one, a], [1, other, b]], "place": place}


ASKED: dict[str, Callable[[], Iterator[Asked]]] = {"count": counts, "colour": colours, "place": places}
"""Option of `draw_shapes` -> what is asked for."""


def combination(target: Mapping[str, Any]) -> str:
    """What is combined: a number with a kind of shape, or two kinds, whichever is named first and wherever each is."""
    return str(sorted(target["objects"]))


def a_fifth(keys: Iterable[str]) -> frozenset[str]:
    """The fifth of these that is held out: that of the least checksums, so that it depends on nothing but the keys."""
    known = sorted(set(keys), key=lambda key: (zlib.crc32(key.encode()), key))
    return frozenset(known[: round(len(known) / 5)])


def held_out_shapes() -> frozenset[str]:
    """Combinations that are evaluated: a fifth of the numbers of a kind, and a fifth of the pairs of kinds, which `colours` and `places` share."""
    return a_fifth(combination(target) for _, target in counts()) | a_fifth(
        combination(target) for _, target in colours()
    )


def draw_shapes(option: str) -> Task:
    """The task of drawing shapes by count, colour and place, after GenEval (Ghosh et al. 2023, https://arxiv.org/abs/2310.11513), or one of these by `draw_shapes:count`,
    `:colour`, `:place`. A fifth of the combinations is evaluated, the others are trained on."""
    if option and option not in ASKED:
        raise ValueError(
            f"task 'draw_shapes:{option}': there are draw_shapes and draw_shapes:{', draw_shapes:'.join(ASKED)}."
        )
    name = f"draw_shapes:{option}" if option else "draw_shapes"
    asked = [one for kind in ([option] if option else ASKED) for one in ASKED[kind]()]
    apart = held_out_shapes()

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:  # as every task
        mine = [one for one in asked if (combination(one[1]) in apart) == (split == "evaluate")]
        found = [_record(name, f"{split}-{text}", text, target) for text, target in mine]
        return limited(Records(found), split, config)

    return Task(name, load, {"drawn_shapes": 1.0}, lambda record: str(record.messages[-1]["content"]))


ANIMALS = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion", "tiger", "bear", "raccoon", "fox",
    "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog",
    "chicken", "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo",
)  # fmt: skip


def jpeg(reward: str, option: str) -> Task:
    """An animal by its name; a fifth of the animals is evaluated."""
    name = f"jpeg_{reward}"
    no_option(name, option)
    apart = a_fifth(ANIMALS)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:  # as every task
        mine = [animal for animal in ANIMALS if (animal in apart) == (split == "evaluate")]
        found = [_record(name, f"{split}-{animal}", animal, animal) for animal in mine]
        return limited(Records(found), split, config)

    return Task(name, load, {reward: 1.0}, lambda record: str(record.target))


TEXTS = (
    "open", "closed", "hello", "welcome", "no entry", "for sale", "thank you", "way out", "fresh bread", "keep left", "good morning", "to the sea", "mind the gap",
    "room 12", "happy birthday", "push", "pull", "exit", "coffee", "library", "bus stop", "level 3", "cold drinks", "hot soup", "mathematics", "diffusion",
    "once upon a time", "be kind", "wet paint", "new ideas", "slow down", "quiet please", "lost and found", "platform 9", "ice cream", "first aid", "city hall",
    "garden tools", "open daily", "book club",
)  # fmt: skip
SIGNS: dict[Split, tuple[str, ...]] = {
    "train": ('a sign that says "{}"', 'a page with the text "{}"', 'the words "{}" on a wall'),
    "evaluate": ('a poster that reads "{}"',),
}
"""How texts are asked for."""


def draw_text(option: str) -> Task:
    """A short text to be drawn, read by the reward `ocr`, as in Flow-GRPO (Liu et al. 2025, https://arxiv.org/abs/2505.05470); a fifth of the texts is evaluated,
    in other words."""
    no_option("draw_text", option)
    apart = a_fifth(TEXTS)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:  # as every task
        mine = [text for text in TEXTS if (text in apart) == (split == "evaluate")]
        found = [
            _record("draw_text", f"{split}-{form}-{text}", asked.format(text), text)
            for form, asked in enumerate(SIGNS[split])
            for text in mine
        ]
        return limited(Records(found), split, config)

    return Task("draw_text", load, {"ocr": 1.0}, lambda record: str(record.target))


def _record(task: str, name: str, text: str, target: Any) -> Record:
    return Record(f"{task}/{name}", [Message(role="user", content=text)], target, task)


TASKS: dict[str, Callable[[str], Task]] = {
    "draw_shapes": draw_shapes,
    "draw_text": draw_text,
    "jpeg_compressible": partial(jpeg, "compressible"),
    "jpeg_incompressible": partial(jpeg, "incompressible"),
}
