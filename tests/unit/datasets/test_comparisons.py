"""Rows to comparisons in tokens, and what is wrong with rows that are none."""

from __future__ import annotations

import logging
import math
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from lightrft.algorithms.preference import PREFERENCE_LOSSES
from lightrft.config import RewardTrainingConfig, TaskConfig
from lightrft.datasets.comparisons import (
    Comparisons,
    Side,
    scored,
    siblings,
    warn_of_leaks,
    warn_of_shortcuts,
)
from lightrft.datasets.preferences import compared, graded, ranked, saferlhf, unpaired
from lightrft.datasets.sources import read
from lightrft.models.processor import Processor
from lightrft.models.reward import up_to_score
from lightrft.testing import tiny_processor
from lightrft.types import Record

REAL = Path(__file__).resolve().parents[4] / "shared/data"
CONFIG = TaskConfig()
SAFER = {
    "prompt": "q",
    "response_0": "a",
    "response_1": "b",
    "better_response_id": 0,
    "safer_response_id": 1,
    "is_response_0_safe": False,
    "is_response_1_safe": True,
}


def grades(example):
    return [one["grades"] for one in example.target]


def texts(example):
    return [one["messages"][-1]["content"] for one in example.target]


def test_a_pair_is_graded_by_its_margin():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert grades(compared(row, CONFIG)) == [{"": 1.0}, {"": 0.0}]
    assert grades(compared({**row, "margin": 0.25}, CONFIG)) == [{"": 0.25}, {"": 0.0}]
    assert texts(compared(row, CONFIG)) == ["a", "b"]


def test_a_ranking_is_graded_by_its_order_or_its_ranks():
    row = {"prompt": "q", "responses": ["a", "b", "c"]}
    assert grades(ranked(row, CONFIG)) == [{"": -1.0}, {"": -2.0}, {"": -3.0}]
    assert grades(ranked({**row, "ranks": [2, 1, 1]}, CONFIG)) == [{"": -2.0}, {"": -1.0}, {"": -1.0}]


def test_grades_are_of_one_output_or_of_several_by_name():
    row = {"prompt": "q", "responses": ["a", [{"role": "assistant", "content": "b"}]]}
    assert grades(graded({**row, "grades": [3, 1.5]}, CONFIG)) == [{"": 3.0}, {"": 1.5}]
    one, two = grades(graded({**row, "grades": {"general": [1, 0], "cost": [None, -1]}}, CONFIG))
    assert two == {"general": 0.0, "cost": -1.0}
    assert one["general"] == 1.0
    assert math.isnan(one["cost"])


def test_a_labelled_response_is_desirable_or_not():
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    later = [*talk, {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]
    for row in (
        {"messages": talk},
        {"prompt": "q", "completion": "a"},
        {"prompt": talk[:1], "completion": talk[1:]},
    ):
        found = unpaired({**row, "label": True}, CONFIG)
        assert (found.prompt, texts(found), grades(found)) == (talk[:1], ["a"], [{"": 1.0}])
    found = unpaired({"messages": later, "label": False}, CONFIG)
    assert (found.prompt, texts(found), grades(found)) == (later[:3], ["b"], [{"": -1.0}])


@pytest.mark.parametrize(
    ("safe", "safer", "costs"),
    [([False, True], 1, [2, -2]), ([False, False], 0, [1, 2]), ([True, True], 0, [-2, -1])],
)
def test_two_labels_of_safe_rlhf_are_a_general_grade_and_a_signed_cost(safe, safer, costs):
    row = {**SAFER, "is_response_0_safe": safe[0], "is_response_1_safe": safe[1], "safer_response_id": safer}
    assert grades(saferlhf(row, CONFIG)) == [
        {"general": 1.0, "cost": costs[0]},
        {"general": -1.0, "cost": costs[1]},
    ]


@pytest.mark.parametrize(
    ("form", "row", "complaint"),
    [
        (
            compared,
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0},
            "must be better by more than 0",
        ),
        (compared, {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "1"}, "'margin' holds '1'"),
        (compared, {"prompt": "q", "chosen": "a", "rejected": "b", "margin": math.nan}, "'margin' holds nan"),
        (ranked, {"prompt": "q", "responses": "ab"}, "'responses' must be a list of responses"),
        (ranked, {"prompt": "q", "responses": []}, "'responses' must be a list of responses"),
        (
            ranked,
            {"prompt": "q", "responses": ["a", "b"], "ranks": [1]},
            "a number for each of the 2 responses",
        ),
        (graded, {"prompt": "q", "responses": ["a", "b"]}, "no field 'grades'"),
        (graded, {"prompt": "q", "responses": ["a", "b"], "grades": [1, "2"]}, "'grades' holds '2'"),
        (graded, {"prompt": "q", "responses": ["a", "b"], "grades": [1, True]}, "'grades' holds True"),
        (graded, {"prompt": "q", "responses": ["a"], "grades": {"cost": [1, 2]}}, "under 'cost'"),
        (graded, {"responses": ["a"], "grades": [1]}, "no field 'prompt'.*tasks.prompt_field"),
        (saferlhf, {**SAFER, "better_response_id": 2}, "'better_response_id' must be 0 or 1"),
        (saferlhf, {**SAFER, "is_response_1_safe": "yes"}, "'is_response_1_safe' must be true or false"),
        (
            saferlhf,
            {**SAFER, "safer_response_id": 0},
            "'safer_response_id' is 0, and only response 1 is safe",
        ),
        (saferlhf, {**SAFER, "response_1": None}, "'response_1' is null"),
        (unpaired, {"prompt": "q", "completion": "a"}, "no field 'label'"),
        (unpaired, {"prompt": "q", "completion": "a", "label": None}, "'label' is null"),
        (unpaired, {"prompt": "q", "completion": "a", "label": 1}, "'label' must be true or false, not 1"),
        (unpaired, {"prompt": "q", "label": True}, "no layout fits"),
    ],
)
def test_a_row_that_cannot_be_read_is_told_why(form, row, complaint):
    with pytest.raises(ValueError, match=complaint):
        form(row, CONFIG)


