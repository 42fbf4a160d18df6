"""Small copies of what prompts show, once each by their hash: RUN/media/HASH.webp and .ogg. No path of the machine is kept."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from lightrft.media.clips import clip
from lightrft.media.parts import KINDS
from lightrft.media.pictures import picture
from lightrft.media.sounds import sound
from lightrft.media.sources import LONGEST_NAME, URLS, label
from lightrft.utils.atomic import write_bytes
from lightrft.utils.imports import require

MIB = 2**20
LARGEST_PICTURE, LARGEST_FRAME = 256**2, 128**2
"""Pixels of a copy of a picture, and of each frame of a clip."""
MOST_FRAMES, FRAMES_PER_SECOND = 8, 2.0
LONGEST_SOUND, RATE = 30, 16_000
"""Seconds of a sound that are kept from its beginning, and samples a second."""
COPY = "copy"
"""Key of a part beside its source: the name of its copy; empty where none was kept."""
NAMES = re.compile(r"[0-9a-f]{16}\.(webp|ogg)")

log = logging.getLogger(__name__)


class MediaCopies:
    """Copies media of messages into a folder until they take `mib` MiB there; making one touches no file."""

    def __init__(self, folder: Path, mib: float) -> None:
        self.folder, self.room = folder, mib * MIB
        self._known: dict[str, str] = {}

    def kept(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with the bare name of each medium, and of its copy. What cannot be read is named without a copy."""
        return [{**one, "content": self._content(one["content"])} for one in messages]

    def _content(self, content: Any) -> Any:
        if not isinstance(content, list | tuple):
            return content
        return [self._part(part) if part["type"] in KINDS else part for part in content]

    def _part(self, part: Mapping[str, Any]) -> dict[str, Any]:
        kind, source = part["type"], part[part["type"]]
        return {"type": kind, kind: base_name(source), COPY: self._copy(kind, source)}

    def _copy(self, kind: str, source: Any) -> str:
        """Name of the copy, made if there is room; a file is read once in a run's process."""
        path = str(source) if isinstance(source, str | Path) and len(str(source)) <= LONGEST_NAME else ""
        if path in self._known:
            return self._known[path]
        if self.room <= 0:
            return ""
        try:
            data, ending = COPIERS[kind](source)
        except (ValueError, OSError, RuntimeError) as error:  # MediaError, no encoder, no package
            log.info("no copy of %s is kept: %s", base_name(source), error)
            return ""
        name = f"{hashlib.sha256(data).hexdigest()[:16]}.{ending}"
        file = self.folder / name
        if not file.is_file():
            there = sum(one.stat().st_size for one in self.folder.glob("*.*")) if self.folder.is_dir() else 0
            if there + len(data) > self.room:
                self.room = 0
                log.warning("log.media_mib is used up: media of later prompts are saved by name alone.")
                return ""
            write_bytes(file, data, lasts=False)
        if path:
            self._known[path] = name
        return name


def base_name(source: Any) -> str:
    """What a source is called without its folders; an address as it is."""
    name = label(source)
    return name if name.startswith(URLS) else PurePosixPath(PureWindowsPath(name).as_posix()).name


def copy_of(folder: Path, part: Mapping[str, Any]) -> Path:
    """The copy that a saved part names. ValueError if it names none, or it is not there."""
    name = str(part[COPY])
    if not NAMES.fullmatch(name):
        raise ValueError("no copy of it was kept: it could not be read, or log.media_mib was used up")
    if not (folder / name).is_file():
        raise ValueError(f"its copy is not there: media/{name}")
    return folder / name


def webp(frames: Sequence[Any], seconds: float) -> bytes:
    """Pictures as one WebP, moving if there are several; `seconds`: how long each is shown."""
    written = io.BytesIO()
    first, *others = frames
    options = {"save_all": True, "append_images": others, "duration": round(1000 * seconds), "loop": 0}
    first.save(written, format="WEBP", quality=80, **(options if others else {}))
    return written.getvalue()


def _picture(source: Any) -> tuple[bytes, str]:
    return webp([picture(source, max_pixels=LARGEST_PICTURE)], 0), "webp"


def _clip(source: Any) -> tuple[bytes, str]:
    found = clip(source, fps=FRAMES_PER_SECOND, max_frames=MOST_FRAMES, max_pixels=LARGEST_FRAME)
    image_class = require("PIL.Image", "media")
    return webp([image_class.fromarray(frame) for frame in found.frames], 1 / found.fps), "webp"


def _sound(source: Any) -> tuple[bytes, str]:
    soundfile = require("soundfile", "media")
    samples = np.clip(sound(source, rate=RATE, max_seconds=0)[: LONGEST_SOUND * RATE], -1.0, 1.0)
    written = io.BytesIO()
    with soundfile.SoundFile(written, "w", RATE, 1, format="OGG", subtype="VORBIS") as file:
        for start in range(0, len(samples), RATE):  # libsndfile's encoder of Vorbis fails on long blocks
            file.write(samples[start : start + RATE])
    return written.getvalue(), "ogg"


COPIERS = {"image": _picture, "video": _clip, "audio": _sound}
