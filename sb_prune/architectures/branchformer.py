"""Structures of SpeechBrain's `BranchformerEncoder`.

These are attention heads, channels of the convolutional gating MLP (cgMLP),
each of the two branches as a whole, and whole layers. A removed branch gives
zeros to the projection that merges the two, which keeps its size.

Shapes: B utterances, T frames, d model width, c channels.
"""

from dataclasses import replace
from functools import partial

import torch
from speechbrain.lobes.models.transformer.Branchformer import (
    BranchformerEncoder,
)

from sb_prune.architectures.activations import refused_activation
from sb_prune.architectures.attention import attention
from sb_prune.architectures.indices import consecutive
from sb_prune.architectures.parts import (
    NotCut,
    Part,
    weight_operations,
    whole_linear,
)
from sb_prune.architectures.stacks import NAMES, Layer, declare
from sb_prune.cut.surgery import Absent
from sb_prune.declare.structure import Slices, Structure
from sb_prune.support.values import Pattern, checked

KINDS = (
    "layers",
    "attention_modules",
    "conv_modules",
    "heads",
    "conv_channels",
)


class AbsentBranch(Absent):
    """Takes the place of a removed branch; returns zeros (B, T, d) to merge."""

    def zero(self, x):
        """Returns zeros of the shape of x, without memory of their own."""
        return super().zero(x).expand_as(x)


@checked
def branchformer_structures(root, kinds: NAMES = None, only: Pattern() = ""):
    """Declares what can be cut in every `BranchformerEncoder` below a module.

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
        If there is no Branchformer encoder below root, a kind is unknown, or
        a kind or `only` matches nothing.

    Example
    -------
    >>> encoder = BranchformerEncoder(1, 8, nhead=2, csgu_linear_units=24)
    >>> declaration = branchformer_structures(encoder)
    >>> [(s.kind, s.units) for s in declaration.structures if s.is_leaf]
    [('heads', 2), ('conv_channels', 12)]
    """
    return declare(root, BRANCHFORMER, KINDS, kinds, only)


def branchformer_layer(name, layer):
    """Describes a BranchformerEncoderLayer.

    Arguments
    ---------
    name : str
        Name of the layer from the root.
    layer : torch.nn.Module

    Returns
    -------
    Layer
    """
    merge = f"{name}.merge_proj"
    if isinstance(layer.merge_proj, Absent):  # removed by an earlier cut
        return Layer(parts=())
    return Layer(
        parts=(_attention(name, layer), _gating_mlp(name, layer)),
        masks=whole_linear(merge, layer.merge_proj),
        removes=((merge, Absent),),
        operations=weight_operations(merge, layer, ["merge_proj"], path=name),
    )


BRANCHFORMER = {BranchformerEncoder: branchformer_layer}


def _attention(name, layer):
    norm, mha = f"{name}.norm_mhsa", f"{name}.mha_layer"
    part = attention(mha, layer.mha_layer)
    if isinstance(part, NotCut):  # there is no RoPEMHA in a Branchformer
        return replace(part, remedy="attention_type: RelPosMHAXL or regularMHA")
    if part is None:
        return None
    absent = partial(AbsentBranch, extra_outputs=1)
    removes = ((mha, absent), (norm, torch.nn.Identity))
    return replace(part, module=replace(part.module, removes=removes))


def _gating_mlp(layer_name, layer):
    """Describes the cgMLP branch.

    It is a Linear to 2c channels, of which one half, after a norm and a
    depthwise convolution, gates the other, and a Linear back to d.
    """
    name, branch = f"{layer_name}.convolution_branch", layer.convolution_branch
    if isinstance(branch, Absent):
        return None
    module = Structure(
        name=name,
        kind="conv_modules",
        units=1,
        masks=whole_linear(
            f"{name}.post_channel_proj", branch.post_channel_proj
        ),
        removes=(
            (name, AbsentBranch),
            (f"{layer_name}.norm_conv", torch.nn.Identity),
        ),
    )
    parts = ["pre_channel_proj", "csgu.conv.conv", "post_channel_proj"]
    if branch.csgu.use_linear_after_conv:
        parts.append("csgu.linear")
    operations = weight_operations(name, branch, parts)
    units = _channels(name, branch)
    refused = [
        refused_activation(units.kind, activation, size)
        for activation, size in (
            (branch.activation, 2 * units.units),
            (branch.csgu.activation, units.units),
        )
    ]
    return Part(module, units, operations, refused=sum(refused, ()))


def _channels(name, branch):
    csgu = f"{name}.csgu"
    each = consecutive(branch.post_channel_proj.in_features)
    halves = torch.cat([each, each + len(each)], dim=1)
    masks = [Slices(f"{name}.post_channel_proj.weight", 1, each)]
    cuts = [
        Slices(f"{name}.pre_channel_proj.weight", 0, halves),
        Slices(f"{name}.pre_channel_proj.bias", 0, halves),
        Slices(f"{csgu}.norm.norm.weight", 0, each),
        Slices(f"{csgu}.norm.norm.bias", 0, each),
        Slices(f"{csgu}.conv.conv.weight", 0, each),
        Slices(f"{csgu}.conv.conv.bias", 0, each),
        Slices(f"{name}.post_channel_proj.weight", 1, each),
    ]
    if branch.csgu.use_linear_after_conv:  # this Linear reads channels too
        masks.append(Slices(f"{csgu}.linear.weight", 1, each))
        cuts += [
            Slices(f"{csgu}.linear.weight", 0, each),
            Slices(f"{csgu}.linear.weight", 1, each),
            Slices(f"{csgu}.linear.bias", 0, each),
        ]
    return Structure(
        name=f"{name}.channels",
        kind="conv_channels",
        units=len(each),
        masks=tuple(masks),
        cuts=tuple(cuts),
        norms=(Slices(f"{csgu}.norm.norm", None, each),),
        counts=((f"{csgu}.conv.conv", "groups"),),
    )
