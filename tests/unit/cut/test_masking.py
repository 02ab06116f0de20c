"""Masks come and go without a trace, and norms see open entries only."""

import copy
import io

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sb_prune import attach_, conformer_structures, detach_
from sb_prune.declare.plan import full_plan
from sb_prune.declare.structure import Declaration, Slices, Structure


def classes(model):
    return [type(module) for module in model.modules()]


def same_state(model, state):
    now = model.state_dict()
    return list(now) == list(state) and all(
        torch.equal(now[name], state[name]) for name in state
    )


@torch.no_grad()
@pytest.mark.parametrize("attention", ["RelPosMHAXL", "RoPEMHA", "regularMHA"])
def test_attach_detach_round_trip(make_asr, encode, random_plan, attention):
    model = make_asr(attention)
    stock, before = classes(model), encode(model)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    parameters = list(model.parameters())
    declaration = conformer_structures(model)
    gates = attach_(declaration)
    gates.set_(random_plan(declaration).values(declaration))
    assert not torch.equal(encode(model), before)
    assert same_state(model, state)
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    model.load_state_dict(state, strict=True)
    detach_(model)
    assert classes(model) == stock
    assert same_state(model, state)
    assert torch.equal(encode(model), before)
    assert not any("_gates" in module.__dict__ for module in model.modules())


@torch.no_grad()
def test_a_copy_has_gates_of_its_own(make_asr, encode):
    model = make_asr()
    declaration = conformer_structures(model)
    gates = attach_(declaration)
    before = encode(model)
    twin = copy.deepcopy(model)
    gates.set_(torch.zeros(declaration.total_units))
    assert not torch.equal(encode(model), before)
    assert torch.equal(encode(twin), before)


def test_attaching_twice(make_asr):
    declaration = conformer_structures(make_asr())
    attach_(declaration)
    with pytest.raises(ValueError, match="masked already; call detach_"):
        attach_(declaration)


def test_a_mask_may_cover_part_of_its_axis():
    linear = torch.nn.Linear(3, 2)
    dense = linear.weight.detach().clone()
    mask = Slices("weight", 1, torch.tensor([[2], [0]]))
    inputs = Structure("inputs", "inputs", 2, masks=(mask,))
    gates = attach_(Declaration(linear, ("",), (inputs,), None))
    gates.set_(torch.tensor([0.5, 0.0]))
    expected = dense * torch.tensor([0.0, 1.0, 0.5])
    assert torch.equal(linear.weight, expected)


def test_a_mask_beyond_its_axis_is_refused():
    linear = torch.nn.Linear(3, 2)
    mask = Slices("weight", 1, torch.arange(4).view(4, 1))
    inputs = Structure("inputs", "inputs", 4, masks=(mask,))
    with pytest.raises(ValueError, match="weight: 4 positions of a mask"):
        attach_(Declaration(linear, ("",), (inputs,), None))


def test_units_of_several_widths_multiply_their_entries():
    """-1 fills their rows, and the last column belongs to none."""
    linear = torch.nn.Linear(4, 2, bias=False)
    stock = linear.weight.detach().clone()
    mask = Slices("weight", 1, torch.tensor([[0, 2], [1, -1]]))
    inputs = Structure("inputs", "inputs", 2, masks=(mask,))
    gates = attach_(Declaration(linear, ("",), (inputs,), None))
    gates.set_(torch.tensor([2.0, 3.0]))
    expected = stock * torch.tensor([2.0, 3.0, 2.0, 1.0])
    assert torch.equal(linear.weight, expected)


def test_scattered_units_multiply_their_entries():
    linear = torch.nn.Linear(6, 2, bias=False)
    stock = linear.weight.detach().clone()
    index = torch.tensor([[0, 3], [1, 4], [2, 5]])
    mask = Slices("weight", 1, index)
    inputs = Structure("inputs", "inputs", 3, masks=(mask,))
    gates = attach_(Declaration(linear, ("",), (inputs,), None))
    gates.set_(torch.tensor([0.0, 0.5, 2.0]))
    factors = torch.tensor([0.0, 0.5, 2.0, 0.0, 0.5, 2.0])
    assert torch.equal(linear.weight, stock * factors)


def test_every_gate_receives_a_gradient(make_asr, encode):
    declaration = conformer_structures(make_asr())
    values = torch.full((declaration.total_units,), 0.5, requires_grad=True)
    attach_(declaration).set_(values)
    encode(declaration.root).square()[..., :3].sum().backward()
    assert (values.grad != 0).all()


def masked_norm(gate, **options):
    """A LayerNorm masked by one gate per channel, and its stock twin."""
    norm = torch.nn.LayerNorm(len(gate), **options).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    stock = copy.deepcopy(norm)
    root = torch.nn.Sequential(norm)
    index = torch.arange(len(gate)).view(-1, 1)
    channels = Structure("c", "c", len(gate), norms=(Slices("0", None, index),))
    attach_(Declaration(root, ("",), (channels,), None)).set_(gate)
    return root, stock


@pytest.mark.parametrize("kept", [1, 2, 5, 11])
def test_norm_takes_statistics_over_open_entries(kept):
    torch.manual_seed(0)
    x = torch.randn(3, 7, 12).double()
    gate = (torch.randperm(12) < kept).double()
    found, stock = masked_norm(gate)
    here = gate.bool()
    expected = torch.nn.functional.layer_norm(
        x[..., here], (kept,), stock.weight[here], stock.bias[here], stock.eps
    )
    assert torch.allclose(found(x)[..., here], expected, atol=1e-12)


