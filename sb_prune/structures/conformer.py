"""Structures of SpeechBrain's `ConformerEncoder`.

FFN hidden units of both macaron halves, attention
heads, channels of the convolution module, and whole modules and layers
(Jiang et al., "Accurate and Structured Pruning for Efficient Automatic Speech
Recognition", Interspeech 2023).

Shapes: d model width, h FFN hidden units, H heads, k head width, c channels,
T frames.
"""

import re
from dataclasses import replace
from functools import partial

import torch
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.nnet.attention import (
    MultiheadAttention,
    RelPosMHAXL,
    RoPEMHA,
)

from sb_prune.attention import FewerHeads
from sb_prune.structure import Declaration, Operation, Slices, Structure
from sb_prune.surgery import Absent

KINDS = (
    "layers",
    "ffn_modules",
    "attention_modules",
    "conv_modules",
    "ffn_units",
    "heads",
    "conv_channels",
)
SUPPORTED_ATTENTION = (RelPosMHAXL, RoPEMHA, MultiheadAttention)


def conformer_structures(root, kinds=KINDS, only=""):
    """Declares what can be cut in every `ConformerEncoder` below a module.

    Arguments
    ---------
    root : torch.nn.Module
        E.g. a `TransformerASR`, or the encoder itself.
    kinds : list of str
        Which of `KINDS` to declare.
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
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(
            f"kinds: {unknown} cannot be cut in a Conformer; write some of "
            f"{list(KINDS)}"
        )
    encoders = {
        name: module
        for name, module in root.named_modules()
        if isinstance(module, ConformerEncoder)
    }
    if not encoders:
        raise ValueError(
            f"module: no ConformerEncoder found in {type(root).__name__}; "
            "name the module that holds one (encoder_module: conformer), or "
            "another `structures` function"
        )
    structures, layers, operations = [], [], []
    for prefix, encoder in encoders.items():
        for index, layer in enumerate(encoder.layers):
            name = ".".join(filter(None, [prefix, "layers", str(index)]))
            layers.append(name)
            structures += _layer_structures(name, layer, kinds)
            operations.append(partial(_layer_operations, name, layer))
    _check_matched(structures, kinds)
    return Declaration(
        root=root,
        scope=tuple(encoders),
        structures=_select(structures, only),
        operations=lambda frames: [
            operation for each in operations for operation in each(frames)
        ],
        layers=tuple(layers),
        layerdrop=max(e.layerdrop_prob for e in encoders.values()),
    )


def _check_matched(structures, kinds):
    missing = set(kinds) - {s.kind for s in structures}
    if missing:
        raise ValueError(
            f"kinds: {sorted(missing)} match nothing in this model; remove "
            "them, or use an attention_type of RelPosMHAXL, RoPEMHA or "
            "regularMHA"
        )


def _select(structures, only):
    chosen = [s for s in structures if re.search(only, s.name)]
    if not chosen:
        raise ValueError(
            f"only: {only!r} matches none of {[s.name for s in structures]}"
        )
    names = {s.name for s in chosen}
    orphans = [s.name for s in chosen if s.parent and s.parent not in names]
    if orphans:
        raise ValueError(
            f"only: {only!r} leaves out the parents of {orphans}; match them "
            "too, or leave their kind out of `kinds`"
        )
    return tuple(chosen)


def _layer_structures(name, layer, kinds):
    """All structures of one ConformerEncoderLayer, parents first."""
    modules = [
        _ffn(f"{name}.ffn_module1", layer.ffn_module1),
        _convolution(f"{name}.convolution_module", layer.convolution_module),
        _ffn(f"{name}.ffn_module2", layer.ffn_module2),
    ]
    if isinstance(layer.mha_layer, SUPPORTED_ATTENTION):
        modules.insert(1, _attention(name, layer))
    elif "layers" in kinds:
        raise ValueError(
            f"kinds: layers of {type(layer.mha_layer).__name__} cannot be cut "
            "whole; leave `layers` out"
        )
    found = []
    if "layers" in kinds:
        found.append(
            Structure(
                name=name,
                kind="layers",
                units=1,
                masks=sum((module.masks for module, _ in modules), ()),
                removes=sum((module.removes for module, _ in modules), ()),
            )
        )
    for module, leaf in modules:
        parent = name if "layers" in kinds else None
        if module.kind in kinds:
            found.append(replace(module, parent=parent))
            parent = module.name
        if leaf.kind in kinds:
            found.append(replace(leaf, parent=parent))
    return found


def _ffn(name, ffn):
    """ffn: Sequential(LayerNorm, PositionalwiseFeedForward, Dropout)."""
    first, second = f"{name}.1.ffn.0", f"{name}.1.ffn.3"
    width, hidden = ffn[1].ffn[3].weight.shape  # (d, h)
    each = _rows(hidden)
    units = Structure(
        name=f"{name}.units",
        kind="ffn_units",
        units=hidden,
        masks=(Slices(f"{second}.weight", 1, each),),
        cuts=(
            Slices(f"{first}.weight", 0, each),
            Slices(f"{first}.bias", 0, each),
            Slices(f"{second}.weight", 1, each),
        ),
    )
    module = Structure(
        name=name,
        kind="ffn_modules",
        units=1,
        masks=_whole_linear(second, width),
        removes=((name, Absent),),
    )
    return module, units


def _convolution(name, conv):
    """conv: pointwise to 2c, GLU, depthwise, norm over c, pointwise to d."""
    last = conv.after_conv[2]
    width, channels = last.weight.shape  # (d, c)
    each = _rows(channels)
    biased = conv.conv.bias is not None
    glu = torch.cat([each, each + channels], dim=1)  # value and gate halves
    cuts = [
        Slices(f"{name}.bottleneck.0.weight", 0, glu),
        Slices(f"{name}.conv.weight", 0, each),
        Slices(f"{name}.after_conv.0.weight", 0, each),
        Slices(f"{name}.after_conv.0.bias", 0, each),
        Slices(f"{name}.after_conv.2.weight", 1, each),
    ]
    if biased:
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
        masks=_whole_linear(f"{name}.after_conv.2", width, biased),
        removes=((name, absent),),
    )
    return module, units


def _attention(layer_name, layer):
    """The attention of a layer, with the norm that feeds only it."""
    name, attention = f"{layer_name}.mha_layer", layer.mha_layer
    width = layer.norm1.norm.weight.shape[0]
    if isinstance(attention, MultiheadAttention):
        leaf, out = _stacked_heads(name, attention), f"{name}.att.out_proj"
    else:
        leaf, out = _interleaved_heads(name, attention), f"{name}.out_proj"
    module = Structure(
        name=name,
        kind="attention_modules",
        units=1,
        masks=_whole_linear(out, width),
        removes=(
            (name, partial(Absent, extra_outputs=1)),
            (f"{layer_name}.norm1", torch.nn.Identity),
        ),
    )
    return module, leaf


def _interleaved_heads(name, attention):
    """RelPosMHAXL, RoPEMHA: in_proj_weight holds [q_h; k_h; v_h] per head."""
    heads, width = attention.num_heads, attention.head_dim
    each = _rows(heads, width)
    cuts = [
        Slices(f"{name}.in_proj_weight", 0, _rows(heads, 3 * width)),
        Slices(f"{name}.out_proj.weight", 1, each),
    ]
    if attention.vbias is not None:
        cuts.append(Slices(f"{name}.value_bias_weight", 0, each))
    if isinstance(attention, RelPosMHAXL):
        cuts += [
            Slices(f"{name}.linear_pos.weight", 0, each),
            Slices(f"{name}.pos_bias_u", None, each),
            Slices(f"{name}.pos_bias_v", None, each),
        ]
    return Structure(
        name=f"{name}.heads",
        kind="heads",
        units=heads,
        masks=(Slices(f"{name}.out_proj.weight", 1, each),),
        cuts=tuple(cuts),
        counts=((name, "num_heads"),),
    )


def _stacked_heads(name, attention):
    """nn.MultiheadAttention: in_proj_weight holds all q, all k, all v."""
    inner = attention.att
    if inner.in_proj_weight is None:
        raise ValueError(
            f"{name}: heads of an attention with kdim or vdim cannot be cut; "
            "leave `heads` out of `kinds`, or leave kdim and vdim unset"
        )
    name, heads, width = f"{name}.att", inner.num_heads, inner.head_dim
    each = _rows(heads, width)
    qkv = torch.cat([each + i * inner.embed_dim for i in range(3)], dim=1)
    cuts = [
        Slices(f"{name}.in_proj_weight", 0, qkv),
        Slices(f"{name}.out_proj.weight", 1, each),
    ]
    if inner.in_proj_bias is not None:
        cuts.append(Slices(f"{name}.in_proj_bias", 0, qkv))
    return Structure(
        name=f"{name.removesuffix('.att')}.heads",
        kind="heads",
        units=heads,
        masks=(Slices(f"{name}.out_proj.weight", 1, each),),
        cuts=tuple(cuts),
        counts=((name, "num_heads"),),
        adapters=((name, FewerHeads),),
    )


def _rows(units, entries=1):
    """(units, entries) indices of consecutive blocks."""
    return torch.arange(units * entries).view(units, entries)


def _whole_linear(name, width, bias=True):
    """A module's gate multiplies its last weight and bias."""
    tensors = ["weight", "bias"] if bias else ["weight"]
    return tuple(Slices(f"{name}.{t}", 0, _rows(1, width)) for t in tensors)


