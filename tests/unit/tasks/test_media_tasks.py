import json
from pathlib import Path

import numpy as np
import pytest

from lightrft.config import RewardConfig, TaskConfig
from lightrft.media.parts import Made, parts, read_media
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.tasks import scenes
from lightrft.tasks.media_tasks import TASKS, mathvision_row
from lightrft.tasks.table import load_task

REAL = Path(__file__).resolve().parents[4] / "shared/data"
FOLDERS = {
    "chorales": "jsb_chorales",
    "clips": "video",
    "esc10": "esc10",
    "mathvision": "mathvision",
    "nlvr": "nlvr",
    "nlvr:most": "nlvr",
    "nlvr:objects": "nlvr",
    "puzzlevqa": "puzzlevqa",
    "shapes": "shapes",
    "spoken_digits": "fsdd",
}
READING = {"max_pixels": 1 << 20, "fps": 1.0, "max_frames": 16, "max_seconds": 30.0, "rate": 16_000}


def load(name, split="train", data="", **options):
    return load_task(name).load(split, TaskConfig(**options), str(data), 0)


def store(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def asked(record):
    """The text of a question, its instruction left out."""
    return record.messages[0]["content"][-1]["text"].rpartition("\n")[0]


def checked(name, records):
    task = load_task(name)
    with RewardRunner({task.name: task.rewards}, RewardConfig(workers=0)) as judge:
        return check_gold(name, records, task.gold, judge)


@pytest.fixture(params=FOLDERS)
def real(request):
    """A task whose data set is there."""
    if not (REAL / FOLDERS[request.param]).is_dir():
        pytest.skip(f"{REAL / FOLDERS[request.param]} is not there")
    return request.param


def test_gold_answers_score_full_marks_and_those_to_other_questions_none(real):
    for split in ("train", "evaluate"):
        report = checked(real, load(real, split, REAL))
        assert report.ok, str(report)
        assert report.wrong_score == 0


def contents(source):
    """What makes a medium the same as another one."""
    if isinstance(source, Made):
        return source.make().tobytes() if source.make.func is scenes.cut else source.make.args
    return Path(source).read_bytes() if isinstance(source, str) else source.tobytes()


def test_no_question_is_in_both_splits(real):
    def questions(split):
        return {(asked(r), contents(parts(r.messages)[0][1])) for r in load(real, split, REAL)}

    train, evaluate = questions("train"), questions("evaluate")
    assert len(train) > 100
    assert len(evaluate) > 30
    assert not train & evaluate


@pytest.mark.parametrize("name", ["nlvr:most", "nlvr:objects"])
def test_no_box_is_in_both_splits(name):
    if not (REAL / "nlvr").is_dir():
        pytest.skip(f"{REAL / 'nlvr'} is not there")
    shown = [{contents(parts(r.messages)[0][1]) for r in load(name, s, REAL)} for s in ("train", "evaluate")]
    assert min(map(len, shown)) > 150
    assert not shown[0] & shown[1]


def test_media_of_real_questions_can_be_read(real):
    pytest.importorskip("av", reason="needs the extra media")
    for record in load(real, "evaluate", REAL)[::40]:
        media = read_media(record.messages, **READING)
        assert len(media.images) + len(media.videos) + len(media.audios) == 1, record.id


def test_answers_to_yes_or_no_are_about_as_often_right_one_way_as_the_other(real):
    targets = [r.target for r in load(real, "evaluate", REAL)]
    assert max(targets.count(target) for target in set(targets)) < 0.7 * len(targets)


def test_statements_about_one_sentence_stay_together(tmp_path):
    sentences = [f"There are {n} blocks." for n in range(20)]
    rows = [
        {"id": f"{n}-{k}", "sentence": sentence, "image": f"images/{n}-{k}.png", "label": "true"}
        for n, sentence in enumerate(sentences)
        for k in range(3)
    ]
    store(tmp_path / "nlvr/dev.jsonl", *rows)
    train, evaluate = ({asked(r) for r in load("nlvr", split, tmp_path)} for split in ("train", "evaluate"))
    assert len(train) + len(evaluate) == 20
    assert not train & evaluate
    assert evaluate
    store(tmp_path / "nlvr/test.jsonl", *rows[:3])
    assert len(load("nlvr:test", "train", tmp_path)) == 60
    assert len(load("nlvr:test", "evaluate", tmp_path)) == 3


def test_a_statement_comes_after_its_picture(tmp_path):
    store(
        tmp_path / "nlvr/dev.jsonl",
        {"id": "1-0", "sentence": "All is blue.", "image": "a.png", "label": "false"},
    )
    (record,) = [r for split in ("train", "evaluate") for r in load("nlvr", split, tmp_path)]
    assert record.target == "false"
    assert record.messages[0]["content"][0] == {"type": "image", "image": f"{tmp_path}/nlvr/a.png"}
    assert asked(record) == "Is this true of the picture? All is blue."


def shapes(folder, part, count):
    pictures = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 30, 30, 3), np.uint8)
    rows = [
        {"index": n, "query": f"is {n} red", "answer": "true" if n % 2 else "false"} for n in range(count)
    ]
    store(folder / f"shapes/{part}.jsonl", *rows)
    np.savez(folder / f"shapes/{part}.npz", images=pictures)


