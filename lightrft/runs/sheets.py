"""The pictures of many responses as one PNG, beside the file of the responses: small, and each found by its place."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightrft.utils.atomic import write_bytes
from lightrft.utils.imports import require

LARGEST = 128
"""Longest side of a saved picture in pixels; a larger one is scaled down."""
IMAGE = "image"


def write_sheet(made: Sequence[Mapping[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Writes the pictures among what responses made, and says for each response where its own is: {"image": {"file", "box"}}.

    `box` is left, top, right, bottom. Nothing is written, and nothing said, where no response made a picture.
    """
    places = [n for n, one in enumerate(made) if IMAGE in one]
    told: list[dict[str, Any]] = [{} for _ in made]
    if not places:
        return told
    image_class = require("PIL.Image", "media")
    pictures = [image_class.fromarray(made[n][IMAGE]) for n in places]
    for one in pictures:
        one.thumbnail((LARGEST, LARGEST))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    columns = math.ceil(math.sqrt(len(pictures)))
    sheet = image_class.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for n, (place, one) in enumerate(zip(places, pictures, strict=True)):
        left, top = n % columns * width, n // columns * height
        sheet.paste(one, (left, top))
        told[place] = {IMAGE: {"file": file.name, "box": [left, top, left + one.width, top + one.height]}}
    written = io.BytesIO()
    sheet.save(written, format="PNG")
    write_bytes(file, written.getvalue())
    return told


def read_picture(file: Path, box: Sequence[int], most: int) -> Any:
    """(H, W, 3) uint8 array of one picture of a sheet, at most `most` pixels wide."""
    import numpy

    image_class = require("PIL.Image", "media")
    with image_class.open(file) as sheet:
        one = sheet.convert("RGB").crop(tuple(box))
    one.thumbnail((most, most))
    return numpy.asarray(one)
