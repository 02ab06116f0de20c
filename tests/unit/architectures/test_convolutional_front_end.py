"""Where the channels of a front-end lie, and what is refused."""

from functools import partial

import pytest
import torch
from speechbrain.nnet.CNN import Conv2d, DepthwiseSeparableConv2d
from speechbrain.nnet.normalization import BatchNorm2d, LayerNorm

from sb_prune import cut_, front_end_structures

READER = "Transformer.custom_src_module.layers.0.w"


def test_channels_in_columns_of_the_reader(make_front_end):
    """Silencing a channel changes what the reader sees in its columns only."""
    root = make_front_end()
    structure = front_end_structures(root).structures[-1]
    (columns,) = [
        m.index for m in structure.masks if m.tensor.startswith(READER)
    ]
    with torch.no_grad():
        made = root["CNN"](torch.randn(1, 20, 12))
        for channel in range(structure.units):
            silenced = made.clone()
            silenced[..., channel] += 1
            changed = (silenced != made).flatten(2)[0, 0].nonzero().flatten()
            assert columns[channel].tolist() == changed.tolist()


def test_residual_blocks_couple_both_paths(make_front_end):
    root = make_front_end(residuals=(True, False))
    first, last = front_end_structures(root).structures
    made = {c.tensor.rpartition(".")[0] for c in first.cuts if c.dim == 0}
    assert made == {
        "CNN.convblock_0.convs.conv_0.conv",
        "CNN.convblock_0.reduce_conv.conv.conv",
    }
    assert len(first.norms) == 2 and len(last.norms) == 1


def test_operations_outlive_the_cut(make_front_end, random_plan):
    declaration = front_end_structures(make_front_end(residuals=(True, True)))
    dense = declaration.operations(50)
    cut_(declaration, random_plan(declaration))
    assert declaration.operations(50) == dense
    assert declaration.output_frames(50) == 13


def test_reader_may_be_named(make_front_end):
    root = make_front_end()
    named = front_end_structures(root, reader=READER)
    found = front_end_structures(root)
    assert named.scope == found.scope == ("CNN", READER)
    # where there is no TransformerASR it must be
    bare = torch.nn.ModuleDict(
        {"CNN": root["CNN"], "lin": torch.nn.Linear(3 * 4, 2)}
    )
    assert front_end_structures(bare, "lin").scope == ("CNN", "lin")
    with pytest.raises(
        ValueError, match=r"0 TransformerASR .* write `reader:`"
    ):
        front_end_structures(bare)


@pytest.mark.parametrize(
    "reader, message",
    [
        ("Transformer.nothing", "no torch.nn.Linear below `module`; write"),
        ("CNN", "'CNN' is no torch.nn.Linear below `module`; write"),
        (
            "Transformer.encoder.layers.0.ffn_module1.1.ffn.0",
            "reads 16 features, but the front-end makes 3 x 4; write `reader:`",
        ),
    ],
)
def test_wrong_readers_are_refused(make_front_end, reader, message):
    with pytest.raises(ValueError, match=message):
        front_end_structures(make_front_end(), reader)


def test_root_without_or_with_two_front_ends_is_refused(make_front_end):
    root = make_front_end()
    with pytest.raises(ValueError, match=r"0 ConvolutionFrontEnd .*list"):
        front_end_structures(root["Transformer"])
    root["CNN2"] = make_front_end()["CNN"]
    with pytest.raises(ValueError, match=r"2 ConvolutionFrontEnd .*list"):
        front_end_structures(root)


class Weighted(Conv2d):
    """A convolution of the user's own."""


@pytest.mark.parametrize(
    "conv_module",
    [
        DepthwiseSeparableConv2d,
        Weighted,
        partial(Conv2d, weight_norm=True),
        partial(Conv2d, max_norm=1.0),
    ],
)
def test_other_convolutions_are_refused(make_front_end, conv_module):
    root = make_front_end(conv_module=Conv2d)
    for block in root["CNN"].values():
        arguments = {"input_shape": (1, 20, 12, 6), "kernel_size": 3}
        block.convs["conv_0"] = conv_module(out_channels=6, **arguments)
    message = r"CNN.convblock_0.convs.conv_0: of conv_module, only .* write"
    with pytest.raises(ValueError, match=message):
        front_end_structures(root)


@pytest.mark.parametrize(
    "norm", [BatchNorm2d, partial(LayerNorm, elementwise_affine=False)]
)
def test_other_norms_are_refused(make_front_end, norm):
    root = make_front_end()
    root["CNN"].convblock_1.convs["norm_0"] = norm(input_shape=(1, 9, 3, 4))
    message = r"CNN.convblock_1.convs.norm_0: .* write norm: !name:"
    with pytest.raises(ValueError, match=message):
        front_end_structures(root)


def test_other_blocks_are_refused(make_front_end):
    root = make_front_end()
    root["CNN"]["pool"] = torch.nn.Identity()
    with pytest.raises(ValueError, match="CNN.pool: a front-end with a Identi"):
        front_end_structures(root)
