"""Drawing tokens from logits: one uniform number per token, from a stream that each answer owns.

Letters: Q distributions (rows of logits), B answers that draw from them (siblings may share a row), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightrft.models.supports import restricts
from lightrft.types import Sampling

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1
FEWEST_CANDIDATES = 256
"""Tokens that top-p and min-p look among at first: more than they leave of nearly all distributions of a trained model."""
MOST_CANDIDATES = 2048
"""Most that the tokens drawn ahead look among, for all answers alike."""


def stream(seed: int, place: int, sample: int) -> int:
    """The key (signed 64 bits) of the random stream of answer number `sample` to prompt number `place`."""
    key = 0
    for part in (seed, place, sample):
        key = _mixed((key + part + 1) * _GOLDEN & _WORD)
    return _signed(key)


def uniforms(keys: Tensor, counters: Tensor) -> Tensor:
    """(B,) float64 in (0, 1): number `counters` of the streams `keys`, both (B,) int64.

    SplitMix64 (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195), read at a place instead of stepped:
    what an answer draws depends on nothing but its key and how many tokens it has.
    """
    z = keys + (counters + 1) * _signed(_GOLDEN)
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    z = z ^ _shifted(z, 31)
    return (_shifted(z, 11).to(torch.float64) + 0.5) * 2.0**-53


def draw(logits: Tensor, rows: Tensor | None, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Token ids (B,) and their log-probs (B,) under the distribution they were drawn from.

    `logits` (Q, V) float32 or float64 are overwritten; answer b draws from row `rows[b]`, or row b if None, with
    `uniform[b]`. The order of the restrictions is temperature, top-k, top-p (over what top-k left), min-p.
    At temperature 0 the most likely token is taken, and its log-prob is that of the whole distribution at
    temperature 1, since the one it was drawn from would say 0 for every token.
    """
    tokens, logprobs, _ = draw_telling(logits, rows, uniform, sampling)
    return tokens, logprobs


