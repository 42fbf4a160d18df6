import numpy as np
import pytest

from lightrft.tasks.chorales import FAST, KINDS, SECONDS, chord, line, questions, render, voice

C_MAJOR, C_MINOR, SEVENTH = (48, 55, 64, 72), (48, 55, 63, 72), (48, 55, 64, 70)


def test_the_line_is_that_of_the_highest_voice():
    assert line(((48, 55, 64, 72), (48, 55, 64, 79), (36, 43, 52, 74))) == "higher"
    assert line(((48, 55, 64, 72), (60, 62, 64, 71))) == "lower"
    assert line(((48, 55, 64, 72), (48, 55, 65, 72))) is None


def test_a_voice_moves_alone():
    assert voice((C_MAJOR, C_MINOR)) == "alto"
    assert voice((C_MAJOR, (43, 55, 64, 72))) == "bass"
    assert voice((C_MAJOR, C_MAJOR)) is None
    assert voice((C_MAJOR, (43, 55, 63, 72))) is None


@pytest.mark.parametrize(
    ("pitches", "name"),
    [
        (C_MAJOR, "major"),
        (C_MINOR, "minor"),
        ((52, 55, 60, 67), "major"),
        ((57, 60, 64, 69), "minor"),
        (SEVENTH, None),
        ((48, 60, 67, 72), None),
    ],
)
def test_triads_are_named_in_every_position(pitches, name):
    assert chord((SEVENTH, pitches)) == name


def test_a_rendered_window_holds_the_fundamental_of_each_voice():
    sound = render(((57, 64, 69, 76),))
    spectrum = np.abs(np.fft.rfft(sound["array"]))
    hertz = np.fft.rfftfreq(len(sound["array"]), 1 / sound["sampling_rate"])
    for pitch in (220.0, 329.6, 440.0, 659.3):
        near = spectrum[(hertz > pitch - 15) & (hertz < pitch + 15)]
        assert near.max() > 5 * np.median(spectrum)


def test_rendering_lasts_half_a_second_a_chord_is_the_same_each_time_and_never_clips():
    sound, again = render((C_MAJOR, C_MINOR)), render((C_MAJOR, C_MINOR))
    assert sound["array"].dtype == np.float32
    assert len(sound["array"]) == sound["sampling_rate"] == 16_000
    assert np.array_equal(sound["array"], again["array"])
    assert np.abs(sound["array"]).max() < 1


SCORE = [
    [48, 55, 64, 72],
    [48, 55, 63, 72],
    [48, 55, 63, 74],
    [43, 55, 62, 71],
    [43, 55, 62, 71],
    [36, 55, 64, 72],
]
HIGHER = [[pitch + 2 for pitch in chord] for chord in SCORE]


def test_what_the_test_split_asks_is_not_asked_in_training():
    def asked(split):
        rows = [row for _, row in questions(scores, split, ["line", "voice", "chord"])]
        return {(row["question"], row["audio"].make.args) for row in rows}

    scores = {"train": [SCORE, HIGHER], "test": [SCORE]}
    assert len(asked("evaluate")) == 6
    assert len(asked("train")) >= 6
    assert not asked("train") & asked("evaluate")


def test_every_question_is_answered_by_its_notes():
    for _, row in questions({"train": [], "test": [SCORE]}, "evaluate", list(KINDS)):
        window, _ = row["audio"].make.args
        kind = next(kind for kind, (question, _, _) in KINDS.items() if question == row["question"])
        assert KINDS[kind][2](window) == row["target"]
        assert kind == "count" or row["target"] in row["question"]


def test_chords_are_counted_and_their_length_does_not_tell_how_many_there_are():
    scores = {"train": [], "test": [[[pitch + n for pitch in chord] for chord in SCORE] for n in range(6)]}
    rows = [row for _, row in questions(scores, "evaluate", ["count"])]
    assert sorted({row["target"] for row in rows}) == ["1", "2", "3", "4", "5"]
    seconds = {row["audio"].make.args[1] for row in rows}
    assert seconds == {FAST, SECONDS}
    for row in rows:
        window, length = row["audio"].make.args
        assert len(row["audio"].make()["array"]) == int(row["target"]) * int(length * 16_000)
        assert len(window) == int(row["target"])


def test_chords_with_fewer_than_four_voices_are_left_out():
    assert questions({"train": [], "test": [[[48, 55, 64]] * 8, [[]] * 8]}, "evaluate", list(KINDS)) == []
