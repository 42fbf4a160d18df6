"""What a few sampled responses say about a model: pass@k, maj@k, and how sure one can be."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy

from lightrft.utils.intervals import wilson

RESAMPLES = 2000
"""Bootstrap samples of the prompts."""
Vote = tuple[Hashable | None, bool]
"""The answer extracted from one sample (None: there was none), and whether it is right."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its 95 % confidence interval; all NaN if there were no prompts."""

    mean: float
    low: float
    high: float


def mean_estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one value per prompt.

    Values that are all 0 or 1 get Wilson's interval, which is right for few prompts and for none or all solved; any
    others a percentile bootstrap over prompts (Efron 1979), in which `seed` fixes the resamples.
    """
    if not values:
        return Estimate(math.nan, math.nan, math.nan)
    mean = math.fsum(values) / len(values)
    if all(v in (0, 1) for v in values):
        return Estimate(mean, *wilson(mean, len(values)))
    return Estimate(mean, *_bootstrap(values, seed))


def difference_estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one difference per prompt, which may be below 0, with a percentile bootstrap over prompts whatever the values are: zeros and
    ones among them are no shares. Low and high are NaN for fewer than two."""
    if len(values) < 2:
        return Estimate(values[0] if values else math.nan, math.nan, math.nan)
    return Estimate(math.fsum(values) / len(values), *_bootstrap(values, seed))


def weighted_estimate(values: Sequence[float], weights: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one value per prompt, prompts counting by their weights: sum(w v) / sum(w), with a bootstrap over prompts."""
    if len(set(weights)) <= 1:
        return mean_estimate(values, seed)
    draw = numpy.random.default_rng(seed)
    weight, product = (
        numpy.asarray(weights, dtype=numpy.float64),
        numpy.asarray(values) * numpy.asarray(weights),
    )
    drawn = [draw.integers(len(weight), size=len(weight)) for _ in range(RESAMPLES)]
    low, high = numpy.quantile(
        [product[places].sum() / weight[places].sum() for places in drawn], [0.025, 0.975]
    )
    return Estimate(float(product.sum() / weight.sum()), float(low), float(high))


def pass_at_k(counts: Sequence[tuple[int, int]], k: int, seed: int = 0) -> Estimate:
    """pass@k over prompts, from (samples, right ones) of each."""
    return mean_estimate([pass_chance(n, c, k) for n, c in counts], seed)


def majority_at_k(votes: Sequence[Sequence[Vote]], k: int, seed: int = 0) -> Estimate:
    """maj@k over prompts, from the votes of each one's samples."""
    return mean_estimate([majority_chance(samples, k) for samples in votes], seed)


def pass_chance(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples drawn from n without replacement is among the c right ones.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of pass@k: Chen et al. 2021, eq. 1
    (https://arxiv.org/abs/2107.03374).
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(
            f"pass@k needs 1 <= k <= samples and 0 <= right <= samples, got k={k}, samples={n}, right={c}."
        )
    return 1 - math.comb(n - c, k) / math.comb(n, k)  # whole numbers of any size, their quotient rounded once


def majority_chance(votes: Sequence[Vote], k: int) -> float:
    """Chance that the most frequent answer among k samples, drawn from these without replacement, is right.

    Exact, not simulated. Answers that share the first place share the win: with two at the top, one of them right, it
    is 1/2. A sample without an answer does not vote; where nobody votes the result is wrong. If samples with the same
    answer were judged differently, the answer counts as right by their mean.

    Let X_a be how often answer a is drawn. (X_a) are independent binomials with p = k / n, given that their sum is k;
    so the chance that a wins with t votes is a sum of products of binomial chances over those of the other answers,
    built up one answer at a time by `_others`.
    """
    n = len(votes)
    if not 1 <= k <= n:
        raise ValueError(f"maj@k needs 1 <= k <= samples, got k={k}, samples={n}.")
    counts = Counter(answer for answer, _ in votes if answer is not None)
    silent = n - counts.total()
    right: Counter[Hashable] = Counter(answer for answer, is_right in votes if is_right)
    shares = {answer: right[answer] / count for answer, count in counts.items()}
    # Answers given equally often win equally often: sum up what such a win is worth.
    worth: defaultdict[int, float] = defaultdict(float)
    for answer, count in counts.items():
        worth[count] += shares[answer]
    p = k / n
    chance = 0.0
    for count, value in worth.items():
        others = list(counts.values())
        others.remove(count)
        for top in range(1, min(count, k) + 1):
            tied = _others(others, silent, top, k - top, p)
            chance += value * _binomial(count, top, p) * float(tied @ (1 / numpy.arange(1, len(tied) + 1)))
    return chance / _binomial(n, k, p)


def _others(counts: Sequence[int], silent: int, top: int, drawn: int, p: float) -> numpy.ndarray:
    """(ties + 1,) chance that the other samples give `drawn` draws, no answer over `top`, by the number at `top`."""
    ways = numpy.zeros((drawn + 1, drawn // top + 1))  # [draws so far, answers at the top so far]
    for x in range(min(silent, drawn) + 1):
        ways[x, 0] = _binomial(silent, x, p)
    for count in counts:
        longer = numpy.zeros_like(ways)
        for x in range(min(count, top, drawn) + 1):
            chance = _binomial(count, x, p)
            if x < top:
                longer[x:] += chance * ways[: drawn + 1 - x]
            else:
                longer[x:, 1:] += chance * ways[: drawn + 1 - x, :-1]
        ways = longer
    found: numpy.ndarray = ways[drawn]
    return found


def _binomial(n: int, x: int, p: float) -> float:
    return math.comb(n, x) * p**x * (1 - p) ** (n - x)


def _bootstrap(values: Sequence[float], seed: int) -> tuple[float, float]:
    """2.5 % and 97.5 % quantile of the mean over prompts drawn with replacement."""
    draw, array = numpy.random.default_rng(seed), numpy.asarray(values, dtype=numpy.float64)
    means = [array[draw.integers(len(array), size=len(array))].mean() for _ in range(RESAMPLES)]
    low, high = numpy.quantile(means, [0.025, 0.975])
    return float(low), float(high)
