import re
from typing import get_origin

import pytest

from lightrft.config import Config, layers
from lightrft.config.words import without_empty


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "--model.gradient-checkpointing maybe",
            "expected true or false. For example: --model.gradient-checkpointing true",
        ),
        ("--rollout.group-size four", "--rollout.group-size four: expected a whole number."),
        ("--rollout.group-size 4.5", "expected a whole number"),
        ("--rollout.top-p high", "expected a number"),
        ("--rollout.max-tokens", "--rollout.max-tokens: needs a value."),
        ("--rollout.max-tokens --seed 1", "--rollout.max-tokens: needs a value."),
        ("--algorithm.kl k9", "expected one of k1, k2, k3, k1+, k3+, exact."),
        ("--rollout.vllm.sleep-level 3", "expected one of 1, 2."),
        (
            "--tasks.train gsm8k",
            "expected names, each followed by a number. For example: --tasks.train NAME 0.5",
        ),
        ("--tasks.train gsm8k x", "expected names, each followed by a number."),
        ("--algorithm.clip 0.2 wide", "expected words, each a number."),
        ("--evaluate.pass-k=1.5", "--evaluate.pass-k 1.5: expected words, each a whole number."),
    ],
)
def test_a_value_of_another_kind_is_one_sentence_with_an_example(words, told):
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        layers.load(words.split(), Config)
    assert "\n" not in str(error.value)


def test_what_looks_like_a_mistake_and_is_none_is_read():
    read = layers.load(
        [
            "--rewards.functions",
            "length",
            "-1",
            "--tasks.system",
            "\\--be brief",
            "--media.urls",
            "--algorithm.kl_in=reward",
        ],
        Config,
    )
    assert (read.rewards.functions, read.tasks.system, read.media.urls) == (
        {"length": -1.0},
        "--be brief",
        [],
    )
    assert read.algorithm.kl_in == "reward"
    assert layers.load(["--tasks.train"], Config).tasks.train == {}


def test_an_empty_list_or_mapping_is_written_as_in_a_file():
    """For every option of several values, whatever a layer has set, in the three ways that flags are written."""
    several = {name: get_origin(hint) for name, _, _, hint in layers.options(Config)}
    several = {name: kind for name, kind in several.items() if kind in (list, dict)}
    assert len(several) > 20
    assert {list, dict} == set(several.values())
    for name, kind in several.items():
        empty = "[]" if kind is list else "{}"
        hints = {known: hint for known, _, _, hint in layers.options(Config)}
        for written in ([f"--{name}={empty}"], [f"--{name.replace('_', '-')}", empty]):
            assert without_empty([*written, "--seed", "1"], hints) == [
                written[0].removesuffix(f"={empty}"),
                "--seed",
                "1",
            ]
    read = layers.load(
        ["tiny", "--model.freeze=[]", "--rollout.stop", "[]", "--rewards.scale={}", "--tasks.train", "{}"],
        Config,
    )
    assert (read.model.freeze, read.rollout.stop, read.rewards.scale, read.tasks.train) == ([], [], {}, {})


def test_two_brackets_among_other_values_or_of_a_text_are_what_they_are():
    read = layers.load(["--rollout.stop", "[]", "x", "--tasks.system", "[]"], Config)
    assert (read.rollout.stop, read.tasks.system) == (["[]", "x"], "[]")
    assert layers.load(["--tasks.system=[]"], Config).tasks.system == "[]"
