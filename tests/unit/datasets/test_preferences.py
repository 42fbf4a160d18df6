from itertools import islice
from pathlib import Path

import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.preferences import chosen, pair
from lightrft.datasets.sources import read

REAL = Path(__file__).resolve().parents[4] / "shared/data"
CONFIG = TaskConfig()
ASKED = {"role": "user", "content": "2 + 2?"}
RIGHT, WRONG = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [ASKED], "chosen": [RIGHT], "rejected": [WRONG]},
        {"prompt": "2 + 2?", "chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]},
        {"chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]},
        {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"},
        {
            "conversations": [{"from": "human", "value": "2 + 2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
    ],
    ids=["texts", "messages", "repeated", "whole", "transcripts", "sharegpt"],
)
def test_every_usual_layout_gives_the_same_pair(row):
    found = pair(row, CONFIG)
    assert (found.prompt, found.chosen, found.rejected) == ([ASKED], [RIGHT], [WRONG])
    assert chosen(row, CONFIG) == ([ASKED], [RIGHT])


def test_sides_that_part_early_keep_their_own_turns():
    row = {"chosen": [ASKED, RIGHT, ASKED, RIGHT], "rejected": [ASKED, WRONG]}
    found = pair(row, CONFIG)
    assert (found.prompt, found.chosen, found.rejected) == ([ASKED], [RIGHT, ASKED, RIGHT], [WRONG])


def test_media_of_a_row_come_before_the_question_that_both_sides_answer():
    row = {"prompt": "<image> How many?", "images": ["a.png"], "chosen": "4", "rejected": "5"}
    (asked,) = pair(row, CONFIG).prompt
    assert asked["content"] == [{"type": "image", "image": "a.png"}, {"type": "text", "text": " How many?"}]
    row = {"prompt": "Which bird?", "audio": "a.wav", "chosen": "owl", "rejected": "crow"}
    assert pair(row, CONFIG).prompt[0]["content"][0] == {"type": "audio", "audio": "a.wav"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "2 + 2?", "chosen": "4"}, "no field 'rejected'"),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": "4"}, "say the same"),
        ({"chosen": [ASKED], "rejected": [ASKED]}, "'chosen' is no response"),
        ({"prompt": "2 + 2?", "chosen": [ASKED, RIGHT, ASKED], "rejected": "5"}, "'chosen' is no response"),
        ({"prompt": "2 + 2?", "chosen": 4, "rejected": "5"}, "'chosen' must be text, a message or a list"),
        (
            {"prompt": "2 + 2?", "chosen": [{"role": "assistant"}], "rejected": "5"},
            "needs a role and a content",
        ),
        ({"chosen": "4", "rejected": "5"}, "nobody asks"),
        (
            {"prompt": "<image> <image>", "images": ["a.png"], "chosen": "4", "rejected": "5"},
            "2 places for image, the row has 1",
        ),
    ],
)
def test_a_row_that_is_no_pair_is_told_why(row, complaint):
    with pytest.raises(ValueError, match=complaint):
        pair(row, CONFIG)


@pytest.mark.parametrize(
    "file",
    [
        "sft_pref_demo/dpo_en_demo.jsonl",
        "hh_rlhf/harmless_base_test.jsonl.gz",
        "hh_rlhf/helpful_base_test.jsonl.gz",
    ],
)
def test_nearly_all_real_rows_are_pairs(file):
    if not (REAL / file).is_file():
        pytest.skip(f"{REAL / file} is not there")
    rows = [row for _, row in islice(read(str(REAL / file), "", None), 300)]
    found, complaints = [], []
    for row in rows:
        try:
            found.append(pair(row, CONFIG))
        except ValueError as error:
            complaints.append(str(error))
    assert len(found) > 0.97 * len(rows), complaints[:5]
    assert all(p.prompt[-1]["role"] == "user" for p in found)
