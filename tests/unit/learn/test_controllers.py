"""The two controllers, beyond what every controller must fulfil."""

import pytest
import torch

from sb_prune import AugmentedLagrangian, ExactBudget

MEMBERS = torch.tensor([[True] * 3 + [False] * 3, [False] * 3 + [True] * 3])
PRICES = torch.tensor([1.0, 2.0, 3.0, 1.0, 5.0, 1.0]).double()


def sparsity(logits):
    """Two groups of three gates, priced."""
    kept = MEMBERS * PRICES * logits.double().sigmoid()
    return 1 - kept.sum(1) / (MEMBERS * PRICES).sum(1)


@pytest.mark.parametrize("target", [0.01, 0.3, 0.5, 0.9, 0.99])
def test_exact_budget_meets_its_targets(target):
    targets = torch.tensor([target, 1 - target]).double()
    logits = torch.linspace(-4, 4, 6)
    shifted, penalty = ExactBudget()(logits, sparsity, MEMBERS, targets)
    assert torch.allclose(sparsity(shifted), targets, atol=1e-5)
    assert penalty == 0


def test_exact_budget_shifts_each_group_by_one_number():
    targets = torch.tensor([0.4, 0.7]).double()
    logits = torch.linspace(-1, 1, 6)
    shift = ExactBudget()(logits, sparsity, MEMBERS, targets)[0] - logits
    for group in shift.view(2, 3):
        assert torch.allclose(group, group[:1].expand(3), atol=1e-6)
    assert shift[0] != shift[3]


def test_exact_budget_is_flat_along_its_own_shift():
    """More logit for all is no more budget: units compete."""
    targets = torch.tensor([0.4, 0.7]).double()
    constant = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    logits = torch.linspace(-1, 1, 6).double() + constant.repeat_interleave(3)
    shifted, _ = ExactBudget()(logits, sparsity, MEMBERS, targets)
    for value in sparsity(shifted):
        (slope,) = torch.autograd.grad(value, constant, retain_graph=True)
        assert slope.abs().max() < 1e-4
    plain = torch.autograd.grad(sparsity(logits)[0], constant)[0]
    assert plain.abs().max() > 0.1


def test_exact_budget_gradient():
    targets = torch.tensor([0.4, 0.7]).double()
    logits = torch.linspace(-1, 1, 6).double().requires_grad_()

    def shifted(logits):
        controller = ExactBudget(tolerance=1e-6)
        return controller(logits, sparsity, MEMBERS, targets)[0]

    assert torch.autograd.gradcheck(shifted, logits, atol=1e-3, eps=1e-4)


def test_exact_budget_says_what_it_cannot_reach():
    def stuck(logits):
        return sparsity(logits) * 0.5

    targets = torch.tensor([0.6, 0.4]).double()
    with pytest.raises(ValueError, match="expected sparsity of 0.6000 cannot"):
        ExactBudget()(torch.zeros(6), stuck, MEMBERS, targets)


def test_lagrangian_moves_towards_its_targets():
    targets = torch.tensor([0.4, 0.7]).double()
    controller = AugmentedLagrangian(lr=0.05)
    logits = torch.full((6,), 3.0, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    gaps = []
    for _ in range(300):
        same, penalty = controller(logits, sparsity, MEMBERS, targets)
        assert same is logits
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        expected = sparsity(logits).detach()
        gaps.append((expected - targets).abs().max().item())
        controller.step_(expected, targets)
    assert max(gaps[-50:]) < 0.4 * gaps[0]


def test_lagrangian_multipliers_ascend():
    targets = torch.tensor([0.9, 0.1]).double()
    controller = AugmentedLagrangian(lr=0.05)
    controller(torch.zeros(6), sparsity, MEMBERS, targets)
    controller.step_(torch.tensor([0.5, 0.5]).double(), targets)
    named = controller.multipliers()
    assert named["lambda1_0"] < 0 < named["lambda1_1"]
    assert named["lambda2_0"] > 0 and named["lambda2_1"] > 0
