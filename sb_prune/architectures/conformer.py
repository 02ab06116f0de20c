"""Structures of SpeechBrain's `ConformerEncoder`.

These are the hidden units of both feed-forward modules, attention heads,
channels of the convolution module, and whole modules and layers (Jiang et al.,
"Accurate and Structured Pruning for Efficient Automatic Speech Recognition",
Interspeech 2023).

Shapes: d model width, c channels, T frames.
"""

from functools import partial

import torch
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder

from sb_prune.architectures.activations import refused_activation
from sb_prune.architectures.attention import attention
from sb_prune.architectures.feed_forward import feed_forward
from sb_prune.architectures.indices import consecutive
from sb_prune.architectures.parts import (
    Part,
    unless_gone,
    weight_operations,
    whole_linear,
)
from sb_prune.architectures.stacks import NAMES, Layer, declare
from sb_prune.cut.surgery import Absent
from sb_prune.declare.structure import Slices, Structure
from sb_prune.support.values import Pattern, checked

KINDS = (
    "layers",
    "ffn_modules",
    "attention_modules",
    "conv_modules",
    "ffn_units",
    "heads",
    "conv_channels",
)


@checked
def conformer_structures(root, kinds: NAMES = None, only: Pattern() = ""):
    """Declares what can be cut in every `ConformerEncoder` below a module.

    Arguments
    ---------
    root : torch.nn.Module
        E.g. a `TransformerASR`, or the encoder itself.
    kinds : list of str, optional
        Which of `KINDS` to declare; by default all.
    only : str
        Regular expression that structure names must contain; empty: all.

    Returns
    -------
    Declaration

    Raises
    ------
    ValueError
        If there is no Conformer encoder below root, a kind is unknown, or a
        kind or `only` matches nothing.

    Example
    -------
    >>> encoder = ConformerEncoder(2, d_model=8, d_ffn=16, nhead=2)
    >>> declaration = conformer_structures(encoder, kinds=["heads"])
    >>> [(s.name, s.units) for s in declaration.structures]
    [('layers.0.mha_layer.heads', 2), ('layers.1.mha_layer.heads', 2)]
    """
    return declare(root, CONFORMER, KINDS, kinds, only)


def conformer_layer(name, layer):
    """Describes a ConformerEncoderLayer.

    Arguments
    ---------
    name : str
        Name of the layer from the root.
    layer : torch.nn.Module

    Returns
    -------
    Layer
    """
    mha, conv = f"{name}.mha_layer", f"{name}.convolution_module"
    return Layer(
        parts=(
            _macaron_half(f"{name}.ffn_module1", layer.ffn_module1),
            attention(mha, layer.mha_layer, norm=f"{name}.norm1"),
            _convolution(conv, layer.convolution_module),
            _macaron_half(f"{name}.ffn_module2", layer.ffn_module2),
        )
    )


CONFORMER = {ConformerEncoder: conformer_layer}


@unless_gone
def _macaron_half(name, half):
    """Describes one of the two feed-forward modules.

    It is a Sequential of LayerNorm, PositionalwiseFeedForward and Dropout.
    """
    return feed_forward(name, half[1], path=f"{name}.1")


@unless_gone
def _convolution(name, conv):
    """Describes the convolution module.

    It is a pointwise convolution to 2c channels, a GLU, a depthwise
    convolution, a norm over c channels and a pointwise convolution to d.
    """
    each = consecutive(conv.conv.out_channels)
    channels = len(each)
    glu = torch.cat([each, each + channels], dim=1)  # of value and gate
    cuts = [
        Slices(f"{name}.bottleneck.0.weight", 0, glu),
        Slices(f"{name}.conv.weight", 0, each),
        Slices(f"{name}.after_conv.0.weight", 0, each),
        Slices(f"{name}.after_conv.0.bias", 0, each),
        Slices(f"{name}.after_conv.2.weight", 1, each),
    ]
    if conv.conv.bias is not None:
        cuts.append(Slices(f"{name}.bottleneck.0.bias", 0, glu))
        cuts.append(Slices(f"{name}.conv.bias", 0, each))
    units = Structure(
        name=f"{name}.channels",
        kind="conv_channels",
        units=channels,
        masks=(Slices(f"{name}.after_conv.2.weight", 1, each),),
        cuts=tuple(cuts),
        norms=(Slices(f"{name}.after_conv.0", None, each),),
        counts=((f"{name}.conv", "groups"),),
    )
    absent = partial(Absent, padding=conv.padding)  # streaming reads it
    module = Structure(
        name=name,
        kind="conv_modules",
        units=1,
        masks=whole_linear(f"{name}.after_conv.2", conv.after_conv[2]),
        removes=((name, absent),),
    )
    return Part(
        module,
        units,
        _convolution_operations(name, conv),
        refused=refused_activation(units.kind, conv.after_conv[1], channels),
    )


def _convolution_operations(name, conv):
    extra = conv.padding if conv.causal else 0  # frames computed and discarded
    pointwise = ["bottleneck.0", "after_conv.2"]
    operations = (
        weight_operations(name, conv, pointwise),
        weight_operations(name, conv, ["conv"], lambda frames: frames + extra),
    )
    return lambda frames: [o for each in operations for o in each(frames)]
