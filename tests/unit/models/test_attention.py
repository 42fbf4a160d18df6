import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from lightrft.models.attention import ATTENTION, SharedPrompts
from lightrft.testing import tiny_model


def heads(length, count=4, size=16, seed=0):
    return torch.randn(
        1, count, length, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def dense(layout, query, key, value, scaling, window=None):
    """Softmax over an explicit mask of all tokens against all: who sees whom, written as the definition says."""
    length = query.shape[2]
    place, seen = torch.zeros(length, dtype=torch.int64), torch.zeros(length, length, dtype=torch.bool)
    for (a, b), responses in layout.groups:
        place[a:b] = torch.arange(b - a)
        for i in range(a, b):
            seen[i, a : i + 1] = True
        for c, d in responses:
            place[c:d] = torch.arange(b - a, b - a + d - c)
            for i in range(c, d):
                seen[i, a:b] = True
                seen[i, c : i + 1] = True
    if window is not None:
        seen &= place[:, None] - place[None, :] < window
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


LAYOUT = SharedPrompts((((0, 5), ((5, 8), (8, 8), (8, 9))), ((9, 10), ()), ((10, 12), ((12, 20),))))


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_each_response_sees_its_prompt_and_itself(window, exact, key_heads):
    layout = SharedPrompts(LAYOUT.groups, exact)
    query, key, value = heads(20), heads(20, key_heads, seed=1), heads(20, key_heads, seed=2)
    found = layout.attend(None, query, key, value, 0.3, window)
    assert_close(found, dense(layout, query, key, value, 0.3, window), atol=1e-12, rtol=0)


def test_the_gradients_are_those_of_the_definition():
    inputs = [
        heads(20).requires_grad_(),
        heads(20, 2, seed=1).requires_grad_(),
        heads(20, 2, seed=2).requires_grad_(),
    ]
    weights = heads(20, seed=3).transpose(1, 2)
    found = torch.autograd.grad((LAYOUT.attend(None, *inputs, 0.3, None) * weights).sum(), inputs)
    expected = torch.autograd.grad((dense(LAYOUT, *inputs, 0.3) * weights).sum(), inputs)
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, other, atol=1e-12, rtol=0)


def test_siblings_are_found_by_their_prompts_place():
    layout = SharedPrompts.of([(0, 3), (0, 3), (7, 9)], [(3, 5), (5, 7), (9, 10)])
    assert layout.groups == (((0, 3), ((3, 5), (5, 7))), ((7, 9), ((9, 10),)))
    assert layout.longest == 5


def test_without_a_layout_one_row_is_one_sequence():
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        found = tiny_model("llama", attention=ATTENTION)(tokens, use_cache=False).logits
        assert_close(found, tiny_model("llama")(tokens).logits, atol=1e-5, rtol=0)


def test_a_batch_of_rows_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="one packed row.*attn_implementation='sdpa'"):
        tiny_model("llama", attention=ATTENTION)(torch.zeros(2, 3, dtype=torch.int64))


def test_a_cache_is_refused():
    with pytest.raises(ValueError, match="without a cache"):
        tiny_model("llama", attention=ATTENTION).generate(
            torch.tensor([[1, 2, 3]]), max_new_tokens=3, pad_token_id=0
        )


def test_dropout_in_attention_is_refused_in_training():
    model = tiny_model("llama", attention=ATTENTION, attention_dropout=0.1).train()
    with pytest.raises(ValueError, match="attention dropout 0.1.*attention_dropout=0"):
        model(torch.tensor([[1, 2, 3]]), use_cache=False)


def test_an_attention_with_a_soft_cap_is_refused_rather_than_computed_without():
    config = AutoConfig.for_model(
        "gemma2", vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, attn_logit_softcapping=50.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    with pytest.raises(ValueError, match="softcap"):
        model(torch.tensor([[1, 2, 3]]), use_cache=False)
