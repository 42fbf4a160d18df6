"""Sounds: from a source to samples."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightrft.media.sources import STANDARD, Limits, MediaError, file_of, made, stated_rate
from lightrft.utils.imports import require

MPEG = ("MP3", "MPEG")
"""Formats of which libsndfile guesses the length from the first frames, and reads no further."""


def sound(source: Any, *, rate: int, max_seconds: float, limits: Limits = STANDARD) -> NDArray[np.float32]:
    """(n,) float32 samples at `rate` per second, the mean over channels.

    MediaError also for a sound longer than max_seconds (0: any), an empty one, and one with NaN or infinity in it.
    """
    source, name = made(source)
    if isinstance(source, Mapping) and source.get("array") is not None:
        samples, given = _samples(source["array"], name), stated_rate(source.get("sampling_rate"), name)
    elif isinstance(source, np.ndarray):
        samples, given = source, 0
    else:
        samples, given = _read_sound(file_of(source, name, limits), name, max_seconds)
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
