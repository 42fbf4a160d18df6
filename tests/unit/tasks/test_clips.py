from pathlib import Path

import numpy as np
import pytest

from lightrft.tasks.clips import FPS, HELD_OUT, KINDS, SECONDS, questions, window

av = pytest.importorskip("av", reason="needs the extra media")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six seconds that get brighter, with a lighter upper half."""
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 32, 32, "yuv420p", 8_000_000
        for number in range(48):
            frame = np.full((32, 32, 3), 100 + 2 * number, np.uint8)
            frame[16:] //= 2
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def light(frames):
    return frames.mean(axis=(1, 2, 3))


def shown(clip, kind, answer, start=1):
    return window(clip, start, kind, answer)["frames"]


def test_a_window_has_its_length_and_rate(clip):
    found = window(clip, 1, "direction", "forwards")
    assert found["frames"].shape == (SECONDS * FPS, 32, 32, 3)
    assert found["fps"] == FPS
    assert light(found["frames"])[0] > light(shown(clip, "direction", "forwards", start=0))[0]


def test_backwards_is_the_forward_clip_reversed(clip):
    forwards, backwards = shown(clip, "direction", "forwards"), shown(clip, "direction", "backwards")
    assert light(forwards)[0] < light(forwards)[-1]
    assert np.array_equal(forwards[::-1], backwards)


def test_a_fade_goes_where_the_answer_says(clip):
    brighter, darker = light(shown(clip, "fade", "brighter")), light(shown(clip, "fade", "darker"))
    assert 2 * brighter[0] < brighter[-1]
    assert darker[0] > 2 * darker[-1]


def test_a_still_clip_shows_its_first_frame_only(clip):
    still = shown(clip, "motion", "still")
    assert (still == shown(clip, "motion", "move")[0]).all()


def test_an_inverted_clip_has_its_upper_half_below(clip):
    inverted = shown(clip, "upright", "inverted")
    assert inverted[:, :12].mean() < inverted[:, 20:].mean()
    assert np.array_equal(inverted[:, ::-1], shown(clip, "upright", "upright"))


ROWS = [
    ("v:1", {"video": "clips/a.mp4", "frames": 150, "fps": 25.0}),
    ("v:2", {"video": f"clips/{HELD_OUT[0]}", "frames": 100, "fps": 25.0}),
    ("v:3", {"video": "clips/short.mp4", "frames": 99, "fps": 25.0}),
]


def test_clips_are_cut_into_windows_and_some_clips_kept_for_the_evaluation():
    train, evaluate = (questions(ROWS, Path("/data"), split, list(KINDS)) for split in ("train", "evaluate"))
    assert len(train) == 3 * sum(len(answers) for _, answers in KINDS.values())
    assert {name.split(":")[0] for name, _ in train} == {"a.mp4"}
    assert {name.split(":")[0] for name, _ in evaluate} == {HELD_OUT[0]}
    assert len(evaluate) == sum(len(answers) for _, answers in KINDS.values())


def test_names_are_distinct_and_tell_no_answer():
    found = questions(ROWS, Path("/data"), "train", list(KINDS))
    assert len({name for name, _ in found}) == len(found)
    assert not any(row["target"] in f"{name} {row['video'].name}".split() for name, row in found)


def test_one_kind_of_question_can_be_asked_for():
    assert {row["target"] for _, row in questions(ROWS, Path("/data"), "train", ["fade"])} == {
        "brighter",
        "darker",
    }
