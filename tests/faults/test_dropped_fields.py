"""What a row says besides prompt and response is read by every format, or refused; it is never dropped without a word."""

import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.conversations import conversation
from lightrft.datasets.formats import columns
from lightrft.datasets.preferences import (
    best,
    chosen,
    compared,
    graded,
    judged,
    ranked,
    saferlhf,
    scored,
    unpaired,
)
from lightrft.tasks.table import row_format

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ALPACA = {"instruction": "Add.", "input": "1 2", "history": [["hi", "yes"]], "system": "s"}
BEFORE = [("system", "s"), ("user", "hi"), ("assistant", "yes"), ("user", "Add.\n1 2")]
RIGHT_AND_WRONG = {"chosen": "3", "rejected": "4"}
GRADES = {"responses": ["3", "4"], "grades": [1, 0]}
LABELS = {
    "response_0": "3", "response_1": "4", "better_response_id": 0, "safer_response_id": 0, "is_response_0_safe": True, "is_response_1_safe": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["instruction", "prompt"])
@pytest.mark.parametrize(
    ("form", "rest"),
    [
        (columns, {"target": "3"}),
        (conversation, {"output": "3"}),
        (conversation, {"response": "3"}),
        (chosen, RIGHT_AND_WRONG),
        (compared, RIGHT_AND_WRONG),
        (compared, {"chosen": ["3"], "rejected": ["4", "5"]}),
        (ranked, {"responses": ["3", "4"]}),
        (graded, GRADES),
        (best, GRADES),
        (saferlhf, LABELS),
        (unpaired, {"output": "3", "label": True}),
    ],
)
def test_what_belongs_to_an_instruction_is_asked_by_every_format(form, rest, name):
    """Wherever tasks.prompt_field names the field, and by all but `columns` where it names another one."""
    if name == "prompt" and (form is columns or "response" in rest):
        pytest.skip("this layout goes by the prompt field alone")
    found = form({**ALPACA, **rest}, TaskConfig(prompt_field=name))
    asked = [*found.prompt, *found.target[:-1]] if form is conversation else found.prompt
    assert [(turn["role"], turn["content"]) for turn in asked] == BEFORE


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize(
    ("form", "row"),
    [
        (columns, {"prompt": "q", "target": "1"}),
        (columns, {"prompt": [ASKED], "target": "1"}),
        (row_format("gsm8k"), {"question": "q", "answer": "#### 1"}),
        (row_format("math"), {"problem": "q", "answer": "1"}),
        (row_format("aime_archive"), {"Question": "q", "Answer": "1"}),
        (row_format("svamp"), {"Body": "b", "Question": "q", "Answer": 1}),
        (row_format("hpdv3"), {"prompt": "q", "path1": "a.png", "path2": "b.png"}),
        (row_format("mbpp"), {"prompt": "q", "code": "def f(): 1", "test_list": ["assert f()"]}),
        (row_format("stdin"), {"problem": "q", "tests": [{"input": "1", "output": "1"}]}),
        (row_format("leetcode"), {"problem": "q", "tests": {"functional": "t"}}),
        (row_format("humaneval"), {"prompt": "q", "test": "t", "entry_point": "f"}),
        (row_format("cruxeval"), {"code": "def f(x): return x", "input": "1", "output": "1"}),
        (conversation, {"messages": [ASKED, SAID]}),
        (unpaired, {"messages": [ASKED, SAID], "label": False}),
    ],
)
def test_a_system_message_of_a_row_comes_first_in_every_format(form, row, name):
    found = form({**row, name: "be kind"}, TaskConfig()).prompt
    assert found[0] == {"role": "system", "content": "be kind"}
    assert [turn["role"] for turn in found[1:]] == ["user"]
    if not isinstance(bare := form(row, TaskConfig()).prompt, str):
        assert bare == found[1:]
    else:
        assert bare == found[1]["content"]


@pytest.mark.parametrize("form", [judged, scored])
def test_a_judge_is_shown_the_system_message_of_a_row(form):
    row = {**ALPACA, **RIGHT_AND_WRONG, "response": "3", "score": 7}
    asked = form(row, TaskConfig()).prompt
    assert "System: s\nUser: hi\nAssistant: yes\nUser: Add.\n1 2\n" in asked


def test_who_says_what_is_told_to_a_judge_that_sees_too():
    row = {"prompt": "<image> How many?", "images": ["a.png"], "system": "s", **RIGHT_AND_WRONG}
    (asked,) = judged(row, TaskConfig()).prompt
    texts = [part.get("text", "PICTURE") for part in asked["content"]]
    assert "".join(texts[1:-1]) == "System: s\nUser: PICTURE How many?"


@pytest.mark.parametrize(
    ("form", "row", "told"),
    [
        (columns, {"prompt": "q", "target": "1", "system": "s", "system_prompt": "t"}, "'system' and 'system_prompt'"),
        (columns, {"prompt": "q", "target": "1", "system": 3}, "'system' must be text"),
        (columns, {"prompt": [{"role": "system", "content": "s"}, ASKED], "target": "1", "system": "t"}, "a field 'system' too"),
        (best, {"prompt": "q", **GRADES, "grades": {"general": [1, 0], "cost": [-1, 2]}}, "general, cost, and `best`"),
        (compared, {"prompt": "q", "chosen": ["3"], "rejected": ["4"], "margin": -1}, "'margin' is -1"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_in_a_row_is_refused(form, row, told):
    with pytest.raises(ValueError, match=told):
        form(row, TaskConfig())


def test_a_margin_counts_for_lists_of_responses_too():
    found = compared(
        {"prompt": "q", "chosen": ["3", "three"], "rejected": ["4"], "margin": 2.5}, TaskConfig()
    )
    assert [one["grades"][""] for one in found.target] == [2.5, 2.5, 0.0]


def test_a_prompt_inside_of_a_field_is_found_by_its_dotted_name():
    row = {"data": {"prompt": "q"}, **GRADES}
    assert graded(row, TaskConfig(prompt_field="data.prompt")).prompt == [ASKED]
