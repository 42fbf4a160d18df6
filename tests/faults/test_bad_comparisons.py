"""Comparisons that nothing, or the wrong thing, would be learned from: each is named by its row or counted where on_bad_record=skip, by
`lightrft reward` and by `lightrft dpo` alike; what stays is said."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from functools import partial

import pytest

from lightrft.build.reward import prompts_of
from lightrft.config import DPOConfig, RewardTrainingConfig, TaskConfig
from lightrft.datasets.comparisons import Comparisons, scored, spoken
from lightrft.datasets.conversations import checked_ending
from lightrft.models.processor import Processor
from lightrft.models.reward import up_to_score
from lightrft.tasks.table import load_task
from lightrft.testing import tiny_processor

USER, OTHER = {"role": "user", "content": "q"}, {"role": "user", "content": "other"}
YES, NO = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
GRADED = {"prompt": "q", "responses": ["a", "b"]}
HH = "\n\nHuman: {}\n\nAssistant: {}"

COMPARED = {
    "both sides the same": ({**PAIR, "rejected": "a"}, "say the same"),
    "an empty answer": ({**PAIR, "rejected": ""}, "response 1 is empty"),
    "an empty transcript": (
        {"chosen": HH.format("q", "a"), "rejected": HH.format("q", "")},
        "response 1 is empty",
    ),
    "only white space": ({**PAIR, "chosen": " \n\t"}, "response 0 is empty"),
    "a side missing": ({"prompt": "q", "chosen": "a"}, "no field 'rejected'"),
    "a side null": ({**PAIR, "chosen": None}, "'chosen' is null"),
    "a side that is a number": ({**PAIR, "chosen": 4}, "'chosen' must be text"),
    "a side that is an empty list": ({**PAIR, "chosen": []}, "'chosen' must be text"),
    "margin NaN": ({**PAIR, "margin": float("nan")}, "'margin' holds nan"),
    "margin of text": ({**PAIR, "margin": "much"}, "'margin' holds 'much'"),
    "other prompts, as messages": (
        {"chosen": [USER, YES], "rejected": [OTHER, NO]},
        "no response of the assistant to what both sides have in common",
    ),
    "other prompts, as transcripts": (
        {"chosen": HH.format("q", "a"), "rejected": HH.format("r", "b")},
        "no response of the assistant to what both sides have in common",
    ),
    "another prompt than the row's": (
        {"prompt": "q", "chosen": [USER, YES], "rejected": [OTHER, NO]},
        "'rejected' is no response of the assistant",
    ),
    "no turn of the user": (
        {"prompt": [{"role": "system", "content": "s"}], "chosen": "a", "rejected": "b"},
        "nobody asks",
    ),
    "an empty prompt": ({**PAIR, "prompt": ""}, "nobody asks"),
    "the assistant twice": (
        {"prompt": [USER, YES], "chosen": "a", "rejected": "b"},
        "the assistant speaks twice in a row",
    ),
    "a prompt of white space": ({**PAIR, "prompt": "  "}, "the prompt is empty"),
    "a turn of white space in parts": (
        {**PAIR, "prompt": [{"role": "user", "content": [{"type": "text", "text": " "}]}]},
        "content that is not empty",
    ),
    "two system messages": (
        {**PAIR, "prompt": [{"role": "system", "content": "s"}, USER], "system": "t"},
        "system message among its messages, and a field 'system' too",
    ),
    "a runaway response to nothing": ({"chosen": "a" + HH.format("q", "x"), "rejected": "b"}, "nobody asks"),
    "the user last": (
        {"prompt": "q", "chosen": [YES, USER], "rejected": [NO, USER]},
        "'chosen' is no response of the assistant",
    ),
    "an unknown role": (
        {"prompt": [{"role": "judge", "content": "q"}], "chosen": "a", "rejected": "b"},
        "role 'judge'",
    ),
}
OF_GRADES = {
    "K = 1": ({"prompt": "q", "responses": ["a"], "grades": [1]}, "no response is better"),
    "all grades equal": ({**GRADED, "grades": [1, 1]}, "no response is better"),
    "no grade": ({**GRADED, "grades": [None, None]}, "no response has a grade"),
    "a grade of text": ({**GRADED, "grades": [1, "good"]}, "'grades' holds 'good'"),
    "a grade NaN": ({**GRADED, "grades": [1, float("nan")]}, "'grades' holds nan"),
    "a grade infinite": ({**GRADED, "grades": [1, float("inf")]}, "'grades' holds inf"),
    "a grade of truth": ({**GRADED, "grades": [1, True]}, "'grades' holds True"),
    "too few grades": ({**GRADED, "grades": [1]}, "a number for each of the 2"),
    "no list of responses": ({**GRADED, "responses": "ab", "grades": [1, 0]}, "must be a list of responses"),
    "an unknown output": ({**GRADED, "grades": {"tone": [1, 0]}}, "'tone'|has a grade"),
    "the same response twice": (
        {**GRADED, "responses": ["a", "a"], "grades": [1, 0]},
        "same tokens and different grades",
    ),
}
ROWS = [("compared", name, *row) for name, row in COMPARED.items()] + [
    ("graded", name, *row) for name, row in OF_GRADES.items()
]


def maker(command, tasks, processor=None, **settings):
    """What makes rows into comparisons, as `lightrft reward` and `lightrft dpo` have it."""
    processor = processor or tiny_processor()
    if command == "reward":
        layout = scored(processor, partial(up_to_score, padding=None))
        return Comparisons(processor, RewardTrainingConfig(tasks=tasks, **settings), layout, True, ["score"])
    layout = spoken(processor, checked_ending(processor))
    return Comparisons(
        processor, DPOConfig(tasks=tasks, **settings), layout, True, [""], unnamed="", speaks=True
    )


def written(folder, rows, form="compared", policy="raise"):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskConfig(
        train={"file": 1.0}, train_file=str(file), on_bad_record=policy, format=f"lightrft.datasets.preferences:{form}"
    )  # fmt: skip


def loaded(folder, command, rows, form="compared", policy="raise", processor=None, **settings):
    """(ids of the prompts, how many rows were skipped)."""
    tasks = written(folder, rows, form, policy)
    records = load_task("file").load("train", tasks, "", 0)
    prompts, kept = maker(command, tasks, processor, **settings).prompts(records)
    return prompts, records.skipped + kept.broken + kept.too_long


@pytest.mark.parametrize("command", ["reward", "dpo"])
@pytest.mark.parametrize(
    ("form", "row", "told"), [(f, r, t) for f, _, r, t in ROWS], ids=[n for _, n, *_ in ROWS]
)
def test_a_row_that_compares_nothing_is_named_or_counted(tmp_path, command, form, row, told):
    good = [PAIR, {**PAIR, "prompt": "r"}] if form == "compared" else [
        {**GRADED, "grades": [1, 0]}, {**GRADED, "prompt": "r", "grades": [0, 1]}
    ]  # fmt: skip
    rows = [good[0], row, good[1]]
    with pytest.raises(ValueError, match=rf"(rows\.jsonl:2|file/1): .*({told})(?s:.*)Fix the row"):
        loaded(tmp_path, command, rows, form)
    prompts, skipped = loaded(tmp_path, command, rows, form, "skip")
    assert (len(prompts), skipped) == (2, 1)


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_a_response_over_the_limit_takes_the_other_side_with_it(tmp_path, command):
    rows = [{**PAIR, "rejected": "b" * 9}, PAIR]
    prompts, skipped = loaded(tmp_path, command, rows, max_tokens=8)
    assert ([p.id for p in prompts], skipped) == (["file/rows.jsonl:2"], 1)
    with pytest.raises(ValueError, match="a response has 10 tokens, max_tokens=8. Raise that"):
        loaded(tmp_path, command, rows, max_tokens=8, on_long_response="raise")


def of_template(text):
    tiny = tiny_processor()
    tokenizer = deepcopy(tiny.tokenizer)
    tokenizer.chat_template = text
    return Processor(tokenizer, tiny.stop_ids, tiny.vocab_size)


TURN = "{{ '<|' + m['role'] + '|>' }}{{ %s }}<|end|>"
OPENED = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TRIMS = "{% for m in messages %}" + TURN % "m['content'] | trim" + "{% endfor %}" + OPENED
FORGETS = (  # as templates do that leave the thoughts of earlier turns out
    "{% for m in messages %}"
    + TURN % "m['content'] if loop.last or m['role'] == 'user' else m['content'][-1:]"
    + "{% endfor %}"
    + OPENED
)
ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    + TURN % "m['content']"
    + "{% endfor %}"
    + OPENED
)
SEVERAL = {"prompt": "q", "chosen": [{**YES, "content": "aa"}, OTHER, YES], "rejected": "b"}


@pytest.mark.parametrize(
    ("command", "template", "row", "told"),
    [
        ("reward", TRIMS, {**PAIR, "rejected": "a "}, "same tokens and different grades"),
        ("dpo", TRIMS, {**PAIR, "rejected": " a\n"}, "same tokens and different grades"),
        ("dpo", FORGETS, SEVERAL, "writes turns before message 3 otherwise once more follow"),
        ("reward", ALTERNATES, {**PAIR, "prompt": [USER, OTHER]}, "roles must alternate"),
        ("dpo", ALTERNATES, {**PAIR, "prompt": [USER, OTHER]}, "roles must alternate"),
    ],
)
def test_what_only_the_chat_template_makes_bad_is_named_or_counted(tmp_path, command, template, row, told):
    rows, processor = [PAIR, row, {**PAIR, "prompt": "r"}], of_template(template)
    with pytest.raises(ValueError, match=rf"file/rows\.jsonl:2: .*{told}"):
        loaded(tmp_path, command, rows, processor=processor)
    prompts, skipped = loaded(tmp_path, command, rows, policy="skip", processor=processor)
    assert (len(prompts), skipped) == (2, 1)


def test_a_template_that_trims_is_taken_at_its_word(tmp_path):
    (prompt,), _ = loaded(tmp_path, "reward", [{**PAIR, "chosen": " a "}], processor=of_template(TRIMS))
    processor = tiny_processor()
    assert [processor.text(side.token_ids, special=True) for side in prompt.target] == [
        "a<|end|>",
        "b<|end|>",
    ]


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_a_tokenizer_that_merges_across_the_border_is_told(tmp_path, command):
    tiny = tiny_processor()
    tokenizer = deepcopy(tiny.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}:{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    tokenizer.add_tokens([":)"])
    merging = Processor(tokenizer, tiny.stop_ids, len(tokenizer))
    rows = [PAIR, {**PAIR, "chosen": ") right"}]
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: response 0: .*(merge|where the response begins)"):
        loaded(tmp_path, command, rows, processor=merging)
    assert loaded(tmp_path, command, rows, policy="skip", processor=merging)[1] == 1


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_sides_that_part_before_the_last_turn_are_kept_and_said(tmp_path, command, caplog):
    early = {
        "chosen": HH.format("q", "a") + HH.format("r", "c"),
        "rejected": HH.format("q", "b") + HH.format("s", "d"),
    }
    tasks = written(tmp_path, [PAIR, early])
    comparisons = maker(command, tasks)
    with caplog.at_level(logging.INFO, "lightrft"):
        prompts = prompts_of(comparisons.config, comparisons, load_task("file"), "train")
    assert "the responses to 1 of these prompts part before the last question" in caplog.text
    text = partial(comparisons.processor.text, special=True)
    assert text(prompts[1].token_ids) == "<|user|>q<|end|><|assistant|>"
    assert [text(side.token_ids) for side in prompts[1].target] == [
        "a<|end|><|user|>r<|end|><|assistant|>c<|end|>",
        "b<|end|><|user|>s<|end|><|assistant|>d<|end|>",
    ]
    learned = [text([t for t, m in zip(s.token_ids, s.mask, strict=True) if m]) for s in prompts[1].target]
    assert learned == (["<|end|>"] * 2 if command == "reward" else ["a<|end|>c<|end|>", "b<|end|>d<|end|>"])


def test_a_response_that_runs_on_as_a_transcript_is_whole(tmp_path):
    runaway = "a" + HH.format("r", "c")
    (prompt,), _ = loaded(tmp_path, "reward", [{**PAIR, "rejected": runaway}])
    assert tiny_processor().text(prompt.target[1].token_ids, special=True) == runaway + "<|end|>"


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("compared", PAIR),
        ("compared", {**PAIR, "chosen": [USER, YES]}),
        ("compared", {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"]}),
        ("ranked", GRADED),
        ("graded", {**GRADED, "grades": [1, 0]}),
    ],
)
def test_the_system_message_of_a_row_comes_first(tmp_path, form, row):
    (prompt,), _ = loaded(tmp_path, "dpo", [{**row, "system": "s"}], form)
    text = tiny_processor().text(prompt.token_ids, special=True)
    assert text == "<|system|>s<|end|><|user|>q<|end|><|assistant|>"


def test_nothing_is_held_out_by_guess():
    with pytest.raises(
        ValueError, match="no evaluation rows, and none are split off by guess. Set tasks.evaluate_file"
    ):
        load_task("file").load("evaluate", TaskConfig(train={"file": 1.0}, train_file="rows.jsonl"), "", 0)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [{**PAIR, "prompt": str(n), "chosen": "aaa"} for n in range(10)],
            "the longer one in 10 of 10 pairs",
        ),
        ([{**PAIR, "prompt": str(n), "rejected": "bbb"} for n in range(10)], "the shorter one in 10 of 10"),
        ([{**PAIR, "prompt": str(n), "chosen": "aaa"[n % 2 :], "rejected": "bb"} for n in range(10)], ""),
    ],
)
def test_what_teaches_lengths_is_warned_of(tmp_path, caplog, rows, told):
    tasks = written(tmp_path, rows)
    comparisons = maker("reward", tasks)
    with caplog.at_level(logging.WARNING, "lightrft"):
        prompts_of(comparisons.config, comparisons, load_task("file"), "train")
    assert told in caplog.text
    assert bool(told) is ("may learn lengths" in caplog.text)
