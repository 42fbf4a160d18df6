import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.prompts import Counts, prepare
from lightrft.testing import tiny_processor
from lightrft.types import Record

PROCESSOR = tiny_processor()


def records(*texts):
    return [
        Record(id=f"q/{n}", messages=[{"role": "user", "content": text}], target=n, source="q")
        for n, text in enumerate(texts)
    ]


# The tiny template adds 3 tokens: <|user|> before, <|end|> and <|assistant|> after the text, one token per byte.


def test_prompts_keep_order_target_and_source():
    prompts, counts = prepare(records("ab", "abc"), PROCESSOR, TaskConfig())
    assert [(p.id, p.target, p.source, len(p.token_ids)) for p in prompts] == [
        ("q/0", 0, "q", 5),
        ("q/1", 1, "q", 6),
    ]
    assert counts == Counts(kept=2, longest=6)


def test_long_prompts_are_skipped_and_counted():
    prompts, counts = prepare(records("ab", "abcdefgh"), PROCESSOR, TaskConfig(max_prompt_tokens=5))
    assert [p.id for p in prompts] == ["q/0"]
    assert counts == Counts(kept=1, too_long=1, longest=11)


def test_long_prompts_can_lose_their_left_tokens():
    (prompt,), counts = prepare(
        records("abcdefgh"), PROCESSOR, TaskConfig(max_prompt_tokens=4, on_long_prompt="truncate_left")
    )
    assert PROCESSOR.text(prompt.token_ids, special=True) == "gh<|end|><|assistant|>"
    assert counts == Counts(kept=1, truncated=1, longest=11)


def test_long_prompts_can_stop_the_run():
    with pytest.raises(ValueError, match=r"q/0: the prompt has 11 tokens, tasks.max_prompt_tokens=5"):
        prepare(records("abcdefgh"), PROCESSOR, TaskConfig(max_prompt_tokens=5, on_long_prompt="raise"))


def test_an_empty_prompt_is_a_bad_record():
    with pytest.raises(ValueError, match="q/1: the prompt is empty"):
        prepare(records("a", ""), PROCESSOR, TaskConfig())
    prompts, counts = prepare(records("a", ""), PROCESSOR, TaskConfig(on_bad_record="skip"))
    assert [p.id for p in prompts] == ["q/0"]
    assert counts == Counts(kept=1, empty=1, longest=4)


def test_no_prompt_left_is_an_error_with_the_cure():
    with pytest.raises(
        ValueError,
        match=r"no prompt is left: 1 over tasks.max_prompt_tokens=2 \(the longest has 4\), 0 empty",
    ):
        prepare(records("a"), PROCESSOR, TaskConfig(max_prompt_tokens=2))