def draw_telling(
    logits: Tensor, rows: Tensor | None, uniform: Tensor, sampling: Sampling, first: Sequence[int] = ()
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What `draw` gives, and with `sampling.support` the ids (k,) int32 on the CPU that each row of logits was drawn among; (0,) for the whole vocabulary.
    `first`: the rows that `sharpened_first` had changed."""
    if rows is None:
        rows = torch.arange(len(logits), device=logits.device)
    if sampling.temperature == 0 or not restricts(sampling):
        tokens, logprobs = _unrestricted(logits, rows, uniform, sampling)
        return tokens, logprobs, _left_of_first(logits, first, sampling) if sampling.support else []
    if sampling.temperature != 1.0:
        logits.div_(sampling.temperature)
    return _from_candidates(logits, rows, uniform, sampling)


def draw_unasked(
    logits: Tensor, uniform: Tensor, sampling: Sampling, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, log-probs and whether they are unsure, (B,) each: as `draw` for (B, V) logits, but that no device is waited for.

    With top-p or min-p only `count` candidates are looked at; where the restrictions leave more than those, token and log-prob
    are not those of `draw`.
    """
    rows = torch.arange(len(logits), device=logits.device)
    if sampling.temperature == 0 or not restricts(sampling):
        tokens, logprobs = _unrestricted(logits, rows, uniform, sampling)
        return tokens, logprobs, torch.zeros_like(tokens, dtype=torch.bool)
    if sampling.temperature != 1.0:
        logits.div_(sampling.temperature)
    found = _among(logits, rows, uniform, sampling, count)
    return found.tokens, found.logprobs, found.is_open


def candidates_after(count: int, unsure: int, drawn: int) -> int:
    """How many candidates to look at next where `count` did not suffice for `unsure` of `drawn` answers; 0: better ask, by `draw`.

    They are looked at for every answer, so a few that want more are better drawn again, and many want more of them.
    """
    if 2 * unsure < drawn:
        return count
    return 8 * count if 8 * count <= MOST_CANDIDATES else 0


def _left_of_first(probabilities: Tensor, first: Sequence[int], sampling: Sampling) -> list[Tensor]:
    """What was drawn among where only sampling.first_token_top_k restricts: of the rows `first` of what `draw` has left of logits a part."""
    found = [torch.zeros(0, dtype=torch.int32)] * len(probabilities)
    if sampling.temperature and sampling.first_token_top_k:
        for row in first:
            found[row] = probabilities[row].nonzero()[:, 0].to("cpu", torch.int32)
    return found


def _unrestricted(logits: Tensor, rows: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The most likely token at temperature 0, else one of the whole distribution."""
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        return tokens[rows], logprobs[rows]
    if sampling.temperature != 1.0:
        logits.div_(sampling.temperature)
    return _from_all(torch.softmax(logits, -1, out=logits), rows, uniform)


def sharpened_first(logits: Tensor, sampling: Sampling) -> Tensor:
    """Rows that predict first tokens; `draw` divides all rows by the common temperature."""
    if sampling.first_token_temperature:
        logits = logits * (sampling.temperature / sampling.first_token_temperature)
    if 0 < sampling.first_token_top_k < logits.shape[-1]:
        least = logits.topk(sampling.first_token_top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return logits


def _from_all(probabilities: Tensor, rows: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse cumulative distribution in two steps: the stretch of the vocabulary, then the token in it."""
    num_rows, vocabulary = probabilities.shape
    width = _stretch(vocabulary)
    stretches = probabilities.view(num_rows, -1, width)
    mass = stretches.sum(-1).cumsum(-1, dtype=torch.float64)
    mass = mass[rows]
    which, rest = _invert(mass, uniform * mass[:, -1])
    inside = stretches[rows, which]
    offset, _ = _invert(inside.cumsum(-1, dtype=torch.float64), rest)
    return which * width + offset, inside.gather(1, offset[:, None])[:, 0].log()


def _from_candidates(
    logits: Tensor, rows: Tensor, uniform: Tensor, sampling: Sampling, count: int = FEWEST_CANDIDATES
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens and log-probs drawn among the tokens that the restrictions leave, sorted by probability; and those of each row, if they are asked for.

    Sorting the whole vocabulary costs more than the model, so the `count` best are taken, and more only for those
    distributions whose kept set reaches beyond them.
    """
    found = _among(logits, rows, uniform, sampling, count)
    tokens, logprobs, is_open = found.tokens, found.logprobs, found.is_open
    left = found.ids() if sampling.support else []
    if not sampling.top_k and count < logits.shape[-1] and bool(is_open.any()):
        again, renumbered = is_open[rows], is_open.cumsum(0) - 1
        tokens[again], logprobs[again], more = _from_candidates(
            logits[is_open], renumbered[rows[again]], uniform[again], sampling, 8 * count
        )
        for row, ids in zip(is_open.nonzero()[:, 0].tolist() if more else (), more, strict=True):
            left[row] = ids
    return tokens, logprobs, left


class _Among(NamedTuple):
    """What was drawn among the best tokens of each row."""

    tokens: Tensor  # (B,)
    logprobs: Tensor  # (B,)
    is_open: Tensor
    """(Q,) bool, whether the restrictions leave more tokens than were looked among."""
    kept: Tensor  # (Q, count) probabilities, 0 for what is not kept
    candidates: Tensor  # (Q, count) ids

    def ids(self) -> list[Tensor]:
        """The ids (k,) int32 that are kept of each row, on the CPU."""
        kept = self.kept > 0
        return list(self.candidates[kept].to("cpu", torch.int32).split(kept.sum(-1).tolist()))


def _among(logits: Tensor, rows: Tensor, uniform: Tensor, sampling: Sampling, count: int) -> _Among:
    """Draws among the `count` best of each row."""
    count = min(sampling.top_k or count, logits.shape[-1])
    kept, candidates = _candidates(logits, sampling, count)
    mass = kept[rows].cumsum(-1, dtype=torch.float64)
    place, _ = _invert(mass, uniform * mass[:, -1])
    tokens = candidates[rows, place]
    logprobs = (kept[rows, place] / mass[:, -1]).to(logits.dtype).log()
    is_open = kept[:, -1] > 0
    if sampling.top_k or count == logits.shape[-1]:
        is_open = torch.zeros_like(is_open)
    return _Among(tokens, logprobs, is_open, kept, candidates)


def _candidates(logits: Tensor, sampling: Sampling, count: int) -> tuple[Tensor, Tensor]:
    """Probabilities (Q, count), 0 for what is not kept, and token ids (Q, count), most likely first."""
    best, tokens = logits.topk(count, -1)
    if sampling.top_k:
        probabilities = torch.softmax(best, -1)
    else:
        probabilities = torch.exp(best - logits.logsumexp(-1, keepdim=True))
    before = probabilities.cumsum(-1, dtype=torch.float64) - probabilities
    kept = (before < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[:, :1])
    return probabilities * kept, tokens


def _invert(mass: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """First place whose cumulative mass exceeds the target, and how far the target lies into that place."""
    below_all = torch.nextafter(mass[:, -1], torch.zeros_like(target))
    target = torch.minimum(target, below_all)[:, None]
    place = torch.searchsorted(mass, target, right=True)
    before = torch.where(place > 0, mass.gather(1, (place - 1).clamp(min=0)), 0.0)
    return place[:, 0], (target - before)[:, 0]


def _stretch(vocabulary: int) -> int:
    """The divisor of the vocabulary nearest to its root from above: two short searches instead of a long one."""
    width = int(vocabulary**0.5)
    while vocabulary % width:
        width -= 1
    return vocabulary // width


def _mixed(z: int) -> int:
    z = (z ^ z >> 30) * _FIRST & _WORD
    z = (z ^ z >> 27) * _SECOND & _WORD
    return z ^ z >> 31


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (z >> bits) & ((1 << 64 - bits) - 1)
