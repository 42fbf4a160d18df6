"""Pictures for one prompt that become the same while the reward rises are warned of, once."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from lightrft.trainer.diversity import DiversityWatch, spread_of


def test_the_spread_is_the_deviation_of_a_pixel_over_the_pictures():
    """Of two pictures, from -1 to 1: a pixel that is 0 and 255 has 1, one that is 51 and 102 has 0.2, and one that is the same 0."""
    pictures = [np.array([[[0, 51, 7]]], np.uint8), np.array([[[255, 102, 7]]], np.uint8)]
    assert spread_of([{"image": one} for one in pictures]) == pytest.approx((1 + 0.2 + 0) / 3)
    assert spread_of([{"image": pictures[0]}, {}]) is None, "one picture differs from nothing"


def warned(caplog, watch, *steps):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lightrft"):
        for spread, reward in steps:
            watch.check({"diversity/image": spread, "reward/mean": reward})
    return len(caplog.records)


def test_it_is_warned_of_once_and_a_resumed_run_remembers(caplog):
    watch = DiversityWatch()
    assert warned(caplog, watch, (0.4, 0.3), (0.19, 0.2), (0.21, 0.9)) == 0
    other = DiversityWatch()
    other.load(watch.state())
    assert warned(caplog, other, (0.19, 0.9), (0.1, 1.0)) == 1
    assert "diversity/image fell from 0.400 to 0.190 while the reward rose from 0.300 to 0.900" in caplog.text
    again = DiversityWatch()
    again.load(other.state())
    assert warned(caplog, again, (0.1, 1.0)) == 0
    assert warned(caplog, DiversityWatch(), (0.4, 0.3)) == 0
