import pytest

from lightrft.models.processor import Processor
from lightrft.testing import tiny_processor, tiny_tokenizer
from lightrft.types import Record

MESSAGES = [{"role": "user", "content": "hé"}]


def test_a_record_becomes_a_prompt_that_ends_where_the_answer_begins():
    record = Record(id="r1", messages=MESSAGES, target="x", source="task")
    prompt = tiny_processor().prompt(record)
    assert prompt.id == "r1"
    assert prompt.target == "x"
    assert prompt.source == "task"
    assert prompt.messages == MESSAGES
    assert tiny_processor().text(prompt.token_ids, special=True) == "<|user|>hé<|end|><|assistant|>"


def test_a_conversation_without_an_answer_next_ends_after_its_last_message():
    text = tiny_processor().text(tiny_processor().tokens(MESSAGES, answer_next=False), special=True)
    assert text == "<|user|>hé<|end|>"


def test_what_people_see_is_what_the_model_reads():
    processor = tiny_processor()
    assert processor.rendered(MESSAGES) == processor.text(processor.tokens(MESSAGES), special=True)


def test_special_tokens_are_left_out_of_an_answer():
    processor = tiny_processor()
    assert processor.text([ord("a"), 256]) != ""
    tokens = [*processor.tokenizer("ab")["input_ids"], 256]
    assert processor.text(tokens) == "ab"
    assert processor.text(tokens, special=True) == "ab<|end|>"


def test_pieces_are_one_per_token_and_a_torn_letter_is_shown_as_such():
    processor = tiny_processor()
    tokens = processor.tokenizer("aé")["input_ids"]
    assert processor.pieces(tokens) == ["a", "", "é"]
    assert processor.pieces(tokens[:-1]) == ["a", "�"]


def test_a_prompt_does_not_pick_up_a_second_start_token():
    tokenizer = tiny_tokenizer()
    tokens = Processor(tokenizer, frozenset({256}), 260).tokens(MESSAGES)
    assert (
        tokens
        == tokenizer(
            tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False),
            add_special_tokens=False,
        )["input_ids"]
    )


def test_without_end_token_there_is_no_processor():
    with pytest.raises(ValueError, match="no end token.*eos_token"):
        Processor(tiny_tokenizer(), frozenset(), 260)


def test_without_chat_template_there_is_no_processor():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template.*model.chat_template"):
        Processor(tokenizer, frozenset({256}), 260)


END = 256
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Processor(tokenizer, frozenset({END}), 260)


def test_turns_are_what_the_template_adds_and_together_they_are_the_conversation():
    processor = tiny_processor()
    first = processor.between([], TALK[:1])
    answer = processor.said(first, TALK[:2], END)
    after = processor.between(first + answer, TALK[:3])
    texts = [processor.text(tokens, special=True) for tokens in (first, answer, after)]
    assert texts == ["<|user|>a<|end|><|assistant|>", "b<|end|>", "<|user|>c<|end|><|assistant|>"]
    assert first + answer + after == processor.tokens(TALK[:3])


def test_what_follows_the_end_token_belongs_to_the_next_turn():
    newline = "{% for m in messages %}{{ m['content'] }}<|end|>\n{% endfor %}"
    processor = with_template(newline)
    first = processor.between([], TALK[:1])
    answer = processor.said(first, TALK[:2], END)
    after = processor.between(first + answer, TALK[:3])
    assert processor.text(answer, special=True) == "b<|end|>"
    assert processor.text(after, special=True) == "\nc<|end|>\n"


def test_an_answer_without_end_token_is_taken_whole():
    processor = with_template("{% for m in messages %}{{ m['content'] }};{% endfor %}")
    assert processor.text(processor.said(processor.between([], TALK[:1]), TALK[:2], END)) == "b;"


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_cure():
    counting = "{% for m in messages %}{{ messages|length }}{{ m['content'] }}{% endfor %}"
    processor = with_template(counting)
    with pytest.raises(
        ValueError, match="before message 3 otherwise .* Set train_on=last_turn, or model.chat_template"
    ):
        processor.between(processor.tokens(TALK[:1]), TALK[:3], instead="train_on=last_turn, or ")


def test_an_answer_that_the_template_swallows_or_merges_is_refused():
    silent = with_template("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="message 1: the chat template leaves the response out"):
        silent.said(silent.tokens(TALK[:1]), TALK[:2], END)
    with pytest.raises(ValueError, match="message 1: its first characters merge"):
        silent.said([1, 2, 3], TALK[:2], END)
