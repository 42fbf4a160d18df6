import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.formats import columns
from lightrft.datasets.media import filled

PICTURE, OTHER = {"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}


def text(said):
    return {"type": "text", "text": said}


def content(row, **options):
    """What the only message holds that format `columns` makes of a row."""
    prompt = columns({"target": "1", **row}, TaskConfig(**options)).prompt
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def test_marks_in_a_text_are_replaced_by_the_media_in_order():
    row = {"prompt": "Is <image> like <image>?\n<audio>", "images": ["a.png", "b.png"], "audio": "c.wav"}
    assert content(row) == [
        text("Is "),
        PICTURE,
        text(" like "),
        OTHER,
        text("?\n"),
        {"type": "audio", "audio": "c.wav"},
    ]


def test_media_without_a_mark_come_first_pictures_before_clips_before_sounds():
    row = {"audio": "c.wav", "video": "v.mp4", "images": ["a.png", "b.png"], "prompt": "What is it?"}
    assert content(row) == [
        PICTURE,
        OTHER,
        {"type": "video", "video": "v.mp4"},
        {"type": "audio", "audio": "c.wav"},
        text("What is it?"),
    ]


def test_a_row_without_media_columns_may_speak_of_tags():
    assert content({"prompt": "What does <video> do in HTML?"}) == "What does <video> do in HTML?"


@pytest.mark.parametrize("column", [{"image": None}, {"images": []}])
def test_an_empty_column_adds_nothing(column):
    assert content({"prompt": "2+2?", **column}) == "2+2?"


@pytest.mark.parametrize("picture", ["a.png", b"a", {"bytes": b"a", "path": None}])
def test_a_single_column_holds_one_medium_of_any_kind_of_source(picture):
    assert content({"prompt": "What?", "image": picture})[0] == {"type": "image", "image": picture}


def test_a_list_is_several_pictures_but_the_frames_of_one_clip():
    assert len(content({"prompt": "What?", "image": ["a.png", "b.png"]})) == 3
    assert content({"prompt": "What?", "video": ["a.png", "b.png"]})[0]["video"] == ["a.png", "b.png"]
    assert len(content({"prompt": "What?", "videos": ["a.mp4", "b.mp4"]})) == 3


def test_several_turns_of_a_conversation_share_the_media():
    messages = [
        {"role": "user", "content": "<image>Who?"},
        {"role": "assistant", "content": "Thomas."},
        {"role": "user", "content": "And here?<image>"},
    ]
    found = filled(messages, {"images": ["a.png", "b.png"]})
    assert [m["content"] for m in found] == [
        [PICTURE, text("Who?")],
        "Thomas.",
        [text("And here?"), OTHER],
    ]


def test_media_without_a_mark_go_to_the_users_first_message():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert filled(messages, {"image": "a.png"})[0]["content"] == "Be brief."
    assert filled(messages, {"image": "a.png"})[1]["content"] == [PICTURE, text("Who?")]


def test_parts_without_a_source_take_those_of_the_column():
    messages = [
        {"role": "user", "content": [{"type": "image"}, text("or"), {"type": "image", "image": None}]}
    ]
    assert filled(messages, {"images": ["a.png", "b.png"]})[0]["content"] == [PICTURE, text("or"), OTHER]


def test_messages_with_their_own_media_pass_through():
    messages = [{"role": "user", "content": [PICTURE, text("Who?")]}]
    assert content({"prompt": messages}) == [PICTURE, text("Who?")]
    assert content({"prompt": messages, "images": None}) == [PICTURE, text("Who?")]


def test_conversations_of_sharegpt_are_understood():
    talk = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>Who?"},
        {"from": "gpt", "value": "Thomas."},
        {"from": "human", "value": "Sure?"},
    ]
    row = {"conversations": talk, "images": ["a.png"], "target": "yes"}
    prompt = columns(row, TaskConfig(prompt_field="conversations")).prompt
    assert [(m["role"], m["content"]) for m in prompt] == [
        ("system", "Be brief."),
        ("user", [PICTURE, text("Who?")]),
        ("assistant", "Thomas."),
        ("user", "Sure?"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "<image> and <image>", "images": ["a.png"]},
            "the messages have 2 places for image, the row has 1",
        ),
        ({"prompt": "<audio>", "images": ["a.png"]}, "the messages have 1 places for audio, the row has 0"),
        ({"prompt": "<image>", "images": None}, "the messages have 1 places for image, the row has 0"),
        ({"prompt": "?", "images": ["a.png"], "image": "a.png"}, "the row has both 'image' and 'images'"),
        (
            {"prompt": [{"role": "user", "content": [PICTURE]}], "image": "a.png"},
            "the messages hold their own image, and the row has a column",
        ),
    ],
)
def test_places_and_media_must_agree(row, message):
    with pytest.raises(ValueError, match=message):
        content(row)
