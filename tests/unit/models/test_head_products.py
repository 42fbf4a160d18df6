"""The head of a bfloat16 model on a device whose products give float32, on a CPU: the product by its definition, all else ours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.models import logprobs as module
from lightrft.models.products import logits_at_once, multiplies_halves, multiplies_widely

LOGITS, GRADIENTS = 1e-5, 3 * 2**-9
"""What the docstring of _Head states: logits relative to the largest, gradients in norm: one rounding of the logits' gradient, and one of
each of the two results that are compared."""


def head(hidden, weight, bias, tokens, *, wide=False, halves=False, temperature, cap, max_logits, slopes):
    """Log-probs, entropies, and the gradients of hidden states, weights and biases."""
    inputs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "multiplies_widely", lambda h, w: wide)
        patch.setattr(module, "multiplies_halves", lambda h, w: halves)
        values, entropy, _ = module._BlockedHead.apply(*inputs, tokens, temperature, cap, max_logits, (3,))
        of_values, of_entropy = slopes
        ((values * of_values).sum() + (entropy * of_entropy).sum()).backward()
    return values, entropy, *(x.grad for x in inputs)


def apart(found, right):
    return float((found.double() - right.double()).norm() / right.double().norm().clamp(min=1e-30))


@given(
    seed=st.integers(0, 2**16),
    temperature=st.sampled_from([1.0, 0.6]),
    cap=st.sampled_from([None, 20.0]),
    max_logits=st.sampled_from([50, 2000, 10**9]),
    spread=st.sampled_from([0.02, 0.3]),
    common=st.sampled_from([0.0, 2.0]),
    with_entropy=st.booleans(),
    way=st.sampled_from(["wide", "halves"]),
)
@settings(max_examples=30, deadline=None)
def test_products_in_bfloat16_with_float32_sums_are_those_of_float32_as_stated(
    seed, temperature, cap, max_logits, spread, common, with_entropy, way
):
    """Either sums in float32 throughout, or only the weights' gradient by bfloat16, where all else does not change at all. What the head's rows
    have in common, `common` for each number, may be far longer than what they differ by, and is in no row's error."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(17, 64, generator=draw).bfloat16()
    shared = common * torch.randn(64, generator=draw)
    weight = (torch.randn(211, 64, generator=draw) * spread + shared).bfloat16()
    bias = torch.randn(211, generator=draw).bfloat16()
    tokens = torch.randint(4, 211, (17,), generator=draw)
    slopes = torch.randn(17, generator=draw), torch.randn(17, generator=draw) * with_entropy
    how = {"temperature": temperature, "cap": cap, "max_logits": max_logits, "slopes": slopes}
    values, entropy, *gradients = head(hidden, weight, bias, tokens, **{way: True}, **how)
    right_values, right_entropy, *right = head(hidden, weight, bias, tokens, **how)
    if way == "halves":
        assert torch.equal(values, right_values)
        assert torch.equal(entropy, right_entropy)
        assert torch.equal(gradients[0], right[0])
    largest = float((hidden.float() @ weight.float().t()).abs().max()) / temperature
    assert float((values - right_values).detach().abs().max()) < LOGITS * max(largest, 1.0)
    assert float((entropy - right_entropy).detach().abs().max()) < 2 * LOGITS * max(largest, 1.0) ** 2
    for found, expected in zip(gradients, right, strict=True):
        assert found.dtype == torch.bfloat16
        assert apart(found, expected) < GRADIENTS


def test_the_gradients_of_either_path_are_rounded_and_not_wrong():
    """Against float64 both ways have the error of bfloat16 results: the rounding of the logits' gradient adds little to it."""
    draw = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(64, 128, generator=draw), torch.randn(500, 128, generator=draw) * 0.1
    tokens, bias = torch.randint(4, 500, (64,), generator=draw), torch.zeros(500)
    how = {"temperature": 1.0, "cap": None, "max_logits": 8000, "slopes": (torch.ones(64), torch.zeros(64))}
    half = [x.bfloat16() for x in (hidden, weight, bias)]
    exact = head(*(x.double() for x in half), tokens, **how)[2:4]
    wide, halves, narrow = (
        head(*half, tokens, **way, **how)[2:4] for way in ({"wide": True}, {"halves": True}, {})
    )
    for found in (wide, halves):
        for ours, before, right in zip(found, narrow, exact, strict=True):
            assert apart(ours, right) < 1.5 * apart(before, right)


def test_a_cpu_multiplies_in_float32_but_for_what_it_has_instructions_for(monkeypatch):
    two = [torch.zeros(1, 1, dtype=torch.bfloat16)] * 2
    assert not multiplies_widely(*two)
    for known in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda known=known: known)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert multiplies_halves(*two) == known
        assert not multiplies_halves(two[0].float(), two[1].float())


def test_how_many_logits_exist_at_once_is_the_devices_choice_unless_it_is_set():
    assert logits_at_once(0, on_cpu=True) == 4_194_304
    assert logits_at_once(0, on_cpu=False) == 67_108_864
    assert logits_at_once(7, on_cpu=True) == logits_at_once(7, on_cpu=False) == 7
