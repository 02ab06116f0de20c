"""Cost as a polynomial: expected meets exact, and has the right slope."""

import pytest
import torch

from sb_prune import conformer_structures, mac_cost, parameter_cost

COSTS = {
    "parameters": parameter_cost,
    "MACs": lambda declaration, prefix="": mac_cost(declaration, 13, prefix),
}


@pytest.fixture(params=COSTS.values(), ids=COSTS.keys())
def cost(request, declaration):
    return request.param(declaration)


@pytest.fixture
def declaration(make_asr):
    return conformer_structures(make_asr())


def test_certain_gates_cost_what_the_plan_costs(cost, declaration, random_plan):
    for seed in range(10):
        plan = random_plan(declaration, seed)
        expected = cost.expected(plan.values(declaration))
        exact = cost.of_kept(plan.kept_counts(declaration))
        assert expected.item() == pytest.approx(exact.item(), rel=1e-12)


def test_expected_is_the_mean_over_samples(cost, declaration):
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(declaration.total_units, generator=generator)
    shape = (4000, len(keep))
    drawn = (torch.rand(shape, generator=generator) < keep).double()
    mean = torch.stack([cost.expected(each) for each in drawn]).mean()
    assert cost.expected(keep).item() == pytest.approx(mean.item(), rel=0.02)


def test_gradcheck(cost, declaration):
    torch.manual_seed(0)
    keep = torch.rand(declaration.total_units).double().requires_grad_()
    assert torch.autograd.gradcheck(cost.expected, keep)


def test_costs_of_groups_add_up(declaration):
    for make in COSTS.values():
        layers = [
            make(declaration, name).dense() for name in declaration.layers
        ]
        total = make(declaration).dense()
        rest = 2 * 16 if make is parameter_cost else 0  # the final norm
        assert sum(layers) + rest == total


def test_batches_of_kept_counts(cost, declaration):
    units = torch.tensor([float(s.units) for s in declaration.structures])
    both = torch.stack([units, 0 * units]).double()
    found = cost.of_kept(both)
    assert found.shape == (2,)
    assert found[0].item() == cost.dense()
