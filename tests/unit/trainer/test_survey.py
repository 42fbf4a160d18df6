import random
from functools import partial

import pytest
import torch

from lightrft.algorithms.surveys import survey_m2po
from lightrft.config import AlgorithmConfig, UpdateConfig
from lightrft.parallel.world import World
from lightrft.trainer.batching import Batching
from lightrft.trainer.survey import surveyed
from lightrft.types import Prompt, Trajectory


def responses(seed=0):
    """Nine responses of none to twelve tokens, some of which the policy did not choose."""
    draw = random.Random(seed)
    found = []
    for number in range(9):
        length = draw.randrange(0, 13) if number else 0
        t = Trajectory(
            Prompt(f"p{number // 3}", [5, 6, 7], [], "", "any"),
            number // 3,
            [draw.randrange(3, 90) for _ in range(length)],
            [draw.random() < 0.9 for _ in range(length)],
            [-draw.random() for _ in range(length)],
            "stop",
            reward=0.0,
        )
        t.columns["old"] = torch.tensor(t.behavior)
        t.columns["advantages"] = torch.tensor([draw.gauss(0, 1) for _ in range(length)])
        found.append(t)
    return found


def log_probs(batch):
    """As if the policy had moved by something of each token."""
    return batch.old + 0.4 * torch.sin(batch.inputs.targets.float())


def marks_of(answers, tokens):
    batching = Batching(UpdateConfig(tokens_per_micro_batch=tokens), World(), torch.device("cpu"))
    mark = partial(survey_m2po, algo=AlgorithmConfig())
    updates = surveyed(
        iter([(0, answers)]), log_probs, lambda new, batch, total: mark(new, batch, reduce=total), batching
    )
    found = []
    for _, part in updates:
        found = [t.columns["marks"].tolist() for t in part]
    assert not any("marks" in t.columns for t in answers)  # of no use to the next update
    return found


@pytest.mark.parametrize("tokens", [8, 20, 31])
def test_the_size_of_a_micro_batch_changes_no_mark(tokens):
    together = marks_of(responses(), 10_000)
    assert 0 < sum(map(sum, together)) < sum(map(len, together)) / 2
    assert marks_of(responses(), tokens) == together


def test_a_response_has_its_own_marks_in_any_order():
    answers = responses()
    expected = dict(zip(map(id, answers), marks_of(answers, 20), strict=True))
    random.Random(3).shuffle(answers)
    assert marks_of(answers, 20) == [expected[id(t)] for t in answers]


def test_a_rank_without_responses_takes_part():
    assert marks_of([], 20) == []
