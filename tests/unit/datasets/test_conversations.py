"""Rows to conversations, and conversations to tokens with a mark on each that is learned."""

from __future__ import annotations

import re

import pytest
from tokenizers import models, pre_tokenizers

from lightrft.config import SFTConfig, TaskConfig
from lightrft.datasets.conversations import Conversations, conversation, demonstration
from lightrft.models.processor import PLAIN_TEMPLATE, Processor
from lightrft.tasks.table import load_task
from lightrft.testing import tiny_tokenizer
from lightrft.types import Record

NEWLINES = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As ChatML does it: a line break after each end token."""
FORGETFUL = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if loop.last and m['role'] == 'assistant' %}(thought){% endif %}{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As templates for reasoning models do it: thoughts are dropped once the conversation goes on."""
TALK = [("system", "S"), ("user", "hi"), ("assistant", "yes"), ("user", "and"), ("assistant", "no")]


def processor(template=None):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    return Processor(tokenizer, frozenset({tokenizer.eos_token_id}), len(tokenizer))


def says(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def prompts(*talks, template=None, **settings):
    """The prompts of conversations, each a list of (role, content)."""
    records = [Record(f"t/{n}", says(*talk[:-1]), says(talk[-1]), "t") for n, talk in enumerate(talks)]
    reader = Conversations.of(processor(template), SFTConfig(**settings))
    return reader.prompts(records, lambda record: "never asked")


def shown(prompt, template=None):
    """The prompt, a bar, and what follows it, with what is learned in brackets."""
    text = processor(template).text(prompt.token_ids, special=True) + "|"
    inside = False
    for token, learned in zip(prompt.target.token_ids, prompt.target.mask, strict=True):
        text += ("[" if learned and not inside else "]" if inside and not learned else "") + processor().text(
            [token], special=True
        )
        inside = learned
    return text + ("]" if inside else "")


def test_the_answer_and_its_end_token_are_learned_and_nothing_of_the_prompt():
    (prompt,), _ = prompts([("user", "hi"), ("assistant", "yes")])
    assert prompt.token_ids == [257, *processor().tokenizer.encode("hi"), 256, 258]
    assert prompt.target.token_ids == [*processor().tokenizer.encode("yes"), 256]
    assert prompt.target.mask == [True, True, True, True]
    assert prompt.target.finish == "stop"


def test_every_turn_of_the_assistant_is_learned_and_no_later_turn_of_the_user():
    (prompt,), _ = prompts(TALK)
    assert (
        shown(prompt)
        == "<|system|>S<|end|><|user|>hi<|end|><|assistant|>|[yes<|end|>]<|user|>and<|end|><|assistant|>[no<|end|>]"
    )


def test_or_only_the_last_one():
    (prompt,), _ = prompts(TALK, train_on="last_turn")
    assert (
        shown(prompt)
        == "<|system|>S<|end|><|user|>hi<|end|><|assistant|>yes<|end|><|user|>and<|end|><|assistant|>|[no<|end|>]"
    )


def test_what_the_template_puts_after_the_end_token_is_not_learned():
    (prompt,), _ = prompts(TALK[1:], template=NEWLINES)
    assert (
        shown(prompt)
        == "<|user|>hi<|end|>\n<|assistant|>|[yes<|end|>]\n<|user|>and<|end|>\n<|assistant|>[no<|end|>]"
    )


def test_a_template_may_close_the_whole_conversation_with_a_token_of_its_own():
    """As that of Phi-3 does."""
    template = NEWLINES.replace("{% endif %}", "{% else %}<|system|>{% endif %}")
    (prompt,), _ = prompts(TALK[1:], template=template)
    assert (
        shown(prompt)
        == "<|user|>hi<|end|>\n<|assistant|>|[yes<|end|>]\n<|user|>and<|end|>\n<|assistant|>[no<|end|>]"
    )


def test_turns_after_the_last_answer_are_left_out():
    (prompt,), _ = prompts([*TALK[1:3], ("user", "bye")])
    assert shown(prompt) == "<|user|>hi<|end|><|assistant|>|[yes<|end|>]"


def test_a_trajectory_carries_the_mask_and_shares_the_prompt():
    (prompt,), _ = prompts(TALK)
    t = demonstration(prompt, group=3)
    assert (t.prompt, t.group, t.finish) == (prompt, 3, "stop")
    assert t.mask == [True] * 4 + [False] * 6 + [True] * 3
    assert t.behavior == [0.0] * 13


def test_a_truncated_answer_gets_no_end_token():
    long = [("user", "hi"), ("assistant", "abcdef")]
    (prompt,), kept = prompts(long, max_tokens=4, on_long_response="truncate")
    assert shown(prompt) == "<|user|>hi<|end|><|assistant|>|[abcd]"
    assert prompt.target.finish == "length"
    assert (kept.truncated, kept.too_long) == (1, 0)


def test_a_long_answer_is_skipped_and_counted():
    (prompt,), kept = prompts(
        [("user", "hi"), ("assistant", "abcdef")], [("user", "hi"), ("assistant", "abc")], max_tokens=4
    )
    assert (prompt.id, kept.too_long) == ("t/1", 1)


def test_a_long_answer_can_stop_the_run():
    with pytest.raises(ValueError, match="t/0: what follows the prompt has 7 tokens, max_tokens=4"):
        prompts([("user", "hi"), ("assistant", "abcdef")], max_tokens=4, on_long_response="raise")


def test_if_every_answer_is_too_long_the_setting_is_named():
    with pytest.raises(
        ValueError, match="no conversation is left: 1 have responses over max_tokens=4.*Raise max_tokens"
    ):
        prompts([("user", "hi"), ("assistant", "abcdef")], max_tokens=4)


def test_a_long_prompt_is_treated_as_in_reinforcement_learning():
    long, short = [("user", "abcdefgh"), ("assistant", "a")], [("user", "a"), ("assistant", "a")]
    (prompt,), _ = prompts(long, short, tasks=TaskConfig(max_prompt_tokens=6))
    assert prompt.id == "t/1"


def test_a_template_that_forgets_what_was_thought_names_the_row_and_the_cure():
    with pytest.raises(ValueError, match="t/0: the chat template does not keep prefixes.*train_on=last_turn"):
        prompts(TALK[1:], template=FORGETFUL)
    (prompt,), _ = prompts(TALK[1:], template=FORGETFUL, train_on="last_turn")
    assert shown(prompt).endswith("|[(thought)no<|end|>]")


def test_a_template_that_opens_an_answer_otherwise_than_it_writes_one_is_refused():
    template = tiny_tokenizer().chat_template.replace("<|assistant|>{% endif", "<|assistant|><think>{% endif")
    with pytest.raises(ValueError, match="opens a response otherwise than it writes one"):
        prompts(TALK[1:3], template=template)


def test_an_answer_that_merges_with_what_stands_before_names_the_row():
    """A template that ends the opening with a line break, and a vocabulary with a token for two of them."""
    reader = processor(tiny_tokenizer().chat_template.replace("|>", "|>\n"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)} | {"ĊĊ": 300}
    reader.tokenizer.backend_tokenizer.model = models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")])
    records = [
        Record(f"t/{n}", says(("user", "hi")), says(("assistant", x)), "t")
        for n, x in enumerate(("a", "\na"))
    ]
    with pytest.raises(ValueError, match="t/1: message 1: its first characters merge"):
        Conversations.of(reader, SFTConfig()).prompts(records, str)


def test_a_template_that_refuses_a_conversation_is_a_bad_record():
    template = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}" + NEWLINES
    with pytest.raises(ValueError, match="t/0: no system role.*\n.*tasks.on_bad_record=skip"):
        prompts(TALK, template=template)
    skip = TaskConfig(on_bad_record="skip")
    (prompt,), kept = prompts(TALK, TALK[1:], template=template, tasks=skip)
    assert (prompt.id, kept.broken) == ("t/1", 1)


