"""What the Conformer file declares and refuses."""

import re

import pytest
import torch

from sb_prune import conformer_structures
from sb_prune.architectures.conformer import KINDS


def test_kinds_and_units(make_asr):
    declaration = conformer_structures(make_asr(layers=1))
    units = [(s.kind, s.units) for s in declaration.structures]
    assert units == [
        ("layers", 1),
        ("ffn_modules", 1),
        ("ffn_units", 32),
        ("attention_modules", 1),
        ("heads", 4),
        ("conv_modules", 1),
        ("conv_channels", 16),
        ("ffn_modules", 1),
        ("ffn_units", 32),
    ]


def test_parents_are_the_declared_ones(make_asr):
    def parent(kinds):
        declaration = conformer_structures(make_asr(), kinds)
        return declaration.by_name["encoder.layers.0.mha_layer.heads"].parent

    assert parent(KINDS) == "encoder.layers.0.mha_layer"
    assert parent(["layers", "heads"]) == "encoder.layers.0"
    assert parent(["heads"]) is None


def test_only_selects_by_name(make_asr):
    declaration = conformer_structures(make_asr(), only=r"layers\.1")
    assert {s.name.split(".")[2] for s in declaration.structures} == {"1"}


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"kinds": ["heads", "head"]}, r"kinds: \['head'\] cannot be cut"),
        ({"only": "decoder"}, "only: 'decoder' matches none of"),
        ({"only": "heads"}, "only: 'heads' leaves out the parents"),
    ],
)
def test_refuses(make_asr, arguments, text):
    with pytest.raises(ValueError, match=text):
        conformer_structures(make_asr(), **arguments)


def test_refuses_a_model_without_a_conformer():
    with pytest.raises(ValueError, match="no ConformerEncoder .* in Linear"):
        conformer_structures(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["layers", "heads", "attention_modules"])
def test_hypermixing_has_no_heads(make_asr, kind):
    with pytest.raises(
        ValueError,
        match=rf"kinds: \['{kind}'\] cannot be cut, for encoder.layers.0."
        "mha_layer is a HyperMixing; write attention_type: RelPosMHAXL",
    ):
        conformer_structures(make_asr("hypermixing"), kinds=[kind])


def test_hypermixing_can_lose_the_rest(
    make_asr, encode, random_plan, masked_and_cut
):
    model = make_asr("hypermixing")
    with pytest.raises(ValueError, match="or kinds: ") as refusal:
        conformer_structures(model)
    proposed = re.search(r"or kinds: \[(.*)\]", str(refusal.value))[1]
    kinds = proposed.split(", ")
    assert set(KINDS) - set(kinds) == {"layers", "attention_modules", "heads"}
    declaration = conformer_structures(model, kinds)
    plan = random_plan(declaration, keep=0.7)
    masked, cut = masked_and_cut(declaration, plan, encode)
    assert (masked - cut).abs().max() <= 1e-5


def test_encoder_as_root(make_asr):
    encoder = make_asr().encoder
    names = [s.name for s in conformer_structures(encoder).structures]
    assert names[0] == "layers.0"
