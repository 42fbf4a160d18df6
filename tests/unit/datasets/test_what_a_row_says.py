"""What a row says beside its question is asked too, or refused by name: system, input, history, media, tools."""

import json

import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.conversations import conversation
from lightrft.datasets.formats import FORMATS, columns
from lightrft.datasets.media_preferences import MEDIA_PREFERENCES
from lightrft.datasets.preferences import chosen, compared, graded, judged, ranked, scored
from lightrft.tasks import benchmarks, code, media_benchmarks, media_tasks, questions, repair

CONFIG = TaskConfig()
ALPACA = TaskConfig(prompt_field="instruction")
INSIDE = TaskConfig(prompt_field="data.instruction")
PAST = [["Hi", "Hello"]]
SAID = {"chosen": "4", "rejected": "5"}
PATCH = "--- a/t.py\n+++ b/t.py\n@@ -1 +1 @@\n-a\n+b\n"
TURNS = [{"role": "user", "content": "2+2?"}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PUBLISHED = {
    "gsm8k": (FORMATS["gsm8k"], {"question": "2+2?", "answer": "#### 4"}),
    "math": (FORMATS["math"], {"problem": "2+2?", "answer": "4"}),
    "aime_archive": (FORMATS["aime_archive"], {"Question": "2+2?", "Answer": "4"}),
    "svamp": (FORMATS["svamp"], {"Body": "Two and two.", "Question": "Sum?", "Answer": "4"}),
    "cruxeval": (code.cruxeval_row, {"code": "def f(x): return x", "input": "1", "output": "1"}),
    "mbpp": (code.mbpp_row, {"prompt": "f", "code": "def f(): 1", "test_list": ["f()"]}),
    "swebench": (
        repair.swebench_row,
        {
            "instance_id": "a",
            "repo": "a/b",
            "base_commit": "c",
            "test_patch": PATCH,
            "FAIL_TO_PASS": ["t.py::t"],
        }
        | {"problem_statement": "It fails."},
    ),
    "ifeval": (
        questions.ifeval_row,
        {"prompt": "Hi", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    ),
    "hotpotqa": (questions.hotpot_row, {"question": "a?", "answer": "b", "context": [["t", ["s"]]]}),
    "hotpotqa:question": (questions.hotpot_question, {"question": "a?", "answer": "b"}),
    "nq_open": (questions.nq_row, {"question": "a", "answer": ["b"]}),
    "amc23": (benchmarks.amc_row, {"question": "2+2?", "answer": 4.0}),
    "olympiad_bench": (benchmarks.olympiad_row, {"question": "2+2?", "final_answer": ["4"]}),
    "mmlu": (benchmarks.mmlu_row, {"question": "2+2?", "choices": ["4", "5"], "answer": 0}),
    "mmmu": (
        media_benchmarks.mmmu_row,
        {"question": "a?", "question_type": "open", "answer": "b", "options": []},
    ),
    "mmau": (
        media_benchmarks.mmau_row,
        {"question": "a?", "audio_id": "a.wav", "choices": ["b"], "answer": "b"},
    ),
    "video_mme": (
        media_benchmarks.video_mme_row,
        {"question": "a?", "options": ["A. b"], "answer": "A", "videoID": "v"},
    ),
    "mathvision": (
        media_tasks.mathvision_row,
        {"question": "a?", "image": "a.png", "options": [], "answer": "4"},
    ),
    "avqa": (
        media_tasks.avqa_row,
        {"question_text": "a?", "audio_path": "a.wav", "multi_choice": ["b"], "answer": 0},
    ),
    "hpdv3": (MEDIA_PREFERENCES["hpdv3"], {"prompt": "a cat", "path1": "a.png", "path2": "b.png"}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_forms_ask_with_the_system_message_and_refuse_tools(name):
    form, row = PUBLISHED[name]
    plain = form({**row, "system": " ", "tools": "[]"}, CONFIG).prompt
    plain = [user(plain)] if isinstance(plain, str) else plain
    assert form({**row, "system": "Be brief."}, CONFIG).prompt == [
        {"role": "system", "content": "Be brief."},
        *plain,
    ]
    for field in ("tools", "functions", "documents", "chat_template_kwargs"):
        with pytest.raises(ValueError, match=f"the row has '{field}', which is not supported. Leave it out"):
            form({**row, field: [{"name": "calc"}]}, CONFIG)


def test_input_history_system_and_pictures_beside_a_field_inside_of_another_are_asked():
    data = {"instruction": "Add", "input": "2, 2", "history": PAST, "system": "S", "image": "a.png"}
    asked = [user("Hi"), assistant("Hello")]
    last = user([{"type": "image", "image": "a.png"}, {"type": "text", "text": "Add\n2, 2"}])
    expected = [{"role": "system", "content": "S"}, *asked, last]
    assert columns({"data": data, "target": "4"}, INSIDE).prompt == expected
    assert columns({"data": json.dumps(data), "target": "4"}, INSIDE).prompt == expected
    flat = {f"data.{name}": value for name, value in data.items()}
    assert columns({**flat, "target": "4"}, INSIDE).prompt == expected
    talk = conversation({"data": data, "response": "4"}, INSIDE)
    assert [*talk.prompt, *talk.target] == [*expected, assistant("4")]
    assert compared({"data": data, **SAID}, INSIDE).prompt == expected
    assert graded({"data": data, "responses": ["4"], "grades": [1]}, INSIDE).prompt == expected


def test_pictures_belong_to_the_instruction_and_not_to_an_earlier_turn():
    row = {"instruction": "What is it?", "history": PAST, "image": "a.png", "target": "4"}
    shown = user([{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}])
    for found in (columns(row, ALPACA), ranked({**row, "responses": ["4"]}, ALPACA)):
        assert found.prompt == [user("Hi"), assistant("Hello"), shown]
    talk = [user("Look."), assistant("Yes."), user("What is it?")]
    first = columns({"prompt": talk, "image": "a.png", "target": "4"}, CONFIG).prompt[0]["content"]
    assert [part["type"] for part in first] == ["image", "text"]


@pytest.mark.parametrize("form", [columns, conversation, compared, ranked])
@pytest.mark.parametrize(
    ("row", "config", "message"),
    [
        ({"instruction": TURNS, "input": "x"}, ALPACA, "'input'.*beside the messages in field 'instruction'"),
        ({"instruction": TURNS, "history": PAST}, ALPACA, "field 'history', which is asked with a text"),
        ({"data": {"instruction": TURNS, "input": "x"}}, INSIDE, "field 'input'"),
        ({"prompt": "2+2?", "history": PAST}, CONFIG, "'history'.*beside the text in field 'prompt'"),
        ({"prompt": TURNS, "history": PAST}, CONFIG, "'history'.*beside the messages in field 'prompt'"),
        ({"prompt": "2+2?", "instruction": "other"}, CONFIG, r"'prompt' and 'instruction'.*Set tasks.prompt_field"),
        ({"prompt": "Add", "instruction": "Add", "input": "2, 2"}, CONFIG, "'prompt' and 'instruction'"),
    ],
)  # fmt: skip
def test_what_would_not_be_asked_is_refused_by_name(form, row, config, message):
    said = {"target": "4", "response": "4", **SAID, "responses": ["4", "5"]}
    with pytest.raises(ValueError, match=message):
        form({**row, **said}, config)


def test_an_instruction_that_the_prompt_repeats_is_not_lost():
    row = {"prompt": "### Add\n2, 2", "instruction": "Add", "input": "2, 2"}
    assert columns({**row, "target": "4"}, CONFIG).prompt == "### Add\n2, 2"
    assert conversation({**row, "output": "4"}, CONFIG).prompt == [user("Add\n2, 2")]
    with pytest.raises(ValueError, match="fields 'prompt' and 'instruction'"):
        conversation({"prompt": "Subtract", "instruction": "Add", "output": "4"}, CONFIG)


def test_an_empty_prompt_beside_an_instruction_is_refused():
    with pytest.raises(ValueError, match="field 'prompt' is empty, and field 'instruction' is not"):
        compared({"prompt": "", "instruction": "other", **SAID}, CONFIG)
    assert compared({"prompt": None, "instruction": "other", **SAID}, CONFIG).prompt == [user("other")]


def test_comparisons_find_a_prompt_inside_of_a_field():
    config = TaskConfig(prompt_field="data.prompt")
    row = {"data": {"prompt": "2+2?"}, **SAID}
    assert compared(row, config).prompt == chosen(row, config).prompt == TURNS
    assert "2+2?" in judged(row, config).prompt
    assert "2+2?" in scored({**row, "response": "4", "score": 3}, config).prompt


@pytest.mark.parametrize("nothing", ["", " ", None, float("nan")])
def test_blank_cells_are_as_good_as_no_field(nothing):
    row = {"instruction": "2+2?", "target": "4"} | dict.fromkeys(
        ("input", "system", "history", "tools"), nothing
    )
    assert columns(row, ALPACA).prompt == "2+2?"


@pytest.mark.parametrize("text", ["[]", "null", json.dumps(PAST)])
def test_history_may_be_json_text_of_a_cell(text):
    row = {"instruction": "2+2?", "history": text, "target": "4"}
    past = [user("Hi"), assistant("Hello"), user("2+2?")] if "Hi" in text else "2+2?"
    assert columns(row, ALPACA).prompt == past
