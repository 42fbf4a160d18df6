"""Clips: from a source to frames of a video."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightrft.media.pictures import fitted, picture
from lightrft.media.sources import STANDARD, Limits, MediaError, file_of, label, made, stated_rate
from lightrft.utils.imports import require

Wanted = Callable[[float, int], list[float]]
"""Seconds and number of frames of a video -> times at which it is looked at, in order."""


@dataclass(frozen=True)
class Clip:
    """Frames of a video, as sampled."""

    frames: NDArray[np.uint8]
    """(F, H, W, 3) RGB"""
    seconds: list[float]
    """Time of each frame since the beginning of the video."""
    fps: float
    """Frames per second here, not in the video they came from."""
    duration: float
    """Seconds of the whole video."""


def clip(source: Any, *, fps: float, max_frames: int, max_pixels: int, limits: Limits = STANDARD) -> Clip:
    """Frames of a video: from each of its equal parts of 1 / fps seconds the one in the middle.

    Where these would be more than max_frames, the parts are longer. No frame is given twice: a video with fewer
    frames gives all it has. Frames that come as an array (F, H, W, 3) or a list of pictures, without a rate of their
    own, are taken to be sampled at `fps` already; {"frames": ..., "fps": ...} states the rate.
    """
    wanted = partial(_wanted, fps=fps, most=max_frames)
    return _sampled(source, wanted, fps=fps, max_pixels=max_pixels, limits=limits)


def opening(
    source: Any, *, fps: float, frames: int, max_pixels: int, limits: Limits = STANDARD
) -> NDArray[np.uint8]:
    """(F, H, W, 3) RGB: what a video shows in its first `frames` / `fps` seconds, from each 1 / fps of a second the frame in the middle.

    So what moves keeps its speed. MediaError for a video that is shorter, or has fewer frames to a second: none is given twice.
    Frames without a rate of their own are taken as `clip` takes them.
    """
    name = label(source)

    def wanted(duration: float, count: int) -> list[float]:
        if round(duration * fps) < frames or count < frames:
            raise MediaError(
                f"{name}: {count} frames in {duration:.3g} s, where {frames} at {fps:g} to a second are taken."
            )
        return [(place + 0.5) / fps for place in range(frames)]

    found = _sampled(source, wanted, fps=fps, max_pixels=max_pixels, limits=limits).frames
    if len(found) < frames:
        raise MediaError(f"{name}: {len(found)} frames where {frames} at {fps:g} to a second are taken.")
    return found


def _sampled(source: Any, wanted: Wanted, *, fps: float, max_pixels: int, limits: Limits) -> Clip:
    """The frames of a video that are on display at the times that are `wanted`, each once. `fps`: the rate of frames without one."""
    source, name = made(source)
    if isinstance(source, Mapping) and source.get("frames") is not None:
        frames, given = source["frames"], stated_rate(source.get("fps") or fps, name)
    elif isinstance(source, np.ndarray | list | tuple):
        frames, given = source, fps
    else:
        file = file_of(source, name, limits)
        return _read_clip(file, name, wanted, max_pixels=max_pixels, limits=limits)
    if not len(frames):
        raise MediaError(f"{name}: the clip has no frames.")
    duration = len(frames) / given
    places = (min(int(t * given), len(frames) - 1) for t in wanted(duration, len(frames)))
    kept = list(dict.fromkeys(places))
    pictures = [np.asarray(picture(frames[place], max_pixels=max_pixels, limits=limits)) for place in kept]
    return _clip(pictures, [place / given for place in kept], duration, name)


def _wanted(duration: float, count: int, *, fps: float, most: int) -> list[float]:
    count = min(most, count, max(1, round(duration * fps)))
    return [(place + 0.5) * duration / count for place in range(count)]


def _clip(frames: Sequence[NDArray[Any]], seconds: list[float], duration: float, name: str) -> Clip:
    if len({frame.shape for frame in frames}) > 1:
        raise MediaError(f"{name}: the frames have different sizes.")
    return Clip(np.stack(frames), seconds, len(frames) / duration, duration)


def _read_clip(file: str | io.BytesIO, name: str, wanted: Wanted, *, max_pixels: int, limits: Limits) -> Clip:
    hidden = _hidden(file, name)
    with _opened_clip(file, name) as (container, stream):
        limits.check_pixels(stream.width, stream.height, name)
        start, duration, count = _extent(container, stream, name, hidden)
    times = wanted(duration, count)
    frames, seconds = [], []
    with _opened_clip(file, name) as (container, stream):
        for time, frame in _at(times, _timed(container, stream, start)):
            width, height = fitted(frame.width, frame.height, max_pixels)
            array = frame.to_ndarray(format="rgb24", width=width, height=height)
            frames.append(np.rot90(array, round(frame.rotation / 90)))
            seconds.append(time)
    if not frames:
        raise MediaError(f"{name}: no frame can be decoded.")
    return _clip(frames, seconds, duration, name)


@contextmanager
def _opened_clip(file: str | io.BytesIO, name: str, **options: str) -> Iterator[tuple[Any, Any]]:
    """Container and video stream; errors of FFmpeg inside become MediaError."""
    av = require("av", "media")
    if not isinstance(file, str):
        file.seek(0)
    try:
        with av.open(file, options=options) as container:
            moving = [
                s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
            ]
            if not moving:
                raise MediaError(f"{name}: there is no video in it.")
            stream = moving[0]
            yield container, stream
    except (
        av.FFmpegError,
        AttributeError,
        UnicodeDecodeError,
    ) as error:  # a damaged stream has no width, or odd metadata
        raise MediaError(
            f"{name}: broken, cut off, or not a clip of a kind that FFmpeg reads ({error})."
        ) from None


def _hidden(file: str | io.BytesIO, name: str) -> int:
    """How many frames of a clip an edit list hides: those before a cut that was made without encoding anew, as phones do."""
    with _opened_clip(file, name) as (container, stream):
        shown = sum(1 for p in container.demux(stream) if p.size and not p.is_discard)
        if shown >= 0.95 * stream.frames:
            return 0
    with _opened_clip(file, name, ignore_editlist="1") as (container, stream):
        return sum(1 for p in container.demux(stream) if p.size) - shown


def _extent(container: Any, stream: Any, name: str, hidden: int) -> tuple[float, float, int]:
    """Start and duration in seconds, and number of frames, from the packets: headers may lack or misstate them."""
    packets = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.size and not p.is_discard]
    if not packets:
        raise MediaError(f"{name}: the clip has no frames.")
    if len(packets) < 0.95 * stream.frames and hidden + len(packets) < 0.95 * stream.frames:
        raise MediaError(f"{name}: cut off after {len(packets)} of {stream.frames} frames.")
    known = [(pts, length) for pts, length in packets if pts is not None]
    rate = float(stream.average_rate or 25)
    if not known:
        return 0.0, len(packets) / rate, len(packets)
    first, (last, length) = min(known)[0], max(known)
    duration = (last - first + length) * float(stream.time_base)
    stated = (container.duration or 0) / 1e6
    if (
        not stream.frames
        and stated > 1
        and duration < 0.8 * stated
        and container.size > 0
        and not _other_streams(container)
    ):
        raise MediaError(f"{name}: cut off after {duration:.1f} of {stated:.1f} seconds.")
    return first * float(stream.time_base), duration if length else duration + 1 / rate, len(packets)


def _other_streams(container: Any) -> bool:
    """Whether sound or text may go on after the last picture."""
    return len(container.streams) > 1


def _timed(container: Any, stream: Any, start: float) -> Iterator[tuple[float, Any]]:
    """Each frame with its time since the start. Where the file says nothing, or steps back, the rate decides."""
    step, time = 1 / float(stream.average_rate or 25), 0.0
    for number, frame in enumerate(container.decode(stream)):
        stated = number * step if frame.time is None else frame.time - start
        time = stated if not number or stated > time else time + step
        yield time, frame


def _at(times: Sequence[float], frames: Iterator[tuple[float, Any]]) -> Iterator[tuple[float, Any]]:
    """For each wanted time, the frame on display then; each frame at most once, and no more are decoded than needed."""
    wanted = iter(times)
    next_time = next(wanted)
    shown: tuple[float, Any] | None = None
    for time, frame in frames:
        if shown is not None and time > next_time + 1e-6:
            yield shown
            while next_time < time:
                following = next(wanted, None)
                if following is None:
                    return
                next_time = following
        shown = time, frame
    if shown is not None:
        yield shown
