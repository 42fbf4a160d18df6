"""IFEval, HotpotQA, NQ, MMMU, MMAU and Video-MME: rows made up in the form that their authors publish."""

import json
from pathlib import Path

import pytest

from lightrft.config import RewardConfig, TaskConfig
from lightrft.media.parts import read_media
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.rewards.qa import hotpot_f1, squad_f1
from lightrft.rewards.text import choice_or_open, choice_words
from lightrft.tasks.media_benchmarks import SUBJECTS
from lightrft.tasks.table import load_task

REAL = Path(__file__).resolve().parents[4] / "shared/data"
NULLS = {"num_words": None, "relation": None, "keywords": None, "num_bullets": None}
IFEVAL = {
    "key": 1000,
    "prompt": "Write about rain without commas, in at least 3 words.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [NULLS, NULLS | {"num_words": 3, "relation": "at least"}],
}
HOTPOT = {
    "id": "5a8b57f25542995d1e6f1371",
    "question": "Were Ann and Bob of the same nation? ",
    "answer": "yes",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": {"title": ["Ann", "Bob"], "sent_id": [0, 0]},
    "context": {"title": ["Ann", "Bob"], "sentences": [["Ann was Welsh.", " She sang."], ["Bob was Welsh."]]},
}
NQ = {"question": "who had most wins in nfl", "answer": ["Tom Brady", "Thomas Brady"]}
MMMU = {
    "id": "validation_Math_1",
    "question": "Which of <image 1> and <image 2> is round? Look at <image 1>.",
    "options": "['<image 3>', 'the second']",
    "explanation": "",
    "image_1": "a.png",
    "image_2": "b.png",
    "image_3": "c.png",
    "image_4": None,
    "answer": "B",
    "question_type": "multiple-choice",
}
OPEN = MMMU | {
    "question": "How long is it?",
    "options": "[]",
    "answer": "['12.50', 'a mile']",
    "question_type": "open",
}
MMAU = {
    "id": "3fe64f3d",
    "audio_id": "./test-mini-audios/3fe64f3d.wav",
    "question": "Who speaks?",
    "choices": ["A man", "A woman", "A child and a man"],
    "answer": "A man",
    "task": "speech",
    "split": "test-mini",
}
VIDEO = {
    "video_id": "001",
    "duration": "short",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "question": "What is thrown?",
    "options": ["A. A ball.", "B. A stone.", "C. A. Smith.", "D. Nothing."],
    "answer": "C",
}
FILES = {
    "ifeval": ("ifeval/input_data.jsonl", IFEVAL),
    "hotpotqa": ("hotpotqa/validation.jsonl", HOTPOT),
    "hotpotqa:question": ("hotpotqa/validation.jsonl", HOTPOT),
    "nq_open": ("nq_open/validation.jsonl", NQ),
    "mmmu:Math": ("mmmu/Math.jsonl", MMMU),
    "mmau": ("mmau/mmau-test-mini.json", MMAU),
    "mmau:speech": ("mmau/mmau-test-mini.json", MMAU),
    "video_mme": ("video_mme/test.parquet", VIDEO),
    "video_mme:short": ("video_mme/test.parquet", VIDEO),
}


