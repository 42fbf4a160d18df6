"""Weights against the mismatch of engine and trainer, against plain loops."""

import math
import random

import pytest
import torch

from lightrft.algorithms.algorithm import build
from lightrft.algorithms.correction import importance, on_policy
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch
from lightrft.utils.imports import resolve

LIMIT = 1.5


def draw_answers(seed):
    """A list per answer; per token (chosen, trainer's log-prob, engine's log-prob)."""
    draw = random.Random(seed)
    return [
        [
            (draw.random() < 0.8, new := -2 * draw.random(), new + draw.gauss(0, 0.5))
            for _ in range(draw.randrange(0, 7))
        ]
        for _ in range(8)
    ]


def oracle(answers, kind, level, floor=0.0):
    weights = []
    for answer in answers:
        product, count = 1.0, sum(chosen for chosen, _, _ in answer)
        for chosen, p, q in answer:
            product *= math.exp(p) / math.exp(q) if chosen else 1.0
        whole = {"sequence": product, "sequence_mean": product ** (1 / max(count, 1))}
        for chosen, p, q in answer:
            rho = whole.get(level, math.exp(p) / math.exp(q))
            if kind == "truncate":
                rho = min(rho, LIMIT)
            elif not (floor or 1 / LIMIT) <= rho <= LIMIT:
                rho = 0.0
            elif kind == "reject":
                rho = 1.0
            weights.append(rho if chosen else None)
    return weights


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("level", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize(
    ("kind", "floor"), [("truncate", 0.0), ("mask", 0.0), ("mask", 0.9), ("reject", 0.0), ("reject", 0.4)]
)
def test_weights_agree_with_a_loop(kind, floor, level, seed):
    answers = draw_answers(seed)
    flat = [token for answer in answers for token in answer]
    chosen, trainer, engine = zip(*flat, strict=True)
    batch = make_batch(
        list(map(len, answers)), mask=list(chosen), behavior=torch.tensor(engine, dtype=torch.float64)
    )
    algo = AlgorithmConfig(
        mismatch_correction=kind, mismatch_level=level, mismatch_limit=LIMIT, mismatch_floor=floor
    )
    logprobs = torch.tensor(trainer, dtype=torch.float64, requires_grad=True)
    weights, metrics = importance(logprobs, batch, algo)
    assert not weights.requires_grad
    expected = oracle(answers, kind, level, floor)
    found = [w if m else None for w, m in zip(weights.tolist(), chosen, strict=True)]
    assert found == [None if w is None else pytest.approx(w, abs=1e-12) for w in expected]
    ratios = [math.exp(p - q) for _, p, q in flat]
    assert [r for r, m in zip(metrics["mismatch/ratio"].tolist(), chosen, strict=True) if m] == pytest.approx(
        [r for r, m in zip(ratios, chosen, strict=True) if m]
    )


def test_an_engine_that_agrees_gives_weights_of_one():
    batch = make_batch([3, 2], behavior=[-1.0, -2.0, -0.5, -0.1, -3.0])
    for kind in ("none", "truncate", "mask", "reject"):
        for level in ("token", "sequence", "sequence_mean"):
            algo = AlgorithmConfig(mismatch_correction=kind, mismatch_level=level)
            weights, metrics = importance(batch.behavior, batch, algo)
            assert weights.tolist() == [1.0] * 5
            assert metrics["mismatch/beyond_limit"].tolist() == [0.0] * 5


def test_what_lies_beyond_the_limit_is_told_even_if_nothing_is_done_about_it():
    batch = make_batch([3], behavior=[-1.0, -2.0, -0.5])
    weights, metrics = importance(
        torch.tensor([-1.0, -0.5, -0.5]), batch, AlgorithmConfig(mismatch_limit=2.0)
    )
    assert weights.tolist() == [1.0, 1.0, 1.0]
    assert metrics["mismatch/beyond_limit"].tolist() == [0.0, 1.0, 0.0]


def test_bad_responses_that_the_policy_has_left_behind_are_not_learned_from():
    """Means of log q - log p: 0.5 over the two chosen tokens of the first (its third says nothing), 0.3, 0.5 of a good one, and -1."""
    batch = make_batch(
        [3, 1, 1, 1],
        mask=[True, True, False, True, True, True],
        behavior=[-1.0, -1.0, 9.0, -1.0, -1.0, -2.0],
        advantages=[-1.0, -1.0, -1.0, -1.0, 1.0, -1.0],
    )
    new = torch.tensor([-1.2, -1.8, 0.0, -1.3, -1.5, -1.0])
    kept = on_policy(new, batch, AlgorithmConfig(off_policy_mask_limit=0.4))
    assert kept.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    terms = build(AlgorithmConfig(off_policy_mask_limit=0.4), resolve).loss(new, batch)
    assert terms.loss.tolist()[:2] == [0.0, 0.0]
    assert terms.metrics["off_policy/masked"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
