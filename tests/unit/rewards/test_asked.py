"""A reward of pictures is refused for a model that writes, and the other way round, without running a line of it."""

from __future__ import annotations

import sys

import pytest

from lightrft.rewards.asked import asked, check_views, parameters, wanted_fields
from lightrft.types import Record

MINE = """
raise RuntimeError("a reward's file was run")

def bright(image, target, *, strict=True): ...

def moves(clip): ...

def polite(answer, **others): ...

both = bright
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "picture_rewards_of_a_user.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{tmp_path}/picture_rewards_of_a_user.py"


def test_parameters_are_read_and_not_run(mine):
    assert parameters(f"{mine}:bright") == ("image", "target", "strict")
    assert parameters("picture_rewards_of_a_user:polite") == ("answer",)
    assert parameters("digit_second") == ("image", "target")
    assert "answer" in parameters("math")
    unknown = (
        f"{mine}:both",
        f"{mine}:nothing",
        "no.such.module:x",
        "no_such_file.py:x",
        "majority",
        "judge",
    )
    assert all(parameters(name) == () for name in unknown)


def test_no_package_around_a_module_is_run_to_find_it(tmp_path, monkeypatch):
    inner = tmp_path / "pictures_of_a_user/inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text('raise RuntimeError("a package was run")\ndef clear(clip): ...\n')
    (inner / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    assert parameters("pictures_of_a_user.inner.mine:bright") == ("image", "target", "strict")
    assert parameters("pictures_of_a_user.inner:clear") == ("clip",)
    assert not [name for name in sys.modules if name.startswith("pictures_of_a_user")]


FIELDS = """
from lightrft import each
raise RuntimeError("a reward's file was run")

def graded(answer, level, *, bonus=1): ...

def all_of_them(found, scale=2.0): ...

@each
def lifted(level): ...

def trl(completions, level, **kwargs): ...

def verl(data_source, solution_str, ground_truth): ...

async def later(answer): ...
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("graded", {"level", "bonus"}),
        ("all_of_them", set()),
        ("lifted", {"level"}),
        ("trl", None),
        ("nothing", None),
    ],
)
def test_the_fields_that_rewards_ask_for_are_read_of_their_text(name, expected, tmp_path):
    file = tmp_path / "graded.py"
    file.write_text(FIELDS, encoding="utf-8")
    row = Record("r", [], "5", "s", columns={"prompt": "2 + 3?", "level": 3, "other": 1})
    assert wanted_fields([row], [f"{file}:{name}", "math", "judge"]) == expected


def test_a_row_without_the_field_and_a_signature_that_cannot_work_are_refused_by_text_alone(tmp_path):
    file = tmp_path / "graded.py"
    file.write_text(FIELDS, encoding="utf-8")
    row = Record("file/rows.jsonl:3", [], "5", "s", columns={"prompt": "2 + 3?"})
    with pytest.raises(
        ValueError, match="asks for 'level', and file/rows.jsonl:3 has no such field; it has: prompt. Call"
    ):
        wanted_fields([row], [f"{file}:graded"])
    with pytest.raises(ValueError, match="asks for 'solution_str', which is called 'answer' here"):
        asked(f"{file}:verl")
    with pytest.raises(ValueError, match="is an async function"):
        asked(f"{file}:later")


@pytest.mark.parametrize(
    ("name", "makes", "told"),
    [
        ("digit", {"answer"}, "'digit' asks for `image`, and a response of model.path=M holds answer"),
        ("math", {"image"}, "'math' asks for `answer`, and a response of model.path=M holds image"),
        ("majority", {"image"}, "'majority' counts equal texts, and a response of model.path=M holds image"),
        ("{}:moves", {"image"}, "asks for `clip`, and a response of model.path=M holds image"),
        (
            "{}:bright",
            {"answer"},
            "Take a reward that asks for `answer`, or a model whose responses hold `image`",
        ),
        (
            "{}:polite",
            {"image", "clip"},
            "asks for `answer`, and a response of model.path=M holds image and clip",
        ),
    ],
)
def test_what_a_response_does_not_hold_is_refused_by_name(mine, name, makes, told):
    with pytest.raises(ValueError, match=told):
        check_views([name.format(mine)], makes, "M")


def test_a_reward_of_a_server_is_refused_where_no_text_is_written():
    told = "^remote.urls: the reward 'far' .* one of model.path=M holds image. Take a reward that asks for `image`"
    with pytest.raises(ValueError, match=told):
        check_views(["digit", "far"], {"image"}, "M", {"far": "http://localhost:1"})
    check_views(["digit"], {"image"}, "M", {"far": "http://localhost:1"})
    check_views(["far"], {"answer"}, "M", {"far": "http://localhost:1"})


def test_what_it_holds_or_what_cannot_be_told_is_let_through(mine):
    check_views(["digit", f"{mine}:bright", f"{mine}:moves"], {"image", "clip"}, "M")
    check_views(["math", "majority", f"{mine}:both", f"{mine}:polite"], {"answer"}, "M")
