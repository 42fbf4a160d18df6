"""What is taken of a clip from which is learned to draw: its first frames, at a rate of one's own."""

import numpy as np
import pytest

from lightrft.media.clips import opening
from lightrft.media.sources import MediaError
from tests.unit.media.test_parts import STEP, write_clip

SIZE = {"max_pixels": 64 * 32}


def numbers(frames):
    return [round(float(frame.mean()) / STEP) for frame in frames]


@pytest.mark.parametrize(("fps", "taken"), [(10, [0, 1, 2, 3]), (5, [1, 3, 5, 7]), (2.5, [2, 6, 10, 14])])
def test_frames_are_the_first_ones_at_the_rate_that_is_asked_for(fps, taken, tmp_path):
    """Ten frames to a second, whose grey tells their number: the one in the middle of each 1 / fps, however long the clip is."""
    for seconds in (2, 4):
        path = write_clip(tmp_path / f"{seconds}.mp4", seconds=seconds)
        assert numbers(opening(str(path), fps=fps, frames=4, **SIZE)) == taken
    grey = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 8, 3), STEP, np.uint8)
    assert numbers(opening({"frames": grey, "fps": 10}, fps=fps, frames=4, **SIZE)) == taken
    assert numbers(opening(grey, fps=fps, frames=4, **SIZE)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("fps", "frames", "told"), [(10, 21, "20 frames in 2 s, where 21 at 10"), (20, 8, "where 8 at 20"), (30, 61, "where 61 at 30")])  # fmt: skip
def test_a_clip_that_is_too_short_or_too_slow_is_told_by_name(fps, frames, told, tmp_path):
    path = write_clip(tmp_path / "a.mp4", seconds=2)
    with pytest.raises(MediaError, match=rf"a\.mp4.*{told} to a second are taken"):
        opening(str(path), fps=fps, frames=frames, **SIZE)


def test_all_of_a_clip_may_be_taken(tmp_path):
    path = write_clip(tmp_path / "a.mp4", seconds=2)
    assert numbers(opening(str(path), fps=10, frames=20, **SIZE)) == list(range(20))