def store(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluated(name, folder, *rows):
    file, row = FILES[name]
    store(folder / file, *(rows or [row]))
    return load_task(name).load("evaluate", TaskConfig(), str(folder), 0)


def checked(name, records, answer=None):
    task = load_task(name)
    with RewardRunner({task.name: task.rewards}, RewardConfig(workers=0)) as judge:
        return check_gold(task.name, records, answer or task.gold, judge)


def content(record):
    return record.messages[-1]["content"]


@pytest.mark.parametrize("name", [name for name in FILES if name != "ifeval"])
def test_published_rows_are_read_and_their_gold_answers_alone_get_full_marks(name, tmp_path):
    records = evaluated(name, tmp_path)
    assert checked(name, records).ok
    assert not checked(name, records, lambda _record: "<answer>no idea (A)</answer>").ok


def test_ifeval_asks_the_prompt_alone_and_scores_prompts(tmp_path):
    (record,) = evaluated("ifeval", tmp_path)
    assert content(record) == IFEVAL["prompt"]
    assert record.target["kwargs"] == [{}, {"num_words": 3, "relation": "at least"}]
    assert checked("ifeval", [record], lambda _record: "Rain falls down.").ok
    assert not checked("ifeval", [record], lambda _record: "Rain, it falls.").ok
    with pytest.raises(ValueError, match="no gold answer to check"):
        load_task("ifeval").gold(record)


def test_hotpotqa_shows_its_paragraphs_or_the_question_alone(tmp_path):
    (record,) = evaluated("hotpotqa", tmp_path)
    asked = "Were Ann and Bob of the same nation?"
    assert content(record).startswith(
        f"Ann: Ann was Welsh. She sang.\n\nBob: Bob was Welsh.\n\n{asked}\nAnswer in"
    )
    pairs = [["Ann", ["Ann was Welsh.", " She sang."]], ["Bob", ["Bob was Welsh."]]]
    (other,) = evaluated("hotpotqa", tmp_path, HOTPOT | {"context": pairs})
    assert content(other) == content(record)
    (alone,) = evaluated("hotpotqa:question", tmp_path)
    assert content(alone).startswith(f"{asked}\nAnswer in")


@pytest.mark.parametrize(
    ("said", "right", "published", "squad"),
    [
        ("yes", "yes", 1.0, 1.0),
        ("yes, both", "yes", 0.0, 2 / 3),
        ("no", "the yes men", 0.0, 0.0),
        ("the Eiffel Tower in Paris", "Eiffel Tower", 2 / 3, 2 / 3),
        ("Rome", "Paris", 0.0, 0.0),
    ],
)
def test_f1_of_hotpotqa_knows_no_half_right_yes(said, right, published, squad):
    assert (hotpot_f1(said, right), squad_f1(said, right)) == pytest.approx((published, squad))


def test_any_of_the_answers_of_nq_is_right(tmp_path):
    (record,) = evaluated("nq_open", tmp_path)
    assert content(record).startswith("who had most wins in nfl?\n")
    assert checked("nq_open", [record], lambda _record: "<answer>the Thomas Brady!</answer>").ok


def test_pictures_stand_where_a_question_of_mmmu_names_them_first(tmp_path):
    (record,) = evaluated("mmmu:Math", tmp_path)
    picture = [{"type": "image", "image": f"{tmp_path}/mmmu/{name}.png"} for name in "abc"]
    parts = content(record)
    texts = [part.get("text") for part in parts if part["type"] == "text"]
    assert [part for part in parts if part["type"] == "image"] == picture
    assert texts[:3] == ["Which of ", " and ", " is round? Look at (image 1).\n(A) "]
    assert texts[3].startswith("\n(B) the second")
    assert record.target == {"letter": "B"}


def test_an_open_question_of_mmmu_shows_unnamed_pictures_first(tmp_path):
    (record,) = evaluated("mmmu:Math", tmp_path, OPEN)
    assert [part["type"] for part in content(record)] == ["image", "image", "image", "text"]
    assert record.target == {"answers": ["12.50", "a mile"]}


@pytest.mark.parametrize(
    ("said", "target", "marks"),
    [
        ("<answer>about 12.5 km</answer>", {"answers": ["12.50", "a mile"]}, 1.0),
        ("<answer>12.502</answer>", {"answers": ["12.50"]}, 1.0),
        ("<answer>125</answer>", {"answers": ["12.50"]}, 0.0),
        ("<answer>It is A Mile.</answer>", {"answers": ["12.50", "a mile"]}, 1.0),
        ("<answer>a smile</answer>", {"answers": ["a mile"]}, 0.0),
        ("<answer>(B)</answer>", {"letter": "B"}, 1.0),
        ("no letter", {"letter": "B"}, 0.0),
    ],
)
def test_open_answers_are_looked_for_as_numbers_or_words(said, target, marks):
    assert choice_or_open(said, target) == marks


@pytest.mark.parametrize(
    ("said", "marks"),
    [("A man", 1.0), ("<answer>(A) a man.</answer>", 1.0), ("a woman", 0.0), ("a man and a woman", 0.0), ("a child", 0.0), ("", 0.0)],
)  # fmt: skip
def test_answers_of_mmau_have_the_right_words_and_no_wrong_one(said, marks):
    assert choice_words(said, {"answer": MMAU["answer"], "choices": ["A man", "A woman", "Child"]}) == marks


def test_kinds_of_mmau_and_lengths_of_video_mme_can_be_chosen(tmp_path):
    (record,) = evaluated("mmau:speech", tmp_path, MMAU, MMAU | {"task": "music"})
    assert content(record)[0] == {"type": "audio", "audio": f"{tmp_path}/mmau/test-mini-audios/3fe64f3d.wav"}
    hub = {
        "context": "a.wav",
        "instruction": "Who?",
        "choices": ["x", "y"],
        "answer": "y",
        "other_attributes": {"task": "speech"},
    }
    (other,) = evaluated("mmau:speech", tmp_path, hub)
    assert content(other)[1]["text"].startswith("Who?\n(A) x\n(B) y\n")
    (clip,) = evaluated("video_mme:short", tmp_path, VIDEO, VIDEO | {"duration": "long"})
    assert content(clip)[0] == {"type": "video", "video": f"{tmp_path}/video_mme/data/fFjv93ACGo8.mp4"}
    assert "(B) A stone.\n(C) A. Smith.\n" in content(clip)[1]["text"]


@pytest.mark.parametrize(
    ("name", "broken", "told"),
    [
        ("ifeval", {"kwargs": [NULLS, NULLS]}, "number_words: 'num_words' is None"),
        ("ifeval", {"instruction_id_list": ["a:b", "c:d"]}, "there is no instruction 'a:b'"),
        ("hotpotqa", {"context": "none"}, "must hold titles and sentences.*hotpotqa:question needs none"),
        ("nq_open", {"answer": []}, "a list of texts"),
        ("mmmu:Math", {"image_2": None}, "names <image 2>"),
        ("mmmu:Math", {"answer": "C"}, "the letter of one of the 2 options"),
        ("mmmu:Math", {"question_type": "open", "answer": ""}, "an open question needs an answer"),
        ("mmau", {"answer": "A dog"}, "none of the choices: A man, A woman"),
        ("video_mme", {"answer": "E"}, "the letter of one of the 4 options"),
    ],
)
def test_a_row_that_no_answer_could_fit_is_named(name, broken, told, tmp_path):
    with pytest.raises(ValueError, match=rf"(:1|\[0\]): .*{told}"):
        evaluated(name, tmp_path, FILES[name][1] | broken)


@pytest.mark.parametrize("name", ["ifeval:x", "hotpotqa:x", "nq_open:x", "mmmu:x", "mmau:x", "video_mme:x"])
def test_options_that_are_not_there_are_refused(name):
    with pytest.raises(ValueError, match=f"task '{name}'"):
        load_task(name)


def test_mmmu_has_thirty_subjects():
    assert len(set(SUBJECTS)) == 30


def test_real_questions_of_hotpotqa_have_right_answers(tmp_path):
    if not (REAL / "search_hotpot").is_dir():
        pytest.skip(f"{REAL / 'search_hotpot'} is not there")
    lines = (REAL / "search_hotpot/hotpot_100_qa.jsonl").read_text().splitlines()
    records = evaluated("hotpotqa:question", tmp_path, *map(json.loads, lines))
    report = checked("hotpotqa:question", records)
    assert (report.checked, report.ok) == (100, True), str(report)
    assert report.wrong_score < 0.05


def test_media_of_the_rows_are_opened_as_any_others(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, colour in zip("abc", ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True):
        (tmp_path / "mmmu").mkdir(exist_ok=True)
        image.new("RGB", (8, 8), colour).save(tmp_path / f"mmmu/{name}.png")
    (record,) = evaluated("mmmu:Math", tmp_path)
    media = read_media(record.messages, max_pixels=64, fps=1, max_frames=1, max_seconds=1, rate=1)
    assert [picture.getpixel((0, 0)) for picture in media.images] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
