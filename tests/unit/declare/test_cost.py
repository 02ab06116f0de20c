"""Cost as a polynomial: expected meets exact, and has the right slope."""

import pytest
import torch
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sb_prune import (
    conformer_structures,
    mac_cost,
    parameter_cost,
    transformer_structures,
)

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


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"attention_type": "hypermixing"}, ["ffn_units"]),
        (
            {"ffn_type": "1dcnn", "ffn_cnn_kernel_size_list": [3, 1]},
            ["heads"],
        ),
    ],
)
@torch.no_grad()
def test_what_cannot_be_cut_costs_what_it_does(options, kinds):
    model = TransformerEncoder(1, 2, 32, d_model=16, **options).eval()
    declaration = transformer_structures(model, kinds=kinds)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(torch.randn(1, 50, 16))
    counted = counter.get_total_flops() / 2
    assert mac_cost(declaration, 50).dense() == pytest.approx(counted)


def test_attention_with_other_keys_costs_what_it_does():
    model = TransformerEncoder(1, 2, 32, d_model=16)
    attention = torch.nn.MultiheadAttention(16, 2, kdim=12, vdim=12)
    model.layers[0].self_att.att = attention
    declaration = transformer_structures(model, kinds=["ffn_units"])
    weights = 2 * 16 * 16 + 2 * 12 * 16 + 2 * 16 * 32
    macs = 50 * weights + 2 * 50 * 50 * 16
    assert mac_cost(declaration, 50).dense() == macs


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
