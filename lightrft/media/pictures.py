"""Pictures: from a source to RGB pixels."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from lightrft.media.sources import STANDARD, Limits, MediaError, file_of, made
from lightrft.utils.imports import require

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


def picture(source: Any, *, max_pixels: int, limits: Limits = STANDARD) -> Any:
    """The picture in RGB, upright, what is transparent on white, scaled down to at most max_pixels (0: never)."""
    image_class, ops = require("PIL.Image", "media"), require("PIL.ImageOps", "media")
    source, name = made(source)
    try:
        opened = _opened_picture(source, name, image_class, limits)
        _check_picture(opened, name, limits)
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


def _opened_picture(source: Any, name: str, image_class: Any, limits: Limits) -> Any:
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
        file_of(source, name, limits), formats=[kind for kind in PICTURES if kind in image_class.OPEN]
    )


def _check_picture(image: Any, name: str, limits: Limits) -> None:
    width, height = image.size
    limits.check_pixels(width, height, name)
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
