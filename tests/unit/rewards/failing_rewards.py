"""Rewards that fail in every way, for the tests of the judge. Each does so only on answers that say so."""

import os
import sys
import time

from lightrft.rewards.function import each


@each
def fragile(answer):
    if "hang" in answer:
        time.sleep(60)
    if "raise" in answer:
        raise KeyError("no such thing")
    if "die" in answer:
        os._exit(3)
    if "nan" in answer:
        return float("nan")
    if "infinite" in answer:
        return float("inf")
    return len(answer)


def short_list(trajectories):
    return [1.0]


def group_size(trajectories):
    """Looks at whole groups: the number of siblings in the same call."""
    if any(t.answer == "raise" for t in trajectories):
        raise RuntimeError("a group with a bad answer")
    groups = [t.group for t in trajectories]
    return [float(groups.count(g)) for g in groups]


def call_size(trajectories):
    assert {t.prompt.source for t in trajectories} == {trajectories[0].prompt.source}
    return [float(len(trajectories))] * len(trajectories)


def sees(trajectories):
    view = trajectories[0]
    assert not any(hasattr(view, name) for name in ("columns", "mask", "behavior"))
    assert not any(hasattr(view.prompt, name) for name in ("token_ids", "media"))
    return [float(len(view)), float(len(view))]


@each
def process_id(answer):
    return os.getpid()


@each
def torch_loaded(answer):
    return "torch" in sys.modules


@each
def talked(said, step_rewards, num_tokens, finish):
    """Sees what belongs to a conversation with an environment."""
    return 1000.0 * (finish == "turns") + num_tokens + len(said) + sum(step_rewards)
