"""Attention of SpeechBrain: RelPosMHAXL, RoPEMHA and that of torch.

Shapes: H heads, k head width, L queries, S keys and values.
"""

from dataclasses import replace

import torch
from speechbrain.nnet.attention import (
    MultiheadAttention,
    RelPosMHAXL,
    RoPEMHA,
)
from speechbrain.nnet.hypermixing import HyperMixing

from sb_prune.architectures.heads import (
    INSIDE_HEADS,
    absent_self_attention,
    already_unequal,
    dims_of_heads,
    pair_operations,
    whole_attention,
    widths_of_heads,
)
from sb_prune.architectures.indices import consecutive, each_of, of_widths
from sb_prune.architectures.parts import (
    NotCut,
    Part,
    same_length,
    uncut_operations,
    unless_gone,
)
from sb_prune.cut.modules.attention import (
    FewerHeads,
    UnequalMultiheadAttention,
    UnequalRelPosMHAXL,
)
from sb_prune.cut.modules.speechbrain import AbsentCrossAttention
from sb_prune.declare.structure import Operation, Slices, Structure

ATTENTIONS = "RelPosMHAXL, RoPEMHA or regularMHA"


@unless_gone
def attention(name, module, norm=None, steps=same_length, memory=None):
    """Describes an attention module of SpeechBrain and its heads.

    Arguments
    ---------
    name : str
        Name of the module from the root.
    module : torch.nn.Module
        RelPosMHAXL, RoPEMHA or MultiheadAttention.
    norm : str, optional
        Norm before the module, if nothing else reads it; removed with it.
    steps : callable
        frames -> L.
    memory : callable, optional
        frames -> S, for cross-attention; None for self-attention.

    Returns
    -------
    Part, NotCut or None
        NotCut if the heads of such a module cannot be cut, None if it was
        removed by an earlier cut.

    """
    cross = memory is not None
    if cross:
        kinds = ("cross_attention_modules", "cross_heads")
    else:
        kinds = ("attention_modules", "heads", *INSIDE_HEADS)
    what = type(module).__name__
    inner, path = module, name
    if isinstance(module, MultiheadAttention):
        inner, path = module.att, f"{name}.att"
    elif not isinstance(module, (RelPosMHAXL, RoPEMHA)):
        remedy = f"attention_type: {ATTENTIONS}"
        operations = _mixing_operations(name, module, steps)
        return NotCut(name, what, kinds, remedy, operations)
    if getattr(inner, "in_proj_weight", None) is None:
        what = f"{what} with kdim or vdim"
        operations = _whole_operations(name, inner, steps, memory or steps)
        return NotCut(name, what, kinds, "neither of these", operations)
    absent = AbsentCrossAttention if cross else absent_self_attention
    out_proj = f"{path}.out_proj", inner.out_proj
    return Part(
        whole_attention(name, out_proj, absent, norm, cross),
        _heads(name, path, inner, cross),
        _attention_operations(name, path, inner, steps, memory or steps),
        () if cross else _dims(name, path, inner),
    )


def _heads(name, path, inner, cross):
    """Structure of the heads of the module `inner`, which lies at `path`."""
    query_key, value = map(of_widths, widths_of_heads(inner))
    rows = torch.cat(_projection_rows(inner, cross), dim=1)
    out = Slices(f"{path}.out_proj.weight", 1, value)
    cuts = [Slices(f"{path}.in_proj_weight", 0, rows), out]
    wrapped = isinstance(inner, torch.nn.MultiheadAttention)
    if wrapped and inner.in_proj_bias is not None:
        cuts.append(Slices(f"{path}.in_proj_bias", 0, rows))
    if not wrapped and inner.vbias is not None:
        cuts.append(Slices(f"{path}.value_bias_weight", 0, value))
    if isinstance(inner, RelPosMHAXL):
        cuts += [
            Slices(f"{path}.linear_pos.weight", 0, query_key),
            Slices(f"{path}.pos_bias_u", None, query_key),
            Slices(f"{path}.pos_bias_v", None, query_key),
        ]
    heads = Structure(
        name=f"{name}.heads",
        kind="cross_heads" if cross else "heads",
        units=inner.num_heads,
        masks=(out,),
        cuts=tuple(cuts),
        counts=((path, "num_heads"),),
        adapters=((path, FewerHeads),) if wrapped else (),
    )
    return replace(heads, **already_unequal(path, inner))


