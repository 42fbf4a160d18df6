"""When held-out questions are looked at."""

import pytest

from lightrft.config import EvaluateConfig, HeldOutConfig
from lightrft.trainer.run import evaluation_label


@pytest.mark.parametrize("config", [EvaluateConfig, HeldOutConfig])
def test_before_after_and_every_so_many_steps_between(config):
    labels = [evaluation_label(config(every_steps=4), done, 10) for done in range(11)]
    assert {done: label for done, label in enumerate(labels) if label} == {
        0: "before",
        4: "step-000004",
        8: "step-000008",
        10: "after",
    }


def test_each_of_them_can_be_switched_off():
    assert [evaluation_label(EvaluateConfig(), done, 10) for done in (0, 5, 10)] == ["before", None, "after"]
    between = EvaluateConfig(before_and_after=False, every_steps=5)
    assert [evaluation_label(between, done, 10) for done in (0, 5, 10)] == [None, "step-000005", None]
    last = HeldOutConfig(before=False)
    assert [evaluation_label(last, done, 10) for done in (0, 5, 10)] == [None, None, "after"]
