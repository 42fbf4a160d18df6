import pytest
import torch
from torch.testing import assert_close

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.attention import ATTENTION
from lightrft.models.load import load_model
from lightrft.models.logprobs import (
    all_logits,
    backbone,
    causal_lm,
    logprobs,
    output_head,
    predicting_states,
    text_config,
)
from lightrft.models.sequence import Share
from lightrft.testing import tiny_model, tiny_trajectories
from lightrft.trainer.batching import pack

ANSWERS = tiny_trajectories([(6, [5, 3]), (4, [1])])


def flat_model():
    """A model whose head is zero: every token has probability 1 / 260, whatever came before."""
    model = tiny_model("llama", attention=ATTENTION, tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def test_a_flat_distribution_has_the_entropy_and_log_probs_one_can_write_down():
    result = logprobs(flat_model(), pack(ANSWERS), temperature=0.5, max_logits=300)
    assert_close(result.values, torch.full((9,), -5.560682), atol=1e-5, rtol=0)  # -ln 260
    assert_close(result.entropy, torch.full((9,), 5.560682), atol=1e-5, rtol=0)


def test_log_probs_of_a_sharp_distribution_are_exact_numbers_and_no_infinity():
    model = flat_model()
    with torch.no_grad():
        model.lm_head.weight[7] = 1000.0
    result = logprobs(model, pack(ANSWERS), temperature=1e-3, max_logits=10**9)
    assert torch.isfinite(result.values).all()
    assert torch.isfinite(result.entropy).all()
    assert (result.entropy >= -1e-3).all()


@pytest.mark.parametrize("max_logits", [300, 10**9])
def test_the_first_token_of_an_answer_may_have_its_own_temperature(max_logits):
    """Values and gradients are those of two calls, one per temperature, with the rows picked from each."""
    first = torch.tensor([True, False, False, False, False, True, False, False, True])
    found, picked = [], []
    for result in (found, picked):
        model = tiny_model("llama", attention=ATTENTION)

        def at(temperature, model=model, **more):
            return logprobs(model, pack(ANSWERS), temperature=temperature, max_logits=max_logits, **more)

        if result is found:
            both = at(0.7, first_token_temperature=5.0)
            values, entropy = both.values, both.entropy
        else:
            hot, usual = at(5.0), at(0.7)
            values = torch.where(first, hot.values, usual.values)
            entropy = torch.where(first, hot.entropy, usual.entropy)
        (values.sum() + entropy.square().sum()).backward()
        result += [values, entropy, *(p.grad for p in model.parameters())]
    for one, other in zip(found, picked, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probs_are_float32_whatever_the_model_computes_in(dtype):
    model = load_model(ModelConfig(path="random:llama", dtype=dtype))
    result = logprobs(model, pack(ANSWERS), temperature=1.0, max_logits=10**9)
    assert result.values.dtype == result.entropy.dtype == torch.float32
    assert result.values.shape == result.entropy.shape == (9,)


def test_bfloat16_log_probs_are_normalised_in_float32():
    """Chosen so that a softmax in bfloat16, with its 8 bits, would be off by more than a hundredth."""
    model = load_model(ModelConfig(path="random:llama", dtype="bfloat16"))
    batch = pack(ANSWERS)
    with torch.no_grad():
        hidden = predicting_states(model, batch.inputs, Share.of(batch.inputs)).float()
        z = hidden @ output_head(model).weight.float().t()
        expected = z.log_softmax(-1).gather(1, batch.inputs.targets[:, None])[:, 0]
        found = logprobs(model, batch, temperature=1.0, max_logits=10**9).values
    assert_close(found, expected, atol=1e-5, rtol=0)


def test_gradients_flow_through_values_alone_and_through_entropy_alone():
    for part in ("values", "entropy"):
        model = tiny_model("llama", attention=ATTENTION)
        getattr(logprobs(model, pack(ANSWERS), temperature=1.0, max_logits=10**9), part).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_a_frozen_head_passes_gradients_on_and_takes_none():
    model = load_model(ModelConfig(path="random:llama", lora=LoraConfig(rank=2)))
    logprobs(model, pack(ANSWERS), temperature=1.0, max_logits=10**9).values.sum().backward()
    assert output_head(model).weight.grad is None
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_a_head_with_a_bias_uses_it_and_learns_it():
    model = tiny_model("llama", attention=ATTENTION, tie_word_embeddings=False).double()
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 260, dtype=torch.float64))
    batch = pack(ANSWERS)
    hidden = predicting_states(model, batch.inputs, Share.of(batch.inputs))
    expected = model.lm_head(hidden).log_softmax(-1).gather(1, batch.inputs.targets[:, None])[:, 0]
    (wanted,) = torch.autograd.grad(expected.sum(), model.lm_head.bias)
    found = logprobs(model, batch, temperature=1.0, max_logits=1000).values
    (got,) = torch.autograd.grad(found.sum(), model.lm_head.bias)
    assert_close(found, expected, atol=1e-5, rtol=0)
    assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_parts_of_a_model_are_found_inside_its_adapters(rank):
    model = load_model(ModelConfig(path="random:qwen3", lora=LoraConfig(rank=rank)))
    assert type(causal_lm(model)).__name__ == "Qwen3ForCausalLM"
    assert type(backbone(model)).__name__ == "Qwen3Model"
    assert output_head(model).weight.shape == (260, 64)
    assert text_config(model).vocab_size == 260


@pytest.mark.parametrize("max_logits", [1, 700, 10**6])
def test_the_sum_of_squared_probabilities_is_that_of_the_softmax(max_logits):
    """Told where no gradient is wanted, in blocks of the vocabulary as all else."""
    model = tiny_model("llama", attention=ATTENTION)
    batch = pack(tiny_trajectories([(5, [4, 3])]))
    with torch.no_grad():
        found = logprobs(model, batch, temperature=0.7, max_logits=max_logits).squares
        hidden = predicting_states(model, batch.inputs, Share.of(batch.inputs))
    right = torch.softmax(all_logits(model, hidden) / 0.7, 1).square().sum(1)
    torch.testing.assert_close(found, right)
    assert logprobs(model, batch, temperature=0.7, max_logits=max_logits).squares is None
