"""Media are read when a question is drawn, and what cannot be read does not stop or shift a run unless it should."""

from __future__ import annotations

import pytest

from lightrft.config import MediaConfig, ModelConfig, TaskConfig
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import Opener, prepare
from lightrft.models.load import load_processor
from lightrft.types import Record

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def processor():
    return load_processor(ModelConfig(path="random:llava"), MediaConfig())


@pytest.fixture
def records(tmp_path):
    """Twelve questions about a picture each; the fourth picture is no picture, the fifth is absent."""
    for n in range(12):
        Image.new("RGB", (30, 30), (20 * n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "4.png").unlink()

    def content(n):
        return [
            {"type": "image", "image": str(tmp_path / f"{n}.png")},
            {"type": "text", "text": "What is it?"},
        ]

    return [Record(f"row/{n}", [{"role": "user", "content": content(n)}], n, "t") for n in range(12)]


def loader_of(records, processor, config, **world):
    prompts, _ = prepare(records, processor, config)
    return PromptLoader([(prompts, 1.0)], seed=0, open=Opener(processor, config), **world)


def test_nothing_is_read_before_a_question_is_drawn(records, processor):
    prompts, counts = prepare(records, processor, TaskConfig())
    assert counts.kept == 12
    assert not any(prompt.media for prompt in prompts)
    opened = processor.open(prompts[0])
    assert opened.media["pixel_values"].shape == (1, 3, 28, 28)
    assert len(opened.token_ids) == len(prompts[0].token_ids) + 15, "sixteen tokens where one mark stood"


@pytest.mark.parametrize(("place", "words"), [(3, "3.png"), (4, "4.png")])
def test_a_medium_that_cannot_be_read_is_named_with_its_record_and_the_cure(records, processor, place, words):
    (prompt,), _ = prepare([records[place]], processor, TaskConfig())
    with pytest.raises(ValueError, match=rf"row/{place}: .*{words}") as error:
        Opener(processor, TaskConfig())(prompt)
    assert "tasks.on_bad_record=skip" in str(error.value)


def test_a_broken_picture_is_replaced_and_the_order_of_the_others_stays(records, processor):
    config = TaskConfig(on_bad_record="skip")
    loader = loader_of(records, processor, config)
    whole = PromptLoader(loader_sources(records, processor), seed=0)
    drawn, planned = loader.draw(12), whole.draw(12)
    for mine, meant in zip(drawn, planned, strict=True):
        if meant.id in ("row/3", "row/4"):
            assert mine.id == "row/5", "the next one that can be read"
        else:
            assert mine.id == meant.id
    assert loader.state() == whole.state()
    assert loader.open.bad.skipped == 3, "row/3 led to row/4, and row/4 came by itself"


def loader_sources(records, processor):
    return [(prepare(records, processor, TaskConfig())[0], 1.0)]


def test_a_question_that_is_too_long_with_its_media_is_skipped_counted_or_refused(records, processor):
    short = TaskConfig(max_prompt_tokens=29)
    (prompt,), _ = prepare(records[:1], processor, short)
    opener = Opener(processor, short)
    assert opener(prompt) is None
    assert opener.counts.too_long == 1
    with pytest.raises(ValueError, match=r"row/0: the prompt has 30 tokens, tasks.max_prompt_tokens=29"):
        Opener(processor, TaskConfig(max_prompt_tokens=29, on_long_prompt="raise"))(prompt)
    with pytest.raises(ValueError, match="cannot be truncated without breaking them"):
        Opener(processor, TaskConfig(max_prompt_tokens=29, on_long_prompt="truncate_left"))(prompt)


def test_if_no_picture_can_be_read_the_run_says_so(records, processor):
    with pytest.raises(ValueError, match="none of the 2 prompts of 't' has media that can be used"):
        loader_of(records[3:5], processor, TaskConfig(on_bad_record="skip")).draw(1)