def test_shapes_hold_every_fifth_picture_back(tmp_path):
    shapes(tmp_path, "train.small", 10)
    evaluate = load("shapes", "evaluate", tmp_path)
    assert [(asked(r), r.target) for r in evaluate] == [("Is 4 red?", "no"), ("Is 9 red?", "yes")]
    assert [int(parts(r.messages)[0][1].max()) for r in evaluate] == [4, 9]
    assert len(load("shapes", "train", tmp_path)) == 8


def test_shapes_may_be_evaluated_on_their_validation_set(tmp_path):
    shapes(tmp_path, "train.small", 10)
    shapes(tmp_path, "val", 3)
    assert len(load("shapes:val", "train", tmp_path)) == 10
    assert len(load("shapes:val", "evaluate", tmp_path)) == 3


def test_a_puzzle_shows_its_choices_and_is_answered_by_a_letter(tmp_path):
    row = {
        "image": "a.png",
        "question": "What is missing?",
        "options": [6, 3, 4],
        "answer": "3",
        "caption": "x",
    }
    store(tmp_path / "puzzlevqa/puzzlevqa.jsonl", row)
    (record,) = [r for split in ("train", "evaluate") for r in load("puzzlevqa", split, tmp_path)]
    assert asked(record) == "What is missing?\n(A) 6\n(B) 3\n(C) 4"
    assert record.target == "B"
    store(tmp_path / "puzzlevqa/puzzlevqa.jsonl", row | {"answer": "5"})
    with pytest.raises(ValueError, match=r"'answer' is '5', which is none of the options: 6, 3, 4"):
        load("puzzlevqa", "train", tmp_path) + load("puzzlevqa", "evaluate", tmp_path)


def test_problems_are_split_by_their_number_and_show_choices_that_are_not_in_the_picture(tmp_path):
    rows = [
        {"id": "5", "question": "How many?\n<image1>", "options": [], "answer": "6", "image": "5.jpg"},
        {"id": "6", "question": "Which?\n<image1>", "options": ["A", "B"], "answer": "A", "image": "6.jpg"},
        {"id": "7", "question": "Which?\n<image1>", "options": ["16", "51"], "answer": "B", "image": "7.jpg"},
    ]
    store(tmp_path / "mathvision/testmini.jsonl", *rows)
    assert [r.target for r in load("mathvision", "evaluate", tmp_path)] == ["6"]
    letters, numbers = load("mathvision", "train", tmp_path)
    assert asked(letters) == "Which?\n<image1>"
    assert asked(numbers) == "Which?\n<image1>\n(A) 16\n(B) 51"


def test_a_hub_row_gives_the_decoded_picture():
    row = {"id": "6", "question": "Q", "options": [], "answer": "A", "image": "6.jpg"}
    row |= {"decoded_image": {"bytes": b"x", "path": None}}
    example = mathvision_row(row, TaskConfig())
    assert parts(example.prompt)[0] == ("image", {"bytes": b"x", "path": None})