def test_a_template_without_end_tokens_is_refused_since_nothing_would_end():
    with pytest.raises(ValueError, match="no end token after a response.*model.chat_template"):
        prompts(TALK, template=PLAIN_TEMPLATE)


def test_an_end_token_that_stops_nothing_is_warned_of(caplog):
    prompts(TALK[1:3], template=tiny_tokenizer().chat_template.replace("<|end|>", "<|system|>"))
    assert "ends a response with token 259" in caplog.text


def test_media_may_stand_in_the_prompt_only():
    picture = {"role": "user", "content": [{"type": "image", "image": "a.png"}]}
    talk = [*says(("user", "hi"), ("assistant", "yes")), picture, *says(("assistant", "a cat"))]
    reader = Conversations.of(processor(), SFTConfig())
    with pytest.raises(ValueError, match="t/0: message 2 holds a medium.*train_on=last_turn"):
        reader.prompts([Record("t/0", talk[:1], talk[1:], "t")], str)


def test_a_response_that_is_a_picture_is_for_models_that_draw():
    drawn = {"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}
    for turns in ("all_turns", "last_turn"):
        reader = Conversations.of(processor(), SFTConfig(train_on=turns))
        with pytest.raises(
            ValueError, match=r"message 1 .* writes text alone\. Take a diffusion pipeline as model\.path"
        ):
            reader.prompts([Record("t/0", says(("user", "hi")), [drawn], "t")], str)


def test_the_gold_answer_of_a_task_is_what_is_said():
    task = load_task("tiny")
    reader = Conversations.of(processor(), SFTConfig())
    first, *_ = reader.prompts(task.load("evaluate", TaskConfig(), "", 0), task.gold)[0]
    assert shown(first) == "<|user|>frm<|end|><|assistant|>|[frm<|end|>]"


def test_a_task_without_a_gold_answer_to_a_question_makes_it_a_bad_record():
    def none(record):
        raise ValueError("there is no answer")

    reader = Conversations.of(processor(), SFTConfig())
    with pytest.raises(ValueError, match="t/0: there is no answer"):
        reader.prompts([Record("t/0", says(("user", "hi")), None, "t")], none)


HI, YES = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
SEEN = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "hi"}]}
SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [SYSTEM, HI, YES, HI, YES]}, ([SYSTEM, HI], [YES, HI, YES])),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
            ([HI], [YES]),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}],
                "system": "S",
            },
            ([SYSTEM, HI], [YES]),
        ),
        ({"prompt": "hi", "completion": "yes"}, ([HI], [YES])),
        ({"prompt": "<image>hi", "completion": "yes", "image": "a.png"}, ([SEEN], [YES])),
        ({"prompt": "hi", "response": "yes"}, ([HI], [YES])),
        ({"prompt": "hi", "target": "yes"}, ([HI], [YES])),
        ({"prompt": [SYSTEM, HI], "completion": [YES]}, ([SYSTEM, HI], [YES])),
        ({"prompt": "other", "messages": [HI, YES]}, ([HI], [YES])),
        ({"instruction": "hi", "input": "", "output": "yes"}, ([HI], [YES])),
        (
            {"instruction": "Add.", "input": "1 2", "output": "yes"},
            ([{"role": "user", "content": "Add.\n1 2"}], [YES]),
        ),
        (
            {"instruction": "hi", "output": "yes", "history": [["hi", "yes"]], "system": "S"},
            ([SYSTEM, HI], [YES, HI, YES]),
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_each_layout_of_rows_is_read(row, expected):
    assert tuple(conversation(row, TaskConfig())) == expected


def test_the_fields_of_question_and_answer_can_be_named():
    names = TaskConfig(prompt_field="q", target_field="a")
    assert conversation({"q": "hi", "a": "yes"}, names).target == [YES]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hi"}, "no layout fits; the row has: text"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": [HI]}, "no message is the assistant's"),
        ({"messages": [SYSTEM, YES]}, "the assistant speaks first"),
        ({"messages": [HI, {"role": "assistant", "content": ""}]}, "content that is not empty"),
        ({"messages": [HI, {**YES, "weight": 0}]}, "'weight', which is not supported"),
        ({"messages": [HI, {**YES, "tool_calls": [{}]}]}, "'tool_calls', which is not supported"),
        (
            {"conversations": [{"from": "observation", "value": "x"}]},
            "a turn is from 'observation'; known are human",
        ),
        ({"conversations": "hi"}, "must be a list of turns"),
        ({"instruction": "hi", "output": " "}, "field 'output' is empty"),
        ({"instruction": "hi"}, "no field 'output'"),
        ({"prompt": "hi"}, "no layout fits; the row has: prompt"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        conversation(row, TaskConfig())


def test_rows_of_a_file_are_read_as_conversations_and_a_broken_one_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "hi", "completion": "yes"}\n{"prompt": "hi"}\n')
    tasks = TaskConfig(train_file=str(file), format=SFTConfig().tasks.format)
    task = load_task("file")
    with pytest.raises(ValueError, match=r"rows.jsonl:2: no layout fits"):
        task.load("train", tasks, "", 0)
