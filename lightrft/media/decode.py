"""From the source of one picture, clip or sound to pixels and samples; every failure is a MediaError naming the source.

A source is a path, a URL, bytes, {"bytes": ..., "path": ...}, a PIL picture, an array, a list of pictures (a clip), or
Made. Nothing is read before `picture`, `clip` or `sound` is called.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from lightrft.utils.errors import RolloutError
from lightrft.utils.imports import require

URLS = ("http://", "https://", "data:")
TIMEOUT_SECONDS = 30.0
LARGEST_PIXELS = 178_956_970
"""Pixels of a picture or frame beyond which it is taken for a bomb, twice what PIL warns at."""


LONGEST_NAME = 1024
"""Characters of a path; a longer text is a medium itself (base64), and is not repeated in messages."""
HIGHEST_RATE = 10_000_000
"""Samples or frames per second beyond which a rate is no rate."""
MPEG = ("MP3", "MPEG")
"""Formats of which libsndfile guesses the length from the first frames, and reads no further."""
PICTURES = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "TGA",
    "ICO",
)
"""What PIL may take a file for: others run programs (PostScript) or are rarely meant."""


class MediaError(RolloutError, ValueError):
    """A picture, clip or sound that cannot be used; the text names it and says why."""

    boundary = "media"


@dataclass(frozen=True)
class Made:
    """A medium that is made only when it is needed, such as a rendered sound or a window of a clip."""

    name: str
    """What messages and logs call it."""
    make: Callable[[], Any]
    """Returns any other source; the same one at every call."""


@dataclass(frozen=True)
class Clip:
    """Frames of a video, as sampled."""

    frames: NDArray[np.uint8]
    """(F, H, W, 3) RGB"""
    seconds: list[float]
    """Time of each frame since the beginning of the video."""
    fps: float
    """Of these frames, not of the video they came from."""
    duration: float
    """Of the whole video, in seconds."""


def label(source: Any) -> str:
    """What to call a source: its path, its URL, its name, or what kind of thing it is."""
    if isinstance(source, Mapping):
        return str(source.get("path") or f"a dict with {', '.join(map(str, source))}")
    if isinstance(source, str) and source.startswith("data:"):
        return f"{source[:24]}..."
    if isinstance(source, str | Path):
        return str(source) if len(str(source)) <= LONGEST_NAME else f"{str(source)[:24]}..."
    return source.name if isinstance(source, Made) else type(source).__name__


def picture(source: Any, *, max_pixels: int) -> Any:
    """The picture in RGB, upright, what is transparent on white, scaled down to at most max_pixels (0: never)."""
    image_class, ops = require("PIL.Image", "media"), require("PIL.ImageOps", "media")
    source, name = _made(source)
    try:
        opened = _opened_picture(source, name, image_class)
        _check_picture(opened, name)
        opened.load()
        found = _rgb(ops.exif_transpose(opened), image_class)
        if opened is not source:
            opened.close()
    except MediaError:
        raise
    except image_class.UnidentifiedImageError:
        raise MediaError(f"{name}: not a picture of a kind that PIL reads.") from None
    except image_class.DecompressionBombError as error:
        raise MediaError(f"{name}: too large ({error})") from None
    except (OSError, SyntaxError, ValueError, struct.error, EOFError) as error:
        raise MediaError(f"{name}: broken or cut off ({error}).") from None
    width, height = found.size
    size = fitted(width, height, max_pixels)
    return found if size == found.size else found.resize(size, image_class.Resampling.BICUBIC)


def fitted(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Width and height of the same shape with at most max_pixels pixels (0: any number), at least 1 each."""
    if not max_pixels or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    narrow = max(1, int(min(width, height) * scale))
    wide = max(1, min(int(max(width, height) * scale), max_pixels // narrow))
    return (narrow, wide) if width < height else (wide, narrow)


def sound(source: Any, *, rate: int, max_seconds: float) -> NDArray[np.float32]:
    """(n,) float32 samples at `rate` per second, the mean over channels.

    MediaError also for a sound longer than max_seconds (0: any), an empty one, and one with NaN or infinity in it.
    """
    source, name = _made(source)
    if isinstance(source, Mapping) and source.get("array") is not None:
        samples, given = _samples(source["array"], name), _rate(source.get("sampling_rate"), name)
    elif isinstance(source, np.ndarray):
        samples, given = source, 0
    else:
        samples, given = _read_sound(_file(source, name), name, max_seconds)
    if given <= 0:
        raise MediaError(f'{name}: the rate is not stated. Give {{"array": ..., "sampling_rate": 16000}}.')
    if not samples.size:
        raise MediaError(f"{name}: the sound is empty.")
    _check_length(len(samples) / given, max_seconds, name)
    mono = (samples if samples.ndim == 1 else samples.mean(axis=1)).astype(np.float32)
    if not np.isfinite(mono).all():
        raise MediaError(f"{name}: some samples are not finite numbers.")
    if given == rate:
        return mono
    resampled: NDArray[np.float32] = require("soxr", "media").resample(mono, given, rate)
    return resampled


def clip(source: Any, *, fps: float, max_frames: int, max_pixels: int) -> Clip:
    """Frames of a video: from each of its equal parts of 1 / fps seconds the one in the middle.

    Where these would be more than max_frames, the parts are longer. No frame is given twice: a video with fewer
    frames gives all it has. Frames that come as an array (F, H, W, 3) or a list of pictures, without a rate of their
    own, are taken to be sampled at `fps` already; {"frames": ..., "fps": ...} states the rate.
    """
    source, name = _made(source)
    if isinstance(source, Mapping) and source.get("frames") is not None:
        frames, given = source["frames"], _rate(source.get("fps") or fps, name)
    elif isinstance(source, np.ndarray | list | tuple):
        frames, given = source, fps
    else:
        return _read_clip(_file(source, name), name, fps=fps, max_frames=max_frames, max_pixels=max_pixels)
    if not len(frames):
        raise MediaError(f"{name}: the clip has no frames.")
    duration = len(frames) / given
    times = _wanted(duration, fps, min(max_frames, len(frames)))
    kept = [min(int(t * given), len(frames) - 1) for t in times]
    pictures = [np.asarray(picture(frames[place], max_pixels=max_pixels)) for place in kept]
    return _clip(pictures, [place / given for place in kept], duration, name)


def _made(source: Any) -> tuple[Any, str]:
    name = label(source)
    while isinstance(source, Made):
        source = source.make()
    return source, name


def _file(source: Any, name: str) -> str | io.BytesIO:
    """A path that exists, or the bytes, of something that is not empty."""
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, str) and source.startswith(URLS):
        source = _fetched(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise MediaError(f"{name}: no bytes in it.")
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        raise MediaError(f"{name}: a {type(source).__name__} is not a source of a picture, clip or sound.")
    if isinstance(source, str) and source.startswith("file://"):
        source = unquote(urlparse(source).path)
    try:
        path = Path(source).expanduser()
        found = path.is_file()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a text too long for a name, an unknown user, a zero byte
        raise MediaError(
            f"{name}: no name of a file ({error.args[-1]!s:.80}). Give a path, a URL, or bytes."
        ) from None
    if not found:
        raise MediaError(f"{name}: no such file (looked for {path.absolute()}).")
    if not path.stat().st_size:
        raise MediaError(f"{name}: the file is empty.")
    return str(path)


def _fetched(url: str, name: str) -> bytes:
    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            return bytes(response.read())
    except (OSError, ValueError, HTTPException) as error:
        raise MediaError(f"{name}: cannot be fetched ({error}).") from None


def _opened_picture(source: Any, name: str, image_class: Any) -> Any:
    if isinstance(source, image_class.Image):
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not source.size:
            raise MediaError(
                f"{name}: an array {source.shape} of {source.dtype}; a picture needs uint8 numbers (H, W, 3)."
            )
        try:
            return image_class.fromarray(np.ascontiguousarray(source))
        except TypeError:
            raise MediaError(f"{name}: an array {source.shape} is no picture (H, W, 3).") from None
    image_class.init()
    return image_class.open(
        _file(source, name), formats=[kind for kind in PICTURES if kind in image_class.OPEN]
    )


def _check_picture(image: Any, name: str) -> None:
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise MediaError(f"{name}: {width} x {height} pixels are too many.")
    if image.mode == "F":
        raise MediaError(f"{name}: pixels are real numbers of unknown range. Give 8 or 16 bits.")


def _rgb(image: Any, image_class: Any) -> Any:
    if image.mode.startswith("I"):
        # PIL would cut 16 bits off at 255 instead of scaling them.
        image = image_class.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        image = image_class.alpha_composite(image_class.new("RGBA", solid.size, "white"), solid)
    return image.convert("RGB")


def _rate(stated: Any, name: str) -> float:
    """A rate as a finite number, 0 for none; resamplers never end with others."""
    if stated is None:
        return 0
    if isinstance(stated, bool) or not isinstance(stated, int | float | np.number):
        raise MediaError(f"{name}: the rate is {stated!r:.40}, which is not a number.")
    if not math.isfinite(stated) or not 0 <= stated <= HIGHEST_RATE:
        raise MediaError(
            f"{name}: the rate is {stated}; it must be a number above 0, at most {HIGHEST_RATE}."
        )
    return stated  # type: ignore[return-value]  # a number of numpy is one


def _samples(array: Any, name: str) -> NDArray[Any]:
    """(n,) or (n, channels) real numbers; whole numbers are scaled by the range of their type."""
    try:
        samples = np.asarray(array)
    except ValueError as error:
        raise MediaError(f"{name}: the array is no sound ({error}).") from None
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise MediaError(
            f"{name}: an array {samples.shape} of {samples.dtype} is no sound (n,) or (n, channels)."
        )
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    if samples.dtype.kind == "f" or not samples.size:
        return samples
    limits = np.iinfo(samples.dtype)
    middle = 0 if limits.min < 0 else (limits.max + 1) // 2
    return (samples.astype(np.float64) - middle) / (limits.max + 1 - middle)


def _read_sound(file: str | io.BytesIO, name: str, max_seconds: float) -> tuple[NDArray[Any], int]:
    soundfile = require("soundfile", "media")
    _check_whole_wave(file, name)
    try:
        with soundfile.SoundFile(file) as opened:
            mpeg = opened.format in MPEG or opened.subtype.startswith("MPEG")
            if mpeg and not _length_stated(file):
                return _read_mpeg(file, name, max_seconds)
            _check_length(opened.frames / opened.samplerate, max_seconds, name)
            samples = opened.read(dtype="float32", always_2d=True)
            if len(samples) < opened.frames:
                raise MediaError(f"{name}: cut off after {len(samples)} of {opened.frames} samples.")
            return samples, opened.samplerate
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(
            f"{name}: broken, or not a sound of a kind that libsndfile reads: wav, flac, ogg, mp3 ({error})."
        ) from None


def _length_stated(file: str | io.BytesIO) -> bool:
    """Whether MPEG audio begins with a header (Xing, Info) that says how long it is."""
    with open(file, "rb") if isinstance(file, str) else io.BytesIO(file.getbuffer()) as opened:
        head = opened.read(10)
        tag = 0
        if head[:3] == b"ID3":
            tag = 10 + sum(
                (byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
            )
        opened.seek(tag)
        frame = opened.read(512)
    return b"Xing" in frame or b"Info" in frame


def _read_mpeg(file: str | io.BytesIO, name: str, max_seconds: float) -> tuple[NDArray[Any], int]:
    """(n, channels) samples of MPEG audio and their rate, by FFmpeg, which counts frames instead of guessing their number."""
    av = require("av", "media")
    if not isinstance(file, str):
        file.seek(0)
    pieces, length, rate = [], 0, 0
    try:
        with av.open(file) as container:
            for frame in container.decode(container.streams.audio[0]):
                rate = frame.sample_rate
                layout = frame.to_ndarray().astype(np.float32)
                scale = (
                    np.iinfo(frame.to_ndarray().dtype).max + 1 if frame.to_ndarray().dtype.kind == "i" else 1
                )
                channels = len(frame.layout.channels)
                pieces.append((layout.T if frame.format.is_planar else layout.reshape(-1, channels)) / scale)
                length += len(pieces[-1])
                _check_length(length / rate, max_seconds, name)
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{name}: broken, or not a sound of a kind that FFmpeg reads ({error}).") from None
    if not pieces:
        raise MediaError(f"{name}: the sound is empty.")
    return np.concatenate(pieces), rate


def _check_whole_wave(file: str | io.BytesIO, name: str) -> None:
    """libsndfile gives what is left of a wave file without a word."""
    with open(file, "rb") if isinstance(file, str) else io.BytesIO(file.getbuffer()) as opened:
        head = opened.read(8)
        size = opened.seek(0, io.SEEK_END)
    stated = int.from_bytes(head[4:8], "little") + 8
    # Programs that write into a pipe do not know the length, and state the largest or none.
    if head[:4] == b"RIFF" and size < stated < 0xFFFF0000:
        raise MediaError(f"{name}: cut off after {size} of {stated} bytes.")


def _check_length(seconds: float, max_seconds: float, name: str) -> None:
    if max_seconds and seconds > max_seconds:
        raise MediaError(f"{name}: {seconds:.1f} seconds are too long; the limit is {max_seconds:g}.")


def _wanted(duration: float, fps: float, most: int) -> list[float]:
    count = min(most, max(1, round(duration * fps)))
    return [(place + 0.5) * duration / count for place in range(count)]


def _clip(frames: Sequence[NDArray[Any]], seconds: list[float], duration: float, name: str) -> Clip:
    if len({frame.shape for frame in frames}) > 1:
        raise MediaError(f"{name}: the frames have different sizes.")
    return Clip(np.stack(frames), seconds, len(frames) / duration, duration)


def _read_clip(file: str | io.BytesIO, name: str, *, fps: float, max_frames: int, max_pixels: int) -> Clip:
    hidden = _hidden(file, name)
    with _opened_clip(file, name) as (container, stream):
        start, duration, count = _extent(container, stream, name, hidden)
    times = _wanted(duration, fps, min(max_frames, count))
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
            if stream.width * stream.height > LARGEST_PIXELS:
                raise MediaError(f"{name}: {stream.width} x {stream.height} pixels are too many.")
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
