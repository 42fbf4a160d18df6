"""Questions about chorales that are heard: Bach's notes, played as plain tones.

A window of a few quarter notes is rendered when its question is drawn; what is right is read off the notes. Four kinds
of question, about as many of each per chorale: where the highest voice goes (`line`), which voice moves (`voice`), whether
the last chord is major or minor (`chord`), and how many chords are played (`count`), fast or slowly.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightrft.media.parts import Made

RATE = 16_000
SECONDS = 0.5
"""Length of a quarter note."""
FAST = 0.25
"""Length of a quarter note in half of the windows whose chords are counted, so that how long a sound is does not give the answer away."""
EACH = 2
"""Windows per chorale, kind and answer."""
VOICES = ("bass", "tenor", "alto", "soprano")

Chord = tuple[int, ...]
"""MIDI pitches that sound together, lowest first."""
Window = tuple[Chord, ...]


def line(window: Window) -> str | None:
    """ "higher" or "lower": where the highest voice ends against where it begins; None if it ends there."""
    first, last = window[0][-1], window[-1][-1]
    return None if first == last else "higher" if last > first else "lower"


def voice(window: Window) -> str | None:
    """The voice that moves while the three others stay; None if that is not so."""
    moving = [name for name, *pitches in zip(VOICES, *window, strict=True) if len(set(pitches)) > 1]
    return moving[0] if len(moving) == 1 else None


def chord(window: Window) -> str | None:
    """ "major" or "minor", for a last chord that is a triad; None for others."""
    for root in window[-1]:
        above = {(pitch - root) % 12 for pitch in window[-1]}
        if above in ({0, 4, 7}, {0, 3, 7}):
            return "major" if 4 in above else "minor"
    return None


def count(window: Window) -> str:
    """How many chords there are."""
    return str(len(window))


KINDS: Mapping[str, tuple[str, Sequence[int], Callable[[Window], str | None]]] = {
    "line": (
        "Does the highest voice end higher or lower than it begins? Answer higher or lower.",
        (4,),
        line,
    ),
    "voice": (
        "Of the four voices, one moves and three stay. Which one moves? Answer soprano, alto, tenor or bass.",
        (2,),
        voice,
    ),
    "chord": ("Is the last chord major or minor? Answer major or minor.", (3,), chord),
    "count": ("How many chords are played? Answer with the number.", (1, 2, 3, 4, 5), count),
}
"""Kind -> question, chords in a window, and the right answer to a window, None if the question does not fit it."""


def questions(
    scores: Mapping[str, Sequence[Sequence[Sequence[int]]]], split: str, kinds: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Name and row (question, target, audio) of each question, mixed in an order that is always the same.

    scores: "train" and "test" -> chorales -> chords -> pitches, as the data set has them. What is asked of "train" is
    never asked of "test" too, though some chorales share phrases.
    """
    rows = dict(_windows(scores["test"], "test", kinds))
    if split == "train":
        held_out = set(rows.values())
        rows = {p: w for p, w in _windows(scores["train"], "train", kinds) if w not in held_out}
    found = [(place, _row(place, *asked)) for place, asked in rows.items()]
    random.Random(f"chorales/{split}").shuffle(found)
    return found


def render(window: Window, seconds: float = SECONDS) -> dict[str, Any]:
    """The window as a sound: {"array": (n,) float32 between -1 and 1, "sampling_rate": 16000}; `seconds` a chord."""
    time = np.arange(int(seconds * RATE)) / RATE
    envelope = np.minimum(time / 0.01, 1) * np.exp(-3 * time)
    chords = [envelope * sum(_tone(pitch, time) for pitch in pitches) for pitches in window]
    return {"array": (0.15 * np.concatenate(chords)).astype(np.float32), "sampling_rate": RATE}


def _tone(pitch: int, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Four partials, each weaker than the one below."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    partials = [np.sin(2 * np.pi * n * frequency * time) / n**2 for n in range(1, 5)]
    found: NDArray[np.float64] = np.sum(partials, axis=0)
    return found


def _row(place: str, kind: str, window: Window) -> dict[str, Any]:
    question, _, answer = KINDS[kind]
    fast = kind == "count" and zlib.crc32(place.encode()) % 2
    sound = Made(f"chorale {place}", partial(render, window, FAST if fast else SECONDS))
    return {"question": question, "target": answer(window), "audio": sound}


def _windows(
    scores: Sequence[Sequence[Sequence[int]]], split: str, kinds: Sequence[str]
) -> Iterator[tuple[str, tuple[str, Window]]]:
    for number, score in enumerate(scores):
        chords = [tuple(sorted(int(pitch) for pitch in step if pitch > 0)) for step in score]
        for kind in kinds:
            draw = random.Random(f"chorales/{split}/{number}/{kind}")
            for start, window in _chosen(chords, kind, draw):
                yield f"{split}[{number}]:{start}-{start + len(window)} {kind}", (kind, window)


def _chosen(chords: Sequence[Chord], kind: str, draw: random.Random) -> Iterator[tuple[int, Window]]:
    """Windows of four voices throughout, as many for each answer where the chorale has them."""
    _, lengths, answer = KINDS[kind]
    by_answer: dict[str, dict[Window, int]] = {}
    for length in lengths:
        for start in range(len(chords) - length + 1):
            window = tuple(chords[start : start + length])
            right = answer(window) if all(len(c) == len(VOICES) for c in window) else None
            if right is not None:
                by_answer.setdefault(right, {}).setdefault(window, start)
    for _, windows in sorted(by_answer.items()):
        for window in draw.sample(sorted(windows), min(EACH, len(windows))):
            yield windows[window], window
