"""The reward of drawn text: how texts are compared, and what is read of texts that PIL draws."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from lightrft.config import RewardConfig
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.ocr import PACKAGES, distance, ocr, read, score
from lightrft.rewards.table import load_reward
from lightrft.tasks.drawings import TEXTS

reads = all(importlib.util.find_spec(package) for package in PACKAGES)
needs_ocr = pytest.mark.skipif(
    not reads, reason="rapidocr is not installed: pip install rapidocr onnxruntime"
)


@pytest.mark.parametrize(
    ("one", "other", "steps"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("open", "open", 0), ("ab", "ba", 2), ("flaw", "lawn", 2)],
)  # fmt: skip
def test_the_distance_counts_letters_put_in_left_out_or_changed(one, other, steps):
    assert distance(one, other) == distance(other, one) == steps


def test_the_distance_is_that_of_its_recursion():
    """Wagner and Fischer's recursion, without a table."""

    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    draw = np.random.default_rng(0)
    for _ in range(60):
        a, b = ("".join(draw.choice(list("abc"), draw.integers(0, 6))) for _ in range(2))
        assert distance(a, b) == slow(a, b)


@pytest.mark.parametrize(
    ("found", "wanted", "right"),
    [
        ("WAY OUT", "way out", 1.0),
        ("Mind the gap", "the gap", 1.0),  # it stands among other text
        ("opem", "open", 0.75),
        ("", "open", 0.0),
        ("a long text about something else", "sea", 0.0),  # more mistakes than letters
        ("ope", "open", 0.75),
    ],
)
def test_the_score_is_the_share_of_letters_that_are_right(found, wanted, right):
    assert score(found, wanted) == right


def test_a_target_without_letters_is_an_error_and_no_zero():
    with pytest.raises(ValueError, match="empty text"):
        score("open", "  ")


def test_where_nothing_can_read_the_package_is_named_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    told = "reward 'ocr': rapidocr is not installed: pip install"
    with pytest.raises(RuntimeError, match=told):
        load_reward("ocr")
    with pytest.raises(RuntimeError, match=told):  # before a process that judges is started
        RewardRunner({"words": {"ocr": 1.0}}, RewardConfig())


def shown(text, *, size=40):
    """A picture (H, W, 3) with a text."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (max(200, 30 * len(text)), 100), (240, 240, 235))
    ImageDraw.Draw(image).text((20, 25), text, (20, 20, 60), font=ImageFont.load_default(size))
    return np.asarray(image)


@needs_ocr
def test_drawn_texts_get_full_marks_and_others_few():
    for text in TEXTS[::13]:
        assert ocr.function(shown(text), text) == 1.0, read(shown(text))
        assert ocr.function(shown("zebra crossing"), text) < 0.5
    assert ocr.function(shown(""), "open") == 0.0
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert ocr.function(noise, "open") <= 0.25