def _layer_operations(name, layer, frames):
    """MACs of one layer on one utterance."""
    found = []
    for half in ("ffn_module1", "ffn_module2"):
        module = f"{name}.{half}"
        for linear in (0, 3):
            weight = getattr(layer, half)[1].ffn[linear].weight
            found.append(
                Operation(
                    frames * weight.numel(),
                    module,
                    tensor=f"{module}.1.ffn.{linear}.weight",
                )
            )
    found += _attention_operations(f"{name}.mha_layer", layer, frames)
    found += _convolution_operations(
        f"{name}.convolution_module", layer.convolution_module, frames
    )
    return found


def _convolution_operations(name, conv, frames):
    extra = conv.padding if conv.causal else 0  # computed, then chomped
    lengths = {
        "bottleneck.0": frames,
        "conv": frames + extra,
        "after_conv.2": frames,
    }
    return [
        Operation(
            length * conv.get_submodule(part).weight.numel(),
            name,
            tensor=f"{name}.{part}.weight",
        )
        for part, length in lengths.items()
    ]


def _attention_operations(name, layer, frames):
    attention = layer.mha_layer
    heads = (f"{name}.heads",)
    if not isinstance(attention, SUPPORTED_ATTENTION):
        return []
    inner, prefix = attention, name
    if isinstance(attention, MultiheadAttention):
        inner, prefix = attention.att, f"{name}.att"
    projections = {
        "in_proj_weight": (inner.in_proj_weight, frames),
        "out_proj.weight": (inner.out_proj.weight, frames),
    }
    pairs = 2 * frames  # scores and values
    if isinstance(attention, RelPosMHAXL):
        positions = 2 * frames - 1
        projections["linear_pos.weight"] = (inner.linear_pos.weight, positions)
        pairs += positions
    found = [
        Operation(length * w.numel(), name, tensor=f"{prefix}.{tensor}")
        for tensor, (w, length) in projections.items()
    ]
    macs = frames * pairs * inner.num_heads * inner.head_dim
    return found + [Operation(macs, name, structures=heads)]