def _dims(name, path, inner):
    """Structures of the dims inside heads.

    RoPEMHA has none, since it rotates dims in pairs.
    """
    if isinstance(inner, RoPEMHA):
        return ()
    widths = widths_of_heads(inner)
    rows = _projection_rows(inner, cross=False)
    q, k, v = (each_of(part) for part in rows)
    projections = [f"{path}.in_proj_weight"]
    each_value = consecutive(len(v))
    relative, value = [], [Slices(f"{path}.out_proj.weight", 1, each_value)]
    if isinstance(inner, RelPosMHAXL):
        adapter, each = UnequalRelPosMHAXL, consecutive(len(q))
        relative.append(Slices(f"{path}.linear_pos.weight", 0, each))
        biases = [
            Slices(f"{path}.pos_bias_{letter}", None, each) for letter in "uv"
        ]
        if inner.vbias is not None:
            value.append(Slices(f"{path}.value_bias_weight", 0, each_value))
    else:
        adapter, biases = UnequalMultiheadAttention, []
        if inner.in_proj_bias is not None:
            projections.append(f"{path}.in_proj_bias")
    query_key = torch.cat([q, k], dim=1)
    return dims_of_heads(
        name,
        path,
        query_key=(
            (*(Slices(tensor, 0, k) for tensor in projections), *relative),
            (
                *(Slices(tensor, 0, query_key) for tensor in projections),
                *relative,
                *biases,
            ),
        ),
        value=(
            value[:1],
            (*value, *(Slices(tensor, 0, v) for tensor in projections)),
        ),
        widths=widths,
        adapter=adapter,
    )


def _projection_rows(inner, cross):
    """Rows of in_proj_weight of q, k and v that belong to each head.

    torch's attention stacks the rows of all q, then all k, then all v.
    SpeechBrain's does so in cross-attention; in self-attention its rows are
    ordered by head, [q_h; k_h; v_h] for each.

    Returns
    -------
    q, k, v : torch.Tensor
        (H, k) int each, padded with -1.
    """
    query_key, value = widths_of_heads(inner)
    if not cross and not isinstance(inner, torch.nn.MultiheadAttention):
        pieces = [w for q, v in zip(query_key, value) for w in (q, q, v)]
        rows = of_widths(pieces)
        widest = (max(query_key), max(query_key), max(value))
        return tuple(rows[i::3, :width] for i, width in enumerate(widest))
    total = sum(query_key)
    return tuple(
        of_widths(widths, start)
        for widths, start in (
            (query_key, 0),
            (query_key, total),
            (value, 2 * total),
        )
    )


def _mixing_operations(name, module, steps):
    """Makes the function frames -> operations of HyperMixing.

    Of another module that is in the place of attention, only what its weights
    do is counted.
    """
    weights, mixed = uncut_operations(name, module, steps), 0
    if isinstance(module, HyperMixing):
        mixed = 2 * module.input_output_dim * module.hyper.w1_gen.output_size

    return lambda frames: [
        *weights(frames),
        Operation(steps(frames) * mixed, name),
    ]


def _whole_operations(name, inner, steps, memory):
    """Makes the function frames -> operations of torch's attention."""
    sizes = {
        "q": inner.q_proj_weight.numel() + inner.out_proj.weight.numel(),
        "kv": inner.k_proj_weight.numel() + inner.v_proj_weight.numel(),
    }

    def operations(frames):
        queries, keys = steps(frames), memory(frames)
        pairs = 2 * queries * keys * inner.embed_dim
        macs = queries * sizes["q"] + keys * sizes["kv"] + pairs
        return [Operation(macs, name)]

    return operations


def _attention_operations(name, path, inner, steps, memory):
    """Makes the function frames -> operations of L queries over S keys."""
    sizes = {tensor: p.numel() for tensor, p in inner.named_parameters()}
    query_key, value = map(sum, widths_of_heads(inner))
    relative = isinstance(inner, RelPosMHAXL)

    def operations(frames):
        queries, keys = steps(frames), memory(frames)
        positions = (2 * max(queries, keys) - 1) * relative
        rows = queries * query_key + keys * (query_key + value)
        times = {
            "in_proj_weight": rows / (2 * query_key + value),
            "out_proj.weight": queries,
            "linear_pos.weight": positions,
        }
        found = [
            Operation(times[t] * sizes[t], name, tensor=f"{path}.{t}")
            for t in times
            if t in sizes
        ]
        scores, values = keys + positions, keys
        return found + pair_operations(
            name, queries * scores * query_key, queries * values * value
        )

    return operations
