"""Surgery leaves stock modules of stock kinds, smaller."""

import pytest
import torch

from sb_prune import (
    Plan,
    attach_,
    conformer_structures,
    cut_,
    layer_structures,
    parameter_cost,
)
from sb_prune.architectures.whole_layers import layer_plan
from sb_prune.cut.surgery import Absent, leave_out
from sb_prune.declare.structure import Declaration, Slices, Structure

ATTENTIONS = ["RelPosMHAXL", "RoPEMHA", "regularMHA"]


def shapes(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_meta_tensors_are_cut_alike(make_asr, random_plan, attention, keep):
    real, meta = make_asr(attention), make_asr(attention).to("meta")
    for model in (real, meta):
        declaration = conformer_structures(model)
        cut_(declaration, random_plan(declaration, keep=keep))
    assert shapes(real) == shapes(meta)
    assert all(p.is_meta for p in meta.parameters())
    meta.load_state_dict(real.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_empty_tensor_ever(make_asr, random_plan, attention):
    for seed in range(10):
        declaration = conformer_structures(make_asr(attention))
        cut_(declaration, random_plan(declaration, seed, keep=0.2))
        assert all(p.numel() for p in declaration.root.parameters())


def test_requires_grad_is_kept(make_asr, random_plan):
    model = make_asr()
    frozen = [n for n, _ in model.named_parameters()][::2]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    declaration = conformer_structures(model)
    cut_(declaration, random_plan(declaration, keep=0.8))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in frozen)
        assert parameter.is_leaf


def test_slices_are_clones(make_asr, random_plan):
    """A view would keep the dense tensor in memory and in checkpoints."""
    declaration = conformer_structures(make_asr(), kinds=["ffn_units", "heads"])
    cut_(declaration, random_plan(declaration))
    for parameter in declaration.root.parameters():
        bytes_needed = parameter.numel() * parameter.element_size()
        assert parameter.untyped_storage().nbytes() == bytes_needed


def test_sizes_that_layers_report(make_asr, random_plan):
    declaration = conformer_structures(make_asr())
    cut_(declaration, random_plan(declaration, keep=0.8))
    for module in declaration.root.modules():
        if isinstance(module, torch.nn.Linear):
            shape = (module.out_features, module.in_features)
            assert module.weight.shape == shape
        elif isinstance(module, torch.nn.Conv1d):
            shape = (module.out_channels, module.in_channels // module.groups)
            assert module.weight.shape[:2] == shape


def test_dense_plan_changes_nothing(make_asr):
    model = make_asr()
    before = list(model.parameters())
    declaration = conformer_structures(model)
    keep = {s.name: torch.ones(s.units) > 0 for s in declaration.structures}
    cut_(declaration, Plan(keep))
    assert all(a is b for a, b in zip(model.parameters(), before))


def test_what_is_absent(make_asr):
    model = make_asr()
    layer = model.encoder.layers[0]
    padding = layer.convolution_module.padding
    declaration = conformer_structures(model)
    keep = {s.name: torch.ones(s.units) > 0 for s in declaration.structures}
    keep["encoder.layers.0"][:] = False
    cut_(declaration, Plan(keep))
    assert isinstance(layer.mha_layer, Absent)
    assert layer.convolution_module.padding == padding  # streaming reads it
    assert [n for n, _ in layer.named_parameters()] == [
        "norm2.norm.weight",
        "norm2.norm.bias",
    ]


def test_a_bad_plan_cuts_nothing(make_asr):
    model = make_asr()
    before = shapes(model)
    with pytest.raises(ValueError, match="another architecture"):
        cut_(conformer_structures(model), Plan({}))
    assert shapes(model) == before


@torch.no_grad()
@pytest.mark.parametrize("attention", ["regularMHA"])
def test_double_precision_is_exact_to_double_precision(
    make_asr, random_plan, masked_and_cut, attention
):
    model = make_asr(attention).double()
    x = torch.randn(2, 13, 16, dtype=torch.float64)
    declaration = conformer_structures(model)
    plan = random_plan(declaration, seed=1, keep=0.8)
    masked, cut = masked_and_cut(declaration, plan, lambda m: m.encoder(x)[0])
    assert cut.dtype == torch.float64
    assert (masked - cut).abs().max() <= 1e-12


def refused(declaration, plan, match):
    """Asserts that a cut is refused and has changed nothing."""
    before = shapes(declaration.root)
    with pytest.raises(ValueError, match=match):
        cut_(declaration, plan)
    assert shapes(declaration.root) == before


def test_a_masked_model_is_not_cut(make_asr, random_plan):
    declaration = conformer_structures(make_asr())
    attach_(declaration)
    refused(declaration, random_plan(declaration), "is masked.*call detach_")


@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_a_declaration_is_cut_once(make_asr, random_plan, keep):
    declaration = conformer_structures(make_asr())
    plan = random_plan(declaration, keep=keep)
    cut_(declaration, plan)
    refused(declaration, plan, "was cut since it was declared; declare again")


def test_layers_left_out_are_left_out_once(make_asr):
    declaration = layer_structures(make_asr(), conformer_structures)
    plan = layer_plan(declaration, [True, False])
    cut_(declaration, plan)
    refused(declaration, plan, "was cut since it was declared")


def test_only_lists_get_shorter():
    stack = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    whole = Structure("1.whole", "layers", 1, removes=(("1", leave_out),))
    declaration = Declaration(stack, ("",), (whole,), None)
    closed = Plan({"1.whole": torch.tensor([False])})
    refused(declaration, closed, "1: cannot be left out.*in a Sequential")
    assert type(stack) is torch.nn.Sequential


def test_a_cut_buffer_stays_a_buffer():
    norm = torch.nn.BatchNorm1d(3)
    each = torch.arange(3).view(3, 1)
    names = ("weight", "bias", "running_mean", "running_var")
    channels = Structure(
        "channels",
        "channels",
        3,
        masks=(Slices("weight", 0, each),),
        cuts=tuple(Slices(name, 0, each) for name in names),
    )
    declaration = Declaration(norm, ("",), (channels,), None)
    plan = Plan({"channels": torch.tensor([True, False, True])})
    counts = plan.kept_counts(declaration)
    assert float(parameter_cost(declaration).of_kept(counts)) == 4
    cut_(declaration, plan)
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"]
    assert norm.running_mean.shape == norm.running_var.shape == (2,)
    assert norm(torch.randn(4, 2)).shape == (4, 2)


def test_what_is_no_plain_parameter_is_refused(make_asr):
    model = make_asr()
    linear = model.encoder.layers[0].ffn_module1[1].ffn[0]
    torch.nn.utils.parametrizations.weight_norm(linear)
    with pytest.raises(ValueError, match=r"ffn\.0\.weight.*weight_norm"):
        conformer_structures(model)
