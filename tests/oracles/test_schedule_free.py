"""Schedule-free AdamW against the paper's three sequences in plain Python, by hand, and against the authors' own library."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightrft.strategy.schedule_free import ScheduleFree, average

GRADIENTS = [[0.5, -2.0, 0.1], [0.3, 1.0, -0.2], [-0.1, 0.7, 0.0], [2.0, 0.2, 0.3], [0.1, -0.4, 0.9]]
RATES = [0.02, 0.04, 0.06, 0.06, 0.06]
"""Warmed up over three updates."""


def taken(start, gradients, rates, dtype=torch.float64, **options):
    """The optimizer and its weight after each update: y, and the average that goes with it."""
    weight = nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer, found = ScheduleFree([weight], rates[0], **options), []
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
        y = weight.detach().clone()
        found.append((y, average(y, optimizer.state[weight]["z"], optimizer.param_groups[0]["betas"][0])))
    return found


def test_two_updates_by_hand():
    # Without eps the first direction is the sign of the gradient, and so is any other of the same gradient.
    # 1: z = 1 - 0.1, all of the average. 2: z = 0.8, half of it: x = 0.85, y = 0.1 * 0.8 + 0.9 * 0.85.
    (y1, x1), (y2, x2) = taken([1.0], [[2.0], [2.0]], [0.1, 0.1], eps=0.0)
    assert [y1.item(), x1.item()] == pytest.approx([0.9, 0.9], abs=1e-12)
    assert [y2.item(), x2.item()] == pytest.approx([0.845, 0.85], abs=1e-12)


def three_sequences(start, *, beta1, beta2, eps, decay, r, power):
    """(y, x) after each update of one number after the other: algorithm 1 with x and z beside y."""
    found = [([], []) for _ in RATES]
    for place, x in enumerate(start):
        z, y, v, weights = x, x, 0.0, []
        for t, rate in enumerate(RATES, start=1):
            g = GRADIENTS[t - 1][place]
            v = beta2 * v + (1 - beta2) * g * g
            z = z - rate * (g / (math.sqrt(v / (1 - beta2**t)) + eps) + decay * y)
            weights.append(t**r * max(RATES[:t]) ** power)
            c = weights[-1] / sum(weights)
            x = (1 - c) * x + c * z
            y = (1 - beta1) * z + beta1 * x
            found[t - 1][0].append(y)
            found[t - 1][1].append(x)
    return found


@pytest.mark.parametrize(("decay", "r", "power"), [(0.0, 0.0, 2.0), (0.1, 0.0, 2.0), (0.1, 1.5, 0.0)])
def test_weights_and_average_are_those_of_the_three_sequences(decay, r, power):
    start = [0.3, -1.0, 2.0]
    expected = three_sequences(start, beta1=0.8, beta2=0.95, eps=1e-3, decay=decay, r=r, power=power)
    options = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": decay, "r": r, "weight_lr_power": power}
    for (y, x), (right_y, right_x) in zip(taken(start, GRADIENTS, RATES, **options), expected, strict=True):
        assert y.tolist() == pytest.approx(right_y, abs=1e-12)
        assert x.tolist() == pytest.approx(right_x, abs=1e-12)


def test_it_takes_the_steps_of_the_authors_library():
    library = pytest.importorskip(
        "schedulefree", reason="schedulefree is not installed: pip install schedulefree"
    )
    options = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "r": 0.5}
    ours = taken([0.3, -1.0, 2.0], GRADIENTS, RATES, dtype=torch.float32, **options)
    weight = nn.Parameter(torch.tensor([0.3, -1.0, 2.0]))
    peer = library.AdamWScheduleFree([weight], lr=0.06, warmup_steps=3, **options)
    for gradient, (y, x) in zip(GRADIENTS, ours, strict=True):
        peer.train()
        weight.grad = torch.tensor(gradient)
        peer.step()
        assert_close(y, weight.detach(), atol=1e-6, rtol=0)
        peer.eval()
        assert_close(x, weight.detach(), atol=1e-6, rtol=0)
