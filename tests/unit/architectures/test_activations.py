"""Activations between the layers that lose units."""

import pytest
import torch
from speechbrain.nnet.activations import Softmax, Swish
from torch import nn

from sb_prune import (
    branchformer_structures,
    conformer_structures,
    front_end_structures,
    transformer_structures,
)
from sb_prune.architectures.activations import acts_per_unit


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(inplace=True),
        nn.GELU(),
        nn.Identity(),
        nn.PReLU(),
        nn.PReLU(device="meta"),
        nn.RReLU(),
        Swish(),
        torch.tanh,
    ],
)
def test_what_acts_on_each_unit_alone(activation):
    generators = torch.get_rng_state()
    assert acts_per_unit(activation, 7)
    assert torch.equal(torch.get_rng_state(), generators)


@pytest.mark.parametrize(
    "activation",
    [
        nn.Softmax(dim=-1),
        Softmax(),
        nn.GLU(),
        nn.PReLU(8),
        nn.LayerNorm(8),
        nn.Flatten(),
        lambda x: x.flip(-1),
    ],
)
def test_what_does_not(activation):
    assert not acts_per_unit(activation, 8)


class Soft(nn.Softmax):
    """Over the units, as an activation without arguments."""

    def __init__(self):
        super().__init__(dim=-1)


@pytest.mark.parametrize(
    "structures, options, kind, module",
    [
        (
            transformer_structures,
            {"encoder_module": "transformer", "activation": Soft},
            "ffn_units",
            "encoder.layers.0.pos_ffn",
        ),
        (
            conformer_structures,
            {"conformer_activation": Soft},
            "ffn_units",
            "encoder.layers.0.ffn_module1",
        ),
        (
            conformer_structures,
            {"conformer_activation": Soft},
            "conv_channels",
            "encoder.layers.0.convolution_module",
        ),
        (
            branchformer_structures,
            {
                "encoder_module": "branchformer",
                "csgu_linear_units": 24,
                "branchformer_activation": Soft,
            },
            "conv_channels",
            "encoder.layers.0.convolution_branch",
        ),
    ],
)
def test_units_behind_others_are_refused(
    make_asr, structures, options, kind, module
):
    model = make_asr(**options)
    refusal = (
        f"kinds: {kind} of {module} cannot be cut: the activation Soft does "
        f"not act on each unit alone.*or leave {kind} out of `kinds`"
    )
    with pytest.raises(ValueError, match=refusal):
        structures(model, kinds=[kind])
    rest = structures(model, kinds=["layers", "attention_modules", "heads"])
    assert len(rest.structures) == 6


def test_gated_activation_is_refused(make_asr):
    """It halves its input, and would crash at the cut."""
    model = make_asr(encoder_module="transformer")
    for layer in model.encoder.layers:
        layer.pos_ffn.ffn[1] = nn.GLU()
    with pytest.raises(ValueError, match="activation GLU does not act"):
        transformer_structures(model)


def test_channels_of_a_front_end_behind_softmax_are_refused(make_front_end):
    root = make_front_end(activation=Soft)
    refusal = "front_end_channels of CNN.convblock_0.convs.conv_0 cannot be"
    with pytest.raises(ValueError, match=refusal):
        front_end_structures(root)
