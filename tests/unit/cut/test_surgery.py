"""Surgery leaves stock modules of stock kinds, smaller."""

import pytest
import torch

from sb_prune import Plan, conformer_structures, cut_
from sb_prune.cut.surgery import Absent

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
