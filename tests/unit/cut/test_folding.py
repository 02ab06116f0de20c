"""Weights under weight norm become plain, and copies stay as they were."""

import copy

import torch
from torch.nn.utils.parametrizations import weight_norm

from sb_prune.cut.folding import fold_


def test_a_copy_stays_parametrized():
    linear = weight_norm(torch.nn.Linear(3, 2))
    copied, expected = copy.deepcopy(linear), linear.weight.detach().clone()
    fold_(linear)
    assert type(linear) is torch.nn.Linear
    assert isinstance(linear.weight, torch.nn.Parameter)
    assert torch.equal(linear.weight, expected)
    assert torch.equal(copied.weight, expected)
    copied(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in copied.parameters())
    fold_(copied)
    assert torch.equal(copied.weight, expected)