def test_spoken_digits_keep_the_split_of_the_data_set(tmp_path):
    rows = [{"audio": f"{n}.wav", "digit": n, "split": "test" if n < 2 else "train"} for n in range(5)]
    store(tmp_path / "fsdd/fsdd.jsonl", *rows)
    assert [r.target for r in load("spoken_digits", "evaluate", tmp_path)] == ["0", "1"]
    assert [r.target for r in load("spoken_digits", "train", tmp_path)] == ["2", "3", "4"]


def test_a_fold_of_sounds_is_held_back(tmp_path):
    rows = [{"audio": f"{n}.ogg", "label": f"sound {n}", "fold": n} for n in range(1, 6)]
    store(tmp_path / "esc10/esc10.jsonl", *rows)
    assert [r.target for r in load("esc10", "evaluate", tmp_path)] == ["sound 4"]
    assert [r.target for r in load("esc10:5", "evaluate", tmp_path)] == ["sound 5"]
    assert len(load("esc10:5", "train", tmp_path)) == 4


@pytest.fixture
def geometry(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"images": [{"bytes": b"x", "path": None}], "problem": "<image>Find x.", "answer": "3 \\sqrt { 6 }"}
    (tmp_path / "geo3k").mkdir()
    for split in ("train", "test"):
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"geo3k/{split}.parquet")
    return tmp_path


def test_geometry_is_read_in_the_layout_of_the_hub(geometry):
    (record,) = load("geo3k", "evaluate", geometry)
    assert record.messages[0]["content"][0] == {"type": "image", "image": {"bytes": b"x", "path": None}}
    assert asked(record) == "Find x."


def test_geometry_rewards_the_answer_and_the_tags(geometry):
    records = load("geo3k", "train", geometry)
    assert checked("geo3k", records).ok
    assert load_task("geo3k").rewards == {"math": 1.0, "format": 1.0}


AVQA = {
    "id": 183,
    "question_text": "What happened in the video?",
    "multi_choice": ["motorboat", "Consignment car"],
    "answer": 1,
    "audio_path": "wav/a.wav",
}


def test_sound_questions_are_read_in_the_layout_of_r1_aqa(tmp_path):
    store(tmp_path / "avqa/train.jsonl", AVQA)
    records = load("avqa", "train", tmp_path)
    assert asked(records[0]) == "What happened in the audio? Choose one of: motorboat, Consignment car."
    assert parts(records[0].messages) == [("audio", f"{tmp_path}/avqa/wav/a.wav")]
    assert records[0].target == "Consignment car"
    assert checked("avqa", records).ok


def test_a_choice_that_is_not_there_is_a_bad_record(tmp_path):
    store(tmp_path / "avqa/train.jsonl", AVQA | {"answer": 2})
    with pytest.raises(ValueError, match="must number one of the 2 choices from 0"):
        load("avqa", "train", tmp_path)


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"geo3k", "mathvision", "puzzlevqa"}))
def test_a_task_that_is_not_on_the_hub_asks_for_the_data_folder(name, tmp_path):
    with pytest.raises(ValueError, match=f"task '{name}' has no hub data set. Set data=FOLDER"):
        load(name)
    with pytest.raises(ValueError, match=f"task '{name}' needs .*, which is not there. Set data=FOLDER with"):
        load(name, data=tmp_path)


@pytest.mark.parametrize("name", [f"{name}:x" for name in TASKS])
def test_options_that_a_task_does_not_have_are_refused(name):
    with pytest.raises(ValueError, match=f"task '{name}'"):
        load_task(name)


@pytest.mark.parametrize("name", ["clips:fade", "chorales:voice"])
def test_one_kind_of_question_is_a_task_of_its_own(name):
    if not (REAL / FOLDERS[name.partition(":")[0]]).is_dir():
        pytest.skip(f"{REAL} is not there")
    records = load(name, "evaluate", REAL)
    assert {r.source for r in records} == {name}
    assert len({asked(r) for r in records}) == 1
