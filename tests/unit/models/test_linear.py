import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lightrft.models.linear import linear, use_fast_linear


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (0, 7), (1, 5, 7), (2, 3, 4, 7), (7,)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_product_and_its_gradients_are_torchs(shape, with_bias):
    results = []
    for multiply in (linear, F.linear):
        x, weight = numbers(*shape).requires_grad_(), numbers(3, 7, seed=1).requires_grad_()
        bias = numbers(3, seed=2).requires_grad_() if with_bias else None
        out = multiply(x, weight, bias)
        out.backward(numbers(*out.shape, seed=3))
        results.append([out.detach(), x.grad, weight.grad, bias.grad if with_bias else None])
    for mine, other in zip(*results, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_only_what_needs_a_gradient_gets_one():
    x, weight, bias = numbers(4, 7), numbers(3, 7).requires_grad_(), numbers(3)
    linear(x, weight, bias).sum().backward()
    assert x.grad is None
    assert bias.grad is None
    assert weight.grad is not None


def test_a_transposed_input_and_a_gradient_that_is_not_contiguous_are_read_right():
    x, weight = numbers(7, 4).t(), numbers(3, 7).requires_grad_()
    out = linear(x, weight)
    out.backward(numbers(3, 4, seed=1).t())
    assert_close(out, F.linear(x, weight), atol=1e-5, rtol=1e-5)
    assert_close(weight.grad, numbers(3, 4, seed=1) @ x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_stay_themselves(dtype):
    x, weight = numbers(4, 7, dtype=dtype), numbers(3, 7, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_models_parameters_keep_their_names_and_its_other_linears_their_forward():
    class Odd(nn.Linear):
        def forward(self, x):
            return x

    model = nn.Sequential(nn.Linear(3, 3), Odd(3, 3))
    names = [n for n, _ in model.named_parameters()]
    x = numbers(2, 3)
    expected = model(x)
    use_fast_linear(model)
    assert [n for n, _ in model.named_parameters()] == names
    assert_close(model(x), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(model[1](x), x)
