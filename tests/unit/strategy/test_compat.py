import torch
from torch import nn
from torch.testing import assert_close

from lightrft.models.logprobs import LogProbs
from lightrft.strategy import compat


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.frozen = (nn.Linear(3, 3) for _ in range(3))
        self.frozen.requires_grad_(False)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def test_on_an_older_torch_weights_that_are_not_used_get_zeros_and_others_what_they_had(monkeypatch):
    torch.manual_seed(0)
    x, (plain, touched) = torch.randn(2, 3), (Towers(), Towers())
    touched.load_state_dict(plain.state_dict())

    def both(model, x):
        y = model.used(x)
        return LogProbs(y.sum(1), y.prod(1))

    for model, sums_unused in ((plain, True), (touched, False)):
        monkeypatch.setattr(compat, "_SUMS_UNUSED", sums_unused)
        values, entropy, *_ = compat.touching(both, model, x)
        (values.square().sum() + entropy.sum()).backward()
    assert gradients(plain)["unused.weight"] is None
    assert_close(gradients(touched)["unused.weight"], torch.zeros(3, 3))
    assert gradients(touched)["frozen.weight"] is None
    for name in ("used.weight", "used.bias"):
        assert_close(gradients(touched)[name], gradients(plain)[name])


def test_where_there_is_no_backward_pass_nothing_is_touched(monkeypatch):
    monkeypatch.setattr(compat, "_SUMS_UNUSED", False)
    with torch.no_grad():
        assert not compat.touching(lambda model, x: model.used(x), Towers(), torch.ones(1, 3)).requires_grad
