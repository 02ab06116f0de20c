"""What the Transformer files declare, leave and refuse."""

import pytest
import torch
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerDecoder,
    TransformerEncoder,
)

from sb_prune import (
    cut_,
    decoder_structures,
    mac_cost,
    transformer_structures,
)
from sb_prune.cut.surgery import Absent
from sb_prune.declare.plan import full_plan


def make_decoder(**options):
    return TransformerDecoder(1, nhead=2, d_ffn=6, d_model=8, **options)


def make_encoder(**options):
    return TransformerEncoder(1, nhead=2, d_ffn=6, d_model=8, **options)


def close(declaration, kind):
    plan = full_plan(declaration)
    for structure in declaration.structures:
        if structure.kind == kind:
            plan.keep[structure.name][:] = False
    return plan


def test_kinds_and_parents_of_a_decoder():
    declaration = decoder_structures(make_decoder())
    listed = [(s.kind, s.units, s.parent) for s in declaration.structures]
    assert listed == [
        ("layers", 1, None),
        ("attention_modules", 1, "layers.0"),
        ("heads", 2, "layers.0.self_attn"),
        ("cross_attention_modules", 1, "layers.0"),
        ("cross_heads", 2, "layers.0.multihead_attn"),
        ("ffn_modules", 1, "layers.0"),
        ("ffn_units", 6, "layers.0.pos_ffn"),
    ]


@pytest.mark.parametrize("normalize_before", [True, False])
def test_norms_go_only_where_they_come_first(normalize_before):
    decoder = make_decoder(normalize_before=normalize_before)
    declaration = decoder_structures(decoder)
    cut_(declaration, close(declaration, "layers"))
    layer = decoder.layers[0]
    for module in (layer.self_attn, layer.multihead_attn, layer.pos_ffn):
        assert isinstance(module, Absent)
    left = {name.split(".")[0] for name, _ in layer.named_parameters()}
    assert left == (set() if normalize_before else {"norm1", "norm2", "norm3"})


def test_a_decoder_without_cross_attention_returns_as_many_values():
    decoder = make_decoder(normalize_before=True)
    declaration = decoder_structures(decoder)
    cut_(declaration, close(declaration, "cross_attention_modules"))
    outputs = decoder(torch.rand(3, 4, 8), torch.rand(3, 7, 8))
    _, (own,), (cross,) = outputs
    assert own.shape == (3, 4, 4)
    assert cross.shape == (3, 4, 7)
    assert not cross.any()


def test_decoder_macs_follow_the_tokens():
    def macs(kind, tokens_per_frame):
        declaration = decoder_structures(
            make_decoder(), tokens_per_frame=tokens_per_frame
        )
        kept = close(declaration, kind).kept_counts(declaration)
        cost = mac_cost(declaration, frames=100)
        return cost.dense() - float(cost.of_kept(kept))

    for tokens in (10, 50):
        assert macs("ffn_modules", tokens / 100) == tokens * 2 * 6 * 8
        projections = 2 * (tokens + 100) * 8 * 8
        pairs = 2 * tokens * 100 * 8
        assert macs("cross_attention_modules", tokens / 100) == pytest.approx(
            projections + pairs
        )


@pytest.mark.parametrize(
    "make, arguments, text",
    [
        (decoder_structures, {"kinds": ["conv_channels"]}, "cannot be cut"),
        (decoder_structures, {"tokens_per_frame": 0}, "tokens_per_frame: 0"),
        (transformer_structures, {}, "no TransformerEncoder found"),
    ],
)
def test_refuses(make, arguments, text):
    with pytest.raises(ValueError, match=text):
        make(make_decoder(), **arguments)


@pytest.mark.parametrize(
    "options, left, what",
    [
        (
            {"attention_type": "hypermixing"},
            ["ffn_modules", "ffn_units"],
            "self_att is a HyperMixing; write attention_type: RelPosMHAXL",
        ),
        (
            {"ffn_type": "1dcnn"},
            ["attention_modules", "heads"],
            "pos_ffn is a Sequential; write ffn_type: regularFFN",
        ),
        (
            {"kdim": 4, "vdim": 4},
            ["ffn_modules", "ffn_units"],
            "self_att is a MultiheadAttention with kdim or vdim",
        ),
    ],
)
def test_modules_of_other_classes_stay(options, left, what):
    encoder = make_encoder(**options)
    proposal = rf"{what}.*, or kinds: \[{left[0]}, {left[1]}\]"
    with pytest.raises(ValueError, match=proposal):
        transformer_structures(encoder)
    kinds = [s.kind for s in transformer_structures(encoder, left).structures]
    assert kinds == left
    others = {"heads", "ffn_units"} - set(left)
    with pytest.raises(ValueError, match=what):
        transformer_structures(encoder, [*left, *others])
