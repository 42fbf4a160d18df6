"""The path of CUDA devices through packed attention, on a CPU: its kernel written down in plain Python, everything around it ours.

The kernel itself is held against this in tests/accelerator.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lightrft.models import varlen
from lightrft.models.attention import SharedPrompts

HEADS, KEY_HEADS, WIDTH, SCALING = 4, 2, 8, 0.3


def weights(query, key, causal, scale, left, right):
    """Scores (Hq, n, m) of one sequence; its last query stands at its last key."""
    scores = (
        torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(query.shape[1] // key.shape[1], 1)) * scale
    )
    at = torch.arange(len(query))[:, None] + len(key) - len(query)
    column = torch.arange(len(key))
    seen = torch.ones(len(query), len(key), dtype=torch.bool)
    if causal or right >= 0:
        seen &= column <= at + max(right, 0)
    if left >= 0:
        seen &= column >= at - left
    return scores.masked_fill(~seen, -torch.inf)


def pieces(starts):
    return [slice(a, b) for a, b in zip(starts.tolist(), starts.tolist()[1:], strict=False)]


def kernel(q, k, v, starts_q, starts_k, longest_q, longest_k, dropout, causal, debug, *, scale, window_size_left,
           window_size_right):  # fmt: skip
    assert (dropout, debug) == (0.0, False)
    out, total = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    covered = 0
    for rows, columns in zip(pieces(starts_q), pieces(starts_k), strict=True):
        assert 0 < rows.stop - rows.start <= longest_q
        assert 0 < columns.stop - columns.start <= longest_k
        covered += rows.stop - rows.start
        scores = weights(q[rows], k[columns], causal, scale, window_size_left, window_size_right)
        total[:, rows] = scores.logsumexp(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[columns].repeat_interleave(2, 1))
    assert covered == len(q)
    return out, total, torch.zeros(2), torch.zeros(()), torch.zeros(())


def kernel_backward(grad, q, k, v, out, total, starts_q, starts_k, longest_q, longest_k, dropout, causal, state, unused,
                    *, scale, window_size_left, window_size_right):  # fmt: skip
    """p = exp(s - given total), ds = p (grad v - grad out): right for a part of what a token sees, given the sums of the whole."""
    assert (state.shape, unused.shape) == ((2,), ())
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for rows, columns in zip(pieces(starts_q), pieces(starts_k), strict=True):
        scores = weights(q[rows], k[columns], causal, scale, window_size_left, window_size_right)
        p = torch.exp(scores - total[:, rows, None])
        keys, values = (x[columns].repeat_interleave(2, 1) for x in (k, v))
        ds = p * (
            torch.einsum("qhd,khd->hqk", grad[rows], values) - (grad[rows] * out[rows]).sum(-1).t()[..., None]
        )
        dq[rows] = torch.einsum("hqk,khd->qhd", ds, keys) * scale
        for into, found in ((dk, torch.einsum("hqk,qhd->khd", ds, q[rows]) * scale),
                            (dv, torch.einsum("hqk,qhd->khd", p, grad[rows]))):  # fmt: skip
            into[columns] = found.unflatten(1, (KEY_HEADS, 2)).sum(2)
    return dq, dk, dv


def laid_out(groups):
    found, at = [], 0
    for prompt, responses in groups:
        spans, end = [], at + prompt
        for length in responses:
            spans.append((end, end + length))
            end += length
        found.append(((at, at + prompt), tuple(spans)))
        at = end
    return tuple(found), at


CASES = {
    "groups": [(21, [7, 1, 0, 19]), (1, [5, 3]), (3, [2])],
    "no responses": [(4, []), (1, [])],
    "an empty response last": [(5, [3, 0]), (6, [0])],
    "single tokens": [(2, [1, 1]), (1, [1])],
    "one prompt": [(9, [4, 11])],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("window", [None, 1, 2, 5, 8, 22])
def test_the_kernels_path_is_the_plain_one_forward_and_backward(monkeypatch, case, window):
    monkeypatch.setattr(varlen, "_flash", kernel)
    monkeypatch.setattr(varlen, "_flash_backward", kernel_backward)
    groups, length = laid_out(CASES[case])
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    given = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    slope = torch.randn(1, length, HEADS, WIDTH, dtype=torch.float64, generator=generator)
    found = []
    for way in ("plain", "kernel"):
        inputs = [x.clone().requires_grad_() for x in given]
        layout = SharedPrompts(groups, exact=way == "plain")
        if way == "plain":
            out = layout.attend(None, *inputs, SCALING, window)
        else:
            stretches = layout._stretches(torch.device("cpu"))
            out = varlen.varlen_attention(*inputs, stretches, SCALING, window).transpose(1, 2)
        out.backward(slope)
        found.append((out.detach(), *(x.grad for x in inputs)))
    for plain, ours in zip(*found, strict=True):
        assert_close(ours, plain, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("way", ["kernel", "cpu"])
@pytest.mark.parametrize("window", [None, 6])
def test_ranges_seen_both_ways_are_those_of_the_plain_way_forward_and_backward(monkeypatch, way, window):
    """Two ranges in one prompt, none in the next, a range that is a whole prompt; no keys are laid down again for a response."""
    monkeypatch.setattr(varlen, "_flash", kernel)
    monkeypatch.setattr(varlen, "_flash_backward", kernel_backward)
    groups, length = laid_out([(20, [7, 1, 0, 9]), (4, [5, 3]), (6, [2])])
    ranges = ((2, 9), (12, 15), (length - 8, length - 2))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    given = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    slope = torch.randn(1, length, HEADS, WIDTH, dtype=torch.float64, generator=generator)
    found = []
    for exact in (True, False):
        inputs = [x.clone().requires_grad_() for x in given]
        layout = SharedPrompts(groups, exact=exact, both_ways=ranges)
        if exact or way == "cpu":
            out = layout.attend(None, *inputs, SCALING, window)
        else:
            stretches = layout._stretches(torch.device("cpu"))
            out = varlen.varlen_attention(*inputs, stretches, SCALING, window)
            out = layout._seeing_both_ways(out, *inputs, SCALING, window).transpose(1, 2)
        out.backward(slope)
        found.append((out.detach(), *(x.grad for x in inputs)))
    for plain, ours in zip(*found, strict=True):
        assert_close(ours, plain, atol=1e-12, rtol=1e-12)
    without = SharedPrompts(groups, exact=True).attend(None, *given, SCALING, window)
    assert not torch.allclose(without, found[0][0])


def test_no_keys_of_a_prompt_are_laid_down_again_for_its_responses(monkeypatch):
    """What the kernel is given has every token at most twice: in the row, and once among prompts or responses."""
    sizes = []
    monkeypatch.setattr(
        varlen,
        "_flash",
        lambda q, k, *args, **how: sizes.append((len(q), len(k))) or kernel(q, k, *args, **how),
    )
    groups, length = laid_out([(50, [2] * 40)])
    layout = SharedPrompts(groups)
    q, k = (torch.randn(1, heads, length, WIDTH) for heads in (HEADS, KEY_HEADS))
    varlen.varlen_attention(q, k, k, layout._stretches(torch.device("cpu")), SCALING, None)
    assert sizes == [(130, 130), (80, 50)]
