"""Published preference sets of pictures, clips and sounds, on made rows of their shape."""

from __future__ import annotations

import math

import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.media_preferences import MEDIA_PREFERENCES, ROW_FORMATS

CONFIG = TaskConfig()
SCORES = {
    "weighted_results1_Preference": 0.7, "weighted_results2_Preference": 0.3,
    "weighted_results1_Coherence": 0.5, "weighted_results2_Coherence": 0.5,
    "weighted_results1_Alignment": 0.1, "weighted_results2_Alignment": 0.9,
}  # fmt: skip
RAPIDATA = [
    {"preference": 0.7, "coherence": 0.5, "alignment": 0.1},
    {"preference": 0.3, "coherence": 0.5, "alignment": 0.9},
]
FIRST, SECOND = [{"": 1.0}, {"": 0.0}], [{"": 0.0}, {"": 1.0}]
OMNI = {"id": 7, "prompt": "a cat", "criteria": "fur", "model1": "x", "model2": "y"}
PATHS = {"response1_path": "i/1.png", "response2_path": "i/2.png"}
PLACED = ["media_data/i/1.png", "media_data/i/2.png"]
ROWS = {
    "hpdv3": (
        {"prompt": "a cat", "path1": "a/1.jpg", "path2": "b/2.jpg", "model1": "flux", "model2": "sd3", "confidence": 0.9},
        "image", ["a/1.jpg", "b/2.jpg"], FIRST,
    ),
    "imagereward": (
        {"prompt": "a cat", "generations": ["1.webp", "2.webp", "3.webp"], "ranking": [2, 1, 2]},
        "image", ["1.webp", "2.webp", "3.webp"], [{"": -2.0}, {"": -1.0}, {"": -2.0}],
    ),
    "omnireward_t2i": (OMNI | PATHS | {"criteria_preference": "response2"}, "image", PLACED, SECOND),
    "omnireward_t2v": (
        OMNI | {"response1": "v/1.mp4", "response2": "v/2.mp4", "criteria_preference": "response1"},
        "video", ["media_data/v/1.mp4", "media_data/v/2.mp4"], FIRST,
    ),
    "omnireward_t2a": (OMNI | PATHS | {"criteria_preference": "tie"}, "audio", PLACED, [{"": 0.0}, {"": 0.0}]),
    "rapidata_t2v": (
        {"prompt": "a cat", "file_name1": "1.mp4", "file_name2": "https://x.org/2.mp4", **SCORES},
        "video", ["videos/1.mp4", "https://x.org/2.mp4"], RAPIDATA,
    ),
    "rapidata_i2v": (
        {"prompt": "a cat", "prompt_asset": {"bytes": b"png"}, "file_name1": "1.mp4", "file_name2": "2.mp4", **SCORES},
        "video", ["videos/1.mp4", "videos/2.mp4"], RAPIDATA,
    ),
    "genai_bench": (
        {
            "Index": 3, "Prompt": "a cat", "DALLE_3": {"bytes": b"a"}, "SDXL": {"bytes": b"b"}, "Gone": None,
            "HumanRatings": {"DALLE_3": [5, 4, 3], "SDXL": [1, 2, 1.5], "Gone": [1]},
        },
        "image", [{"bytes": b"a"}, {"bytes": b"b"}], [{"": 4.0}, {"": 1.5}],
    ),
    "genai_bench_video": (
        {"id": "00012", "prompt": "a cat", "models": {"Pika": [2, 3], "Gen2": [4, 4]}},
        "video", ["Pika/00012.mp4", "Gen2/00012.mp4"], [{"": 2.5}, {"": 4.0}],
    ),
    "videodpo": (
        {"frame_caption": "a cat", "video1": 14, "video2": 15, "label": 0},
        "video", ["winvideos/000007.mp4", "losevideos/000007.mp4"], FIRST,
    ),
    "videogen_rewardbench": (
        {"prompt": "a cat", "path_A": "a.mp4", "path_B": "b.mp4", "Overall": "B", "VQ": "A", "MQ": "same", "TA": ""},
        "video", ["a.mp4", "b.mp4"], None,
    ),
    "audio_alpaca": (
        {"prompt": "a cat", "chosen": {"bytes": b"1", "path": "1.wav"}, "rejected": {"bytes": b"2", "path": "2.wav"}, "strategy": "s"},
        "audio", [{"bytes": b"1", "path": "1.wav"}, {"bytes": b"2", "path": "2.wav"}], FIRST,
    ),
}  # fmt: skip
"""Name -> a row, the kind of media, their sources, and the grades of each."""


def test_every_format_of_the_table_is_tested_and_is_named_by_tasks_format():
    assert ROWS.keys() == MEDIA_PREFERENCES.keys()
    assert ROW_FORMATS.keys() >= {"columns", *ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_a_prompt_and_the_media_that_were_made_for_it_with_their_grades(name):
    row, kind, sources, grades = ROWS[name]
    found = MEDIA_PREFERENCES[name](row, CONFIG)
    (asked,) = found.prompt
    text = asked["content"] if isinstance(asked["content"], str) else asked["content"][-1]["text"]
    assert asked["role"] == "user"
    assert text == ("a cat\n\nJudged by: fur" if "criteria" in row else "a cat")
    said = [one["messages"] for one in found.target]
    assert said == [[{"role": "assistant", "content": [{"type": kind, kind: s}]}] for s in sources]
    if grades is not None:
        assert [one["grades"] for one in found.target] == [pytest.approx(g) for g in grades]


def test_the_picture_that_clips_were_made_from_stands_in_the_prompt():
    (asked,) = MEDIA_PREFERENCES["rapidata_i2v"](ROWS["rapidata_i2v"][0], CONFIG).prompt
    assert asked["content"][0] == {"type": "image", "image": {"bytes": b"png"}}


def test_labels_of_several_aspects_are_outputs_and_an_empty_one_compares_nothing():
    found = MEDIA_PREFERENCES["videogen_rewardbench"](ROWS["videogen_rewardbench"][0], CONFIG)
    one, other = (side["grades"] for side in found.target)
    assert [(one[n], other[n]) for n in ("overall", "visual_quality", "motion_quality")] == [
        (0, 1),
        (1, 0),
        (0, 0),
    ]
    assert math.isnan(one["text_alignment"])
    assert math.isnan(other["text_alignment"])


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("hpdv3", {"path2": None}, "field 'path2' is null"),
        ("hpdv3", {"prompt": " "}, "field 'prompt' is empty"),
        ("imagereward", {"generations": "1.webp"}, "'generations' must be a list of two or more"),
        ("imagereward", {"ranking": [1, 2]}, "3 of the kind image have 2 grades"),
        ("imagereward", {"ranking": [1, "2", 3]}, "'ranking' holds '2'"),
        ("omnireward_t2i", {"criteria_preference": "both"}, "it must be one of response1, response2, tie"),
        (
            "rapidata_t2v",
            {"weighted_results2_Coherence": math.nan},
            "'weighted_results2_Coherence' holds nan",
        ),
        ("genai_bench", {"HumanRatings": {"SDXL": []}}, "must give each model a list of ratings"),
        ("videodpo", {"video1": "14"}, "'video1' must be the number of a clip"),
        ("videogen_rewardbench", {"Overall": "C"}, "it must be one of A, B, same"),
        ("audio_alpaca", {"rejected": None}, "field 'rejected' is null"),
    ],
)
def test_a_row_of_another_shape_is_refused_by_the_name_of_its_field(name, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        MEDIA_PREFERENCES[name]({**ROWS[name][0], **change}, CONFIG)
