"""What the Branchformer file declares and leaves."""

import torch
from speechbrain.lobes.models.transformer.Branchformer import (
    BranchformerEncoder,
)

from sb_prune import branchformer_structures, cut_
from sb_prune.declare.plan import full_plan


def make_encoder():
    return BranchformerEncoder(
        1, d_model=8, nhead=2, kernel_size=3, csgu_linear_units=12
    )


def test_kinds_and_parents():
    declaration = branchformer_structures(make_encoder())
    listed = [(s.kind, s.units, s.parent) for s in declaration.structures]
    assert listed == [
        ("layers", 1, None),
        ("attention_modules", 1, "layers.0"),
        ("heads", 2, "layers.0.mha_layer"),
        ("conv_modules", 1, "layers.0"),
        ("conv_channels", 6, "layers.0.convolution_branch"),
    ]


def test_the_merge_stays_while_its_layer_does():
    encoder = make_encoder()
    declaration = branchformer_structures(encoder)
    plan = full_plan(declaration)
    plan.keep["layers.0.mha_layer"][:] = False
    plan.keep["layers.0.convolution_branch"][:] = False
    cut_(declaration, plan)
    left = [name for name, _ in encoder.layers[0].named_parameters()]
    assert left == ["merge_proj.weight", "merge_proj.bias"]
    x = torch.rand(1, 5, 8)
    output, weights = encoder.layers[0](x, pos_embs=torch.rand(1, 9, 8))
    assert torch.allclose(output, x + encoder.layers[0].merge_proj.bias)
    assert weights is None