def test_a_norm_may_lack_a_bias():
    gate = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()
    norm = torch.nn.LayerNorm(4, bias=False).double()
    root, index = torch.nn.Sequential(norm), torch.arange(4).view(-1, 1)
    channels = Structure("c", "c", 4, norms=(Slices("0", None, index),))
    attach_(Declaration(root, ("",), (channels,), None)).set_(gate)
    x, here = torch.randn(2, 4).double(), gate.bool()
    expected = torch.nn.functional.layer_norm(x[:, here], (3,))
    assert torch.allclose(root(x)[:, here], expected, atol=1e-12)


def test_open_norm_is_the_native_one():
    x = torch.randn(3, 7, 12).double()
    masked, stock = masked_norm(torch.ones(12).double())
    assert_same_but_for_rounding(masked(x), stock(x))


def test_norm_over_a_transposed_input():
    """Input as in the Conformer, with channels from a convolution."""
    x = torch.randn(3, 12, 7).double().transpose(1, 2)
    masked, _ = masked_norm((torch.arange(12) % 2).double())
    assert masked(x).is_contiguous()
    assert_same_but_for_rounding(masked(x), masked(x.contiguous()))


def test_norm_gradients():
    torch.manual_seed(0)
    x = torch.randn(2, 6).double().requires_grad_()
    gate = torch.rand(6).double().requires_grad_()
    masked, _ = masked_norm(gate.detach())
    gates = masked[0]._gates

    def run(x, gate):
        gates.set_(gate, [False])
        return masked(x)

    assert torch.autograd.gradcheck(run, (x, gate))


def test_values_say_which_structures_are_open(make_asr, random_plan):
    declaration = conformer_structures(make_asr())
    gates = attach_(declaration)
    plan = random_plan(declaration)
    gates.set_(plan.values(declaration))
    for name, kept in plan.keep.items():
        assert gates.is_open(name) == bool(kept.all())
    gates.set_(full_plan(declaration).values(declaration))
    assert all(gates.is_open(name) for name in plan.keep)


@torch.no_grad()
def test_a_masked_model_may_be_saved_whole(make_asr, encode, random_plan):
    model = make_asr()
    declaration = conformer_structures(model)
    gates = attach_(declaration)
    values = random_plan(declaration).values(declaration)
    gates.set_((values * 1.0).requires_grad_() * 1.0)  # as in a training step
    before, file = encode(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(encode(loaded), before)
    detach_(loaded)
    assert classes(loaded) == classes(make_asr())
    gates.set_(torch.ones_like(values))
    assert torch.equal(encode(loaded), encode(model))


def norm_over_two_axes():
    """Channels and frequencies share a norm, as in a front-end."""
    root = torch.nn.Sequential(torch.nn.LayerNorm((3, 4)).double())
    torch.nn.init.normal_(root[0].weight)
    structures = [
        Structure(
            name,
            name,
            units,
            norms=(Slices("0", dim, torch.arange(units).view(-1, 1)),),
        )
        for name, dim, units in (("f", 0, 3), ("c", 1, 4))
    ]
    return Declaration(root, ("",), tuple(structures), None)


def test_two_structures_may_share_a_norm():
    declaration = norm_over_two_axes()
    norm = declaration.root[0]
    x = torch.randn(2, 3, 4).double()
    gates = attach_(declaration)
    gates.set_(torch.tensor([1, 0, 1, 1, 1, 0, 1]).double())
    rows, columns = [0, 2], [0, 1, 3]
    kept = x[:, rows][..., columns]
    weight = norm.weight[rows][:, columns]
    expected = torch.nn.functional.layer_norm(kept, (2, 3), weight)
    found = declaration.root(x)[:, rows][..., columns]
    assert torch.allclose(found, expected, atol=1e-12)


DTYPES = [torch.bfloat16, torch.float16, torch.float64]


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_open_gates_in_any_precision(make_asr, encode, dtype):
    model = make_asr("regularMHA").to(dtype)
    x = torch.randn(2, 13, 16, dtype=dtype)
    before, _ = model.encoder(x)
    attach_(conformer_structures(model))
    found, _ = model.encoder(x)
    assert found.dtype == dtype
    assert torch.equal(found, before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_norm_keeps_the_precision(dtype):
    gate = (torch.arange(12) % 3 > 0).float()
    masked, stock = masked_norm(gate)
    x = torch.randn(3, 7, 12).double()
    kept = gate.bool()
    expected = torch.nn.functional.layer_norm(
        x[..., kept], (8,), stock.weight[kept], stock.bias[kept]
    )
    found = masked.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    error = (found[..., kept].double() - expected).abs().max()
    assert error <= 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_of_a_half_precision_model_learn(make_asr, dtype):
    model = make_asr("regularMHA").to(dtype)
    declaration = conformer_structures(model)
    values = torch.full((declaration.total_units,), 0.5, requires_grad=True)
    attach_(declaration).set_(values)
    encoded, _ = model.encoder(torch.randn(2, 13, 16, dtype=dtype))
    encoded.float().square()[..., :3].sum().backward()
    assert values.grad.dtype == torch.float32
    assert torch.isfinite(values.grad).all()
    assert (values.grad != 0).float().mean() > 0.9
