"""Whether a picture shows the text it was asked for, as a program of optical character recognition reads it (extra `ocr`)."""

from __future__ import annotations

from functools import cache
from typing import Any

from lightrft.rewards.function import each
from lightrft.utils.imports import require

PACKAGES = ("rapidocr", "onnxruntime")
"""What reads; the first holds its models, so that nothing is downloaded."""
SETTINGS = {
    "Global.log_level": "critical",
    "Global.use_cls": False,  # it takes some short words for others upside down
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # each process that judges has one core
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}


@cache
def _reader() -> Any:
    module, _ = (require(package, "ocr") for package in PACKAGES)
    return module.RapidOCR(params=SETTINGS)


def read(image: Any) -> str:
    """The text in a picture (H, W, 3) uint8, line after line without anything between; "" if there is none."""
    import numpy

    found = _reader()(numpy.ascontiguousarray(image[..., ::-1]))  # it reads blue, green, red
    return "".join(found.txts or ())


def bare(text: str) -> str:
    """A text as it is compared: small letters, no spaces."""
    return "".join(text.lower().split())


def distance(one: str, other: str) -> int:
    """Letters to be put in, left out or changed to make one text the other (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        before, row[0] = row[0], place
        for k, theirs in enumerate(other, 1):
            before, row[k] = row[k], min(row[k] + 1, row[k - 1] + 1, before + (letter != theirs))
    return row[-1]


def score(found: str, wanted: str) -> float:
    """1 if the text that was read holds the one that was wanted, else 1 - distance / letters wanted, at least 0. ValueError where none is wanted."""
    found, wanted = bare(found), bare(wanted)
    if not wanted:
        raise ValueError("the target is an empty text: there is nothing to be read")
    if wanted in found:
        return 1.0
    return max(0.0, 1 - distance(found, wanted) / len(wanted))


@each
def ocr(image: Any, target: str) -> float:
    """How much of the text `target` the picture shows: 1 - edit distance / length, at least 0, and 1 where it stands among other text.

    Flow-GRPO (Liu et al. 2025, https://arxiv.org/abs/2505.05470, section 4.1, max(1 - N_e / N_ref, 0)), small letters and capitals alike, without spaces.
    """
    return score(read(image), target)
