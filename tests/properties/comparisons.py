"""What holds for the losses of a reward model and for those of a policy alike."""

import torch
from torch.testing import assert_close


def columns(drawn):
    """Values, grades and groups of responses that are drawn as groups of (value, grade)."""
    flat = [(r, g, place) for place, group in enumerate(drawn) for r, g in group]
    values, found, names = zip(*flat, strict=True)
    double = torch.float64
    return torch.tensor(values, dtype=double), torch.tensor(found, dtype=double), torch.tensor(names)


def assert_order_and_company_change_nothing(loss, drawn, seed):
    values, right, names = columns(drawn)
    whole = loss(values, right, names)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    assert_close(loss(values[order], right[order], names[order]), whole[order], atol=1e-12, rtol=0)
    for group in names.unique():
        alone = names == group
        assert_close(loss(values[alone], right[alone], names[alone]), whole[alone], atol=1e-12, rtol=0)


def assert_equal_grades_have_no_loss_and_no_gradient(loss, values, grade):
    leaf = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    same = torch.full((len(values),), grade, dtype=torch.float64)
    found = loss(leaf, same, torch.zeros(len(values), dtype=torch.int64))
    assert not found.any()
    found.sum().backward()
    assert not leaf.grad.any()
