"""Random answers in the form that other frameworks want them, and ours; what the comparisons with them share."""

import pytest
import torch

from lightrft.algorithms.algorithm import build
from lightrft.algorithms.averaging import denominators, token_weights
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch
from lightrft.utils.imports import resolve

LOW, HIGH, WIDTH = 0.2, 0.28, 9


class Answers:
    """Two groups of four answers, padded to WIDTH on the right as verl wants them, and packed as we do."""

    def __init__(self, seed):
        draw = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, WIDTH + 1, (8,), generator=draw).tolist()
        self.mask = torch.arange(WIDTH) < torch.tensor(self.lengths)[:, None]

        def column(scale):
            return scale * torch.randn(8, WIDTH, generator=draw, dtype=torch.float64) * self.mask

        self.old, self.values, self.returns = column(0.5) - 1, column(1.0), column(1.0)
        self.new, self.ref, self.behavior = (self.old + column(0.3) for _ in range(3))
        self.scores = torch.randint(0, 5, (8,), generator=draw).double() / 4
        self.advantages = torch.randn(8, 1, generator=draw, dtype=torch.float64) * self.mask
        self.rewards = torch.zeros(8, WIDTH, dtype=torch.float64)
        self.rewards[torch.arange(8), torch.tensor(self.lengths) - 1] = self.scores
        self.groups = [0] * 4 + [1] * 4

    def packed(self, **more):
        columns = {
            n: getattr(self, n)[self.mask] for n in ("old", "values", "returns", "advantages", "rewards")
        }
        return make_batch(
            self.lengths,
            groups=self.groups,
            scores=self.scores,
            weights=torch.zeros(sum(self.lengths), dtype=torch.float64),
            **(columns | more),
        )


def ours(loss, answers, average, *, clip=(LOW, HIGH), options=None, entropy=None, **settings):
    """Value and gradient of a loss as the trainer averages it, with KL, entropy bonus and importance weights as set."""
    algo = AlgorithmConfig(loss=loss, clip=list(clip), options=options or {}, **settings)
    batch = answers.packed(ref=answers.ref[answers.mask], behavior=answers.behavior[answers.mask])
    new = answers.new[answers.mask].requires_grad_()
    counts = denominators(batch.mask, batch.segments, batch.num_sequences)
    weights = token_weights(batch, average, WIDTH, *counts)
    algorithm = build(algo, resolve)
    if algorithm.survey is not None:
        batch.marks = algorithm.survey(new.detach(), batch, lambda x: x)
    terms = algorithm.loss(new, batch, None if entropy is None else entropy(new))
    value = (weights * terms.loss).sum()
    value.backward()
    return value.item(), new.grad


def assert_equal(mine, other):
    """Of values and gradients."""
    assert mine[0] == pytest.approx(other[0], abs=1e-7)
    torch.testing.assert_close(mine[1], other[1], atol=1e-7, rtol=0)