def record(responses, prompt="q", name="t/0"):
    """A record of (text, grades) as a format makes it."""
    target = [{"messages": [{"role": "assistant", "content": t}], "grades": g} for t, g in responses]
    return Record(name, [{"role": "user", "content": prompt}], target, "t")


def read_by(records, processor=None, until=None, **settings):
    until = until or partial(up_to_score, padding=None)
    return comparisons(until, processor, **settings).prompts(records)


def comparisons(until, processor=None, **settings):
    config = RewardTrainingConfig(**settings)
    compares = hasattr(PREFERENCE_LOSSES[config.loss], "compares_responses")
    processor = processor or tiny_processor()
    return Comparisons(processor, config, scored(processor, until), compares, config.outputs, config.signed)


def test_responses_are_what_the_chat_template_adds_until_the_score_is_read():
    processor = tiny_processor()
    (prompt,), _ = read_by([record([("a", {"": 1.0}), ("bc", {"": 0.0})])])
    assert processor.text(prompt.token_ids, special=True) == "<|user|>q<|end|><|assistant|>"
    assert [processor.text(side.token_ids, special=True) for side in prompt.target] == [
        "a<|end|>",
        "bc<|end|>",
    ]
    one, two = siblings(prompt, 7)
    assert (one.group, one.prompt is two.prompt, one.parts) == (7, True, {"score": 1.0})
    assert two.mask == [False, False, True]
    (prompt,), _ = read_by(
        [record([("a", {"": 1.0}), ("bc", {"": 0.0})])], until=partial(up_to_score, padding=256)
    )
    assert [processor.text(side.token_ids, special=True) for side in prompt.target] == ["a", "bc"]


NAN = math.nan
GOOD = record([("a", {"": 1.0}), ("b", {"": 0.0})], name="t/good")


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (record([("a", {"": 1.0}), ("a", {"": 0.0})]), "same tokens and different grades"),
        (record([("a", {"": 1.0}), (" \n", {"": 0.0})]), "response 1 is empty"),
        (record([("a", {"": 1.0}), ("b", {"": 1.0})]), "no response is better than another"),
        (record([("a", {"": 1.0})]), "no response is better than another"),
        (record([("a", {"": NAN}), ("b", {"": NAN})]), "no response has a grade"),
        (record([]), "no response has a grade"),
        (record([("a", {"cost": 1.0}), ("b", {"": 0.0})]), r"'cost', which is none of outputs=\['score'\]"),
        (record([("a", {"": math.inf}), ("b", {"": 0.0})]), "no finite number"),
        (record([("a", {"": "1"}), ("b", {"": 0.0})]), "no finite number"),
    ],
)
def test_a_comparison_that_teaches_nothing_is_named_or_counted(bad, complaint):
    with pytest.raises(ValueError, match=f"t/0: .*{complaint}"):
        read_by([bad, GOOD])
    prompts, kept = read_by([bad, GOOD], tasks=TaskConfig(on_bad_record="skip"))
    assert ([p.id for p in prompts], kept.broken) == (["t/good"], 1)


