import re

import pytest

from lightrft.config import Config, layers


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
