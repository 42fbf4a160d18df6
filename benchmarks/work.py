"""The work that both sides of a comparison do: the same prompts, the same rewards. Standard library only.

Both sides import this file, each in its own environment, so nothing of LightRFT or of a peer may be imported here.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = (
    "red",
    "apple",
    "stone",
    "river",
    "paper",
    "light",
    "green",
    "house",
    "night",
    "water",
    "bread",
    "music",
    "garden",
    "road",
)


def conversations(tokenizer: Any, *, count: int, num_tokens: int, seed: int) -> list[list[dict[str, str]]]:
    """`count` different questions of exactly `num_tokens` tokens each, chat template and generation prompt included.

    ValueError if the chat template alone is longer, or if no number of words hits the length.
    """
    draw = random.Random(seed)
    found: list[list[dict[str, str]]] = []
    for _ in range(100 * count):
        words = [draw.choice(WORDS) for _ in range(num_tokens)]

        def question(number: int, words: list[str] = words) -> list[dict[str, str]]:
            return [{"role": "user", "content": "Go on: " + " ".join(words[:number])}]

        lengths = range(1, num_tokens)
        place = bisect_left(lengths, num_tokens, key=lambda number: len(tokens(tokenizer, question(number))))
        if place < len(lengths) and len(tokens(tokenizer, question(lengths[place]))) == num_tokens:
            found.append(question(lengths[place]))
        if len(found) == count:
            return found
    shortest = len(tokens(tokenizer, question(1)))
    raise ValueError(
        f"no questions of exactly {num_tokens} tokens: with this chat template one word makes {shortest}."
    )


def tokens(tokenizer: Any, question: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a question as the model reads it."""
    encoded = tokenizer.apply_chat_template(
        list(question), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def pairs(file: str, count: int, repetition: int) -> list[dict[str, Any]]:
    """The pairs of a repetition, `count` of them, which every step of it reads: `prompt`, `chosen`, `rejected`, as messages."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines[count * repetition : count * (repetition + 1)]]
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in found]


def score(answer: str) -> float:
    """A reward in [0, 1] that is the same in every process and differs between answers: a hash of the text."""
    return zlib.crc32(answer.encode()) % 1001 / 1000


@dataclass
class Clock:
    """Wall and CPU seconds by name, added up."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `name`."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu

    def around(self, owner: Any, method: str, name: str) -> None:
        """Times every call of a method of one object."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.measure(name):
                return original(*arguments, **keywords)

        setattr(owner, method, timed)


def report(**values: Any) -> None:
    """Prints one JSON line, with the peak resident memory of this process in GiB; the last line a side prints."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    print(json.dumps({**values, "peak_gib": peak}), file=sys.__stdout__, flush=True)