def test_a_response_that_is_too_long_takes_its_prompt_with_it_and_none_is_cut():
    long = record([("a", {"": 1.0}), ("b" * 9, {"": 0.0})])
    prompts, kept = read_by([long, GOOD], max_tokens=8)
    assert ([p.id for p in prompts], kept.too_long) == (["t/good"], 1)
    with pytest.raises(ValueError, match="t/0: a response has 10 tokens, max_tokens=8"):
        read_by([long, GOOD], max_tokens=8, on_long_response="raise")


def test_a_sign_or_a_grade_can_be_learned_without_a_pair():
    alone = record([("a", {"": 1.0})])
    assert len(read_by([alone], signed=["score"])[0]) == 1
    assert len(read_by([alone], loss="regression")[0]) == 1


@pytest.mark.parametrize(
    ("grades", "settings", "taught"),
    [
        ([1.0, 0.0], {}, True),
        ([1.0, 1.0], {}, False),
        ([1.0, NAN], {}, False),
        ([1.0, 1.0], {"signed": ["score"]}, True),
        ([0.0, 0.0], {"signed": ["score"]}, False),
        ([0.0, NAN], {"loss": "regression"}, True),
        ([NAN, NAN], {"loss": "regression"}, False),
    ],
)
def test_what_teaches_an_output_depends_on_the_loss(grades, settings, taught):
    sides = [Side([n], {"score": grade}, [True]) for n, grade in enumerate(grades)]
    assert comparisons(None, **settings).teaches(sides, "score") is taught
    assert not comparisons(None, **settings).teaches(sides, "cost")


SEEN = [{"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}]
TWICE = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (SEEN, "#1: the prompt holds media of the kind 'image', which the model of model.path does not read"),
        (TWICE, ": response 1: the assistant speaks twice"),
    ],
)
def test_a_response_that_is_no_text_of_one_turn_after_another_is_refused(said, complaint):
    bad = record([("a", {"": 1.0})])
    bad.target.append({"messages": said, "grades": {"": 0.0}})
    with pytest.raises(ValueError, match=f"t/0{complaint}"):
        read_by([bad])


def test_a_task_without_comparisons_is_refused_whole():
    asked = Record("t/0", [{"role": "user", "content": "q"}], "4", "t")
    with pytest.raises(ValueError, match="task 't' has no graded responses to compare"):
        read_by([asked], tasks=TaskConfig(on_bad_record="skip"))


def test_a_template_that_writes_the_prompt_otherwise_once_an_answer_follows_is_refused():
    processor = tiny_processor()
    processor.tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.length }}{{ m['content'] }}<|end|>{% endfor %}"
    )
    other = Processor(processor.tokenizer, processor.stop_ids, processor.vocab_size)
    with pytest.raises(ValueError, match="writes the prompt otherwise once it follows"):
        read_by([GOOD], processor=other)


def test_shortcuts_and_leaks_are_warned_of(caplog):
    rows = [record([("aaa", {"": 1.0}), ("b", {"": 0.0})], prompt=str(n), name=f"t/{n}") for n in range(10)]
    prompts, _ = read_by(rows)
    with caplog.at_level(logging.WARNING, "lightrft"):
        warn_of_shortcuts(prompts, ["score"], ["score"], "t")
        warn_of_leaks(prompts, prompts[:3], "t")
    assert "the better response is the longer one in 10 of 10 pairs" in caplog.text
    assert "10 of 10 grades are above 0" in caplog.text
    assert "3 of 3 held-out prompts are learned from" in caplog.text


@pytest.mark.parametrize(
    ("file", "form", "outputs"),
    [
        ("hh_rlhf/helpful_base_test.jsonl.gz", compared, ["score"]),
        ("hh_rlhf/harmless_base_test.jsonl.gz", compared, ["score"]),
        ("sft_pref_demo/dpo_en_demo.jsonl", compared, ["score"]),
        ("xstest/saferlhf_style_pairs.jsonl.gz", saferlhf, ["general", "cost"]),
    ],
)
def test_nearly_all_real_rows_are_comparisons(file, form, outputs):
    if not (REAL / file).is_file():
        pytest.skip(f"{REAL / file} is not there")
    records, rows = [], [row for _, row in islice(read(str(REAL / file), "", None), 200)]
    for n, row in enumerate(rows):
        try:
            example = form(row, CONFIG)
        except ValueError:
            continue
        records.append(Record(f"t/{n}", example.prompt, example.target, "t"))
    tasks = TaskConfig(on_bad_record="skip", max_prompt_tokens=100_000)
    prompts, kept = read_by(records, outputs=outputs, max_tokens=100_000, tasks=tasks)
    assert len(prompts) > 0.97 * len(rows), kept
