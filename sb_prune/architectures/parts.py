"""Parts of layers that several architectures have in common.

Functions here describe one module of a layer, such as attention or a
feed-forward network (FFN), as a `Part`: the structures of the whole module, of
its units and of what is inside the units, and the operations that it runs.

Shapes: d model width, h FFN hidden units, H heads, k head width, L queries,
S keys and values.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial, wraps
from operator import attrgetter
from typing import Callable

import torch
from speechbrain.nnet.attention import (
    MultiheadAttention,
    PositionalwiseFeedForward,
    RelPosMHAXL,
    RoPEMHA,
)
from torch.nn.utils.rnn import pad_sequence

from sb_prune.cut.modules.attention import (
    FewerHeads,
    UnequalHeads,
    UnequalMultiheadAttention,
    UnequalRelPosMHAXL,
)
from sb_prune.cut.surgery import Absent
from sb_prune.declare.structure import Operation, Slices, Structure

ATTENTIONS = "RelPosMHAXL, RoPEMHA or regularMHA"
INSIDE_HEADS = ("query_key_dims", "value_dims")


@dataclass(frozen=True)
class Part:
    """One module of a layer, which can be removed or cut unit by unit.

    Arguments
    ---------
    module : Structure
        The module as a whole.
    units : Structure
        The units that it consists of, e.g. heads.
    operations : callable
        frames (int) -> list of Operation.
    inside : tuple of Structure
        What each unit consists of, e.g. the dims of heads.
    refused : tuple of (str, str)
        (kind, reason) pairs for kinds that cannot be cut in this module; the
        reason says what to write instead.
    """

    module: Structure
    units: Structure
    operations: Callable
    inside: tuple = ()
    refused: tuple = ()

    @property
    def kinds(self):
        """Kinds of all structures of the module."""
        return tuple(s.kind for s in (self.module, self.units, *self.inside))

    def structures(self, kinds, parent):
        """Lists the module, its units and what is inside, parents first.

        Arguments
        ---------
        kinds : list of str
            The kinds to list.
        parent : str or None
            Structure that contains the module, e.g. its layer.

        Returns
        -------
        list of Structure

        Raises
        ------
        ValueError
            If kinds inside the units are listed without the units, or units of
            unequal sizes without the kinds inside them, or a kind is refused.
        """
        for kind, why in self.refused:
            if kind in kinds:
                raise ValueError(
                    f"kinds: {kind} of {self.module.name} cannot be cut: "
                    f"{why}, or leave {kind} out of `kinds`"
                )
        found = []
        if self.module.kind in kinds:
            found.append(replace(self.module, parent=parent))
            parent = self.module.name
        inside = [s for s in self.inside if s.kind in kinds]
        if self.units.kind in kinds:
            units = _holding(self.units, inside) if inside else self.units
            self._check_equal(units, kinds)
            found.append(replace(units, parent=parent))
        elif inside:
            raise ValueError(
                f"kinds: {inside[0].kind} lie inside {self.units.kind}; write "
                f"{self.units.kind} too"
            )
        return found + [replace(s, parent=self.units.name) for s in inside]

    @property
    def is_unequal(self):
        """Whether an earlier cut has left units of several sizes."""
        return _is_unequal(self.units)

    def _check_equal(self, units, kinds):
        """Refuses units that do not all cut equally much by themselves.

        Their number would not say what they cost.
        """
        if not _is_unequal(units):
            return
        missing = [s.kind for s in self.inside if s.kind not in kinds]
        raise ValueError(
            f"kinds: {units.kind} of {self.module.name} differ in width since "
            f"an earlier cut; write {' and '.join(missing)} too, or leave "
            f"{units.kind} out of `kinds`"
        )


def no_operations(frames):
    """Returns an empty list, for modules without operations of their own."""
    return []


@dataclass(frozen=True)
class NotCut:
    """A module that cannot be cut, so that its layer cannot be removed either.

    Arguments
    ---------
    name : str
        Name of the module from the root.
    what : str
        Its class, for the error message.
    kinds : tuple of str
        The kinds that would cut it.
    remedy : str
        What to write in order to get a module that can be cut.
    operations : callable
        frames (int) -> list of Operation.
    """

    name: str
    what: str
    kinds: tuple
    remedy: str
    operations: Callable = no_operations


def unless_gone(describe):
    """Decorator: returns None for a module that an earlier cut has removed.

    Arguments
    ---------
    describe : callable
        Function of (name, module, ...) that returns a Part or NotCut.

    Returns
    -------
    callable
    """

    @wraps(describe)
    def part(name, module, *args, **kwargs):
        if isinstance(module, Absent):
            return None
        return describe(name, module, *args, **kwargs)

    return part


def _is_unequal(units):
    return any((cut.index < 0).any() for cut in units.cuts)


def _holding(units, inside):
    """Makes units that hold others, to which they leave what these cut.

    The units themselves cut only the rest.
    """
    others = [cut for structure in inside for cut in structure.cuts]
    cuts = []
    for cut in units.cuts:
        taken = [
            other.index.flatten()
            for other in others
            if (other.tensor, other.dim) == (cut.tensor, cut.dim)
        ]
        rows = [
            row[(row >= 0) & ~torch.isin(row, torch.cat([*taken, row[:0]]))]
            for row in cut.index
        ]
        rest = pad_sequence(rows, batch_first=True, padding_value=-1)
        if rest.numel():
            cuts.append(replace(cut, index=rest))
    return replace(units, cuts=tuple(cuts), holds=True)


class AbsentCrossAttention(Absent):
    """Takes the place of a removed cross-attention.

    It returns attention weights too, since searchers read those of the last
    layer. They are zero.
    """

    def forward(self, query, key, *args, **kwargs):
        """Returns a scalar zero and zero weights (B, L, S), which are expanded
        and take no memory.
        """
        zero = query.new_zeros(())
        return zero, zero.expand(*query.shape[:2], key.shape[1])


def consecutive(units, entries=1):
    """Indices for `Slices` of units that lie one after another.

    Example
    -------
    >>> consecutive(2, entries=3)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    # on the CPU also where a model is being made on the meta device
    return torch.arange(units * entries, device="cpu").view(units, entries)


def of_widths(widths, start=0):
    """Indices for `Slices` of units of several widths, one after another.

    Example
    -------
    >>> of_widths([2, 3], start=4)
    tensor([[ 4,  5, -1],
            [ 6,  7,  8]])
    """
    every = torch.arange(start, start + sum(widths), device="cpu")
    rows = every.split(list(widths))
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def each_of(index):
    """Indices for `Slices` of the entries of some units, one by one.

    Example
    -------
    >>> each_of(of_widths([1, 2]))
    tensor([[0],
            [1],
            [2]])
    """
    return index[index >= 0].unsqueeze(1)


def widths_of_heads(module):
    """Lists the widths of all heads of an attention, which may be unequal.

    Arguments
    ---------
    module : torch.nn.Module
        With `num_heads` and `head_dim`.

    Returns
    -------
    query_key, value : tuple of int
        (H,) each.
    """
    if isinstance(module, UnequalHeads):
        return module.widths
    return ((module.head_dim,) * module.num_heads,) * 2


def already_unequal(path, module):
    """What cutting whole heads changes if an earlier cut made them unequal.

    Arguments
    ---------
    path : str
        Name of the module from the root.
    module : torch.nn.Module

    Returns
    -------
    dict
        Fields of `Structure`: the class that the module keeps, which makes
        another layout then, and its lists of widths. Empty if all heads are
        equal still.
    """
    if not isinstance(module, UnequalHeads):
        return {}
    lists = ("query_key_widths", "value_widths")
    known = [name for name in lists if getattr(module, name) is not None]
    return {
        "adapters": ((path, type(module)),),
        "positions": tuple((path, name) for name in known),
    }


def whole_linear(name, linear):
    """Masks for all of a Linear, the last of a module that one gate closes."""
    size = consecutive(1, linear.out_features)
    tensors = ["weight"] if linear.bias is None else ["weight", "bias"]
    return tuple(Slices(f"{name}.{tensor}", 0, size) for tensor in tensors)


@torch.no_grad()
def acts_per_unit(activation, units):
    """Whether an activation treats each unit separately from the others.

    GELU and ReLU do, softmax and GLU do not. An activation with a parameter
    for each unit (PReLU) is refused too, since no structure cuts it.

    Arguments
    ---------
    activation : callable
        (..., units) -> (..., units). A copy of it is run on numbers.
    units : int
        Number of units.

    Returns
    -------
    bool

    Example
    -------
    >>> acts_per_unit(torch.nn.GELU(), 8), acts_per_unit(torch.nn.GLU(), 8)
    (True, False)
    """
    if isinstance(activation, torch.nn.Module):
        if any(p.numel() > 1 for p in activation.parameters()):
            return False
        activation = copy.deepcopy(activation).eval()
        for owner in activation.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                # the original may be on the meta device, without a value
                value = torch.full(parameter.shape, 0.5, device="cpu")
                setattr(owner, name, torch.nn.Parameter(value))
    one = torch.linspace(-3, 3, 2 * units, device="cpu").view(1, 2, units)
    other = one.clone()
    other[..., ::2] += 1  # every second unit changes
    try:
        first, second = activation(one.clone()), activation(other)
    except RuntimeError:  # it does not accept this shape
        return False
    same = torch.equal(first[..., 1::2], second[..., 1::2])
    return first.shape == one.shape and same


def refused_activation(kind, activation, units):
    """Makes the entry of `Part.refused` for an activation that mixes units.

    Arguments
    ---------
    kind : str
        Kind of the units.
    activation : callable
    units : int
        Number of units.

    Returns
    -------
    tuple of (str, str)
        Empty if the activation treats each unit separately.
    """
    if acts_per_unit(activation, units):
        return ()
    name = getattr(activation, "__name__", type(activation).__name__)
    why = (
        f"the activation {name} does not act on each unit alone; write one "
        "that does, e.g. torch.nn.GELU"
    )
    return ((kind, why),)


def same_length(frames):
    """Returns the number of frames, for modules that run once per frame."""
    return frames


def weight_operations(name, module, parts, steps=same_length, path=None):
    """Operations of weights that are applied once per step.

    The result holds sizes but no tensors, so that weights can be freed when
    they are cut.

    Arguments
    ---------
    name : str
        Module that is removed when all of it is cut.
    module : torch.nn.Module
        The module that holds the weights.
    parts : list of str
        Submodules of it that have a `weight`.
    steps : callable
        frames -> number of steps that the weights are applied to.
    path : str, optional
        Name of `module`, if it lies below `name`.

    Returns
    -------
    callable
        frames (int) -> list of Operation.
    """
    sizes = {
        f"{path or name}.{part}.weight": module.get_submodule(
            part
        ).weight.numel()
        for part in parts
    }
    return lambda frames: [
        Operation(steps(frames) * size, name, tensor=tensor)
        for tensor, size in sizes.items()
    ]


@unless_gone
def feed_forward(name, ffn, path=None, norm=None, steps=same_length):
    """Describes a feed-forward module of SpeechBrain and its hidden units.

    Arguments
    ---------
    name : str
        Module that is removed when all of it is cut.
    ffn : torch.nn.Module
        The PositionalwiseFeedForward.
    path : str, optional
        Name of `ffn`, if it lies below `name`.
    norm : str, optional
        Norm before the module, if nothing else reads it; removed with it.
    steps : callable
        frames -> number of steps that the module runs over.

    Returns
    -------
    Part, NotCut or None
        NotCut if ffn is of another class, None if it was removed by an earlier
        cut.
    """
    if not isinstance(ffn, PositionalwiseFeedForward):
        kinds = ("ffn_modules", "ffn_units")
        remedy = "ffn_type: regularFFN"
        return NotCut(path or name, type(ffn).__name__, kinds, remedy)
    parts = ("ffn.0", "ffn.1", "ffn.3")
    return two_linears(name, ffn, parts, path, norm, steps)


@unless_gone
def two_linears(name, ffn, parts, path=None, norm=None, steps=same_length):
    """Describes two Linears with hidden units between them.

    Arguments
    ---------
    name : str
        Module that is removed when all of it is cut.
    ffn : torch.nn.Module
        The module that holds both Linears.
    parts : (str, str, str)
        Names inside it, in the order in which data flow: the first Linear, the
        activation, the second Linear.
    path : str, optional
        Name of `ffn`, if it lies below `name`.
    norm : str, optional
        Norm before the module, if nothing else reads it; removed with it.
    steps : callable
        frames -> number of steps that the module runs over.

    Returns
    -------
    Part or None
        None if it was removed by an earlier cut.
    """
    path = path or name
    inner, activation, outer = (attrgetter(part)(ffn) for part in parts)
    first, _, second = (f"{path}.{part}" for part in parts)
    each = consecutive(inner.out_features)
    units = Structure(
        name=f"{name}.units",
        kind="ffn_units",
        units=len(each),
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
        masks=whole_linear(second, outer),
        removes=((name, Absent), *identity(norm)),
    )
    return Part(
        module,
        units,
        weight_operations(name, ffn, parts[::2], steps, path),
        refused=refused_activation("ffn_units", activation, len(each)),
    )


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
        return NotCut(name, what, kinds, f"attention_type: {ATTENTIONS}")
    if getattr(inner, "in_proj_weight", None) is None:
        what = f"{what} with kdim or vdim"
        return NotCut(name, what, kinds, "neither of these")
    absent = AbsentCrossAttention if cross else _absent_self_attention
    whole = Structure(
        name=name,
        kind="cross_attention_modules" if cross else "attention_modules",
        units=1,
        masks=whole_linear(f"{path}.out_proj", inner.out_proj),
        removes=((name, absent), *identity(norm)),
    )
    return Part(
        whole,
        _heads(name, path, inner, cross),
        _attention_operations(name, path, inner, steps, memory or steps),
        () if cross else _dims(name, path, inner),
    )


_absent_self_attention = partial(Absent, extra_outputs=1)


def identity(norm):
    """Entry of `Structure.removes` that turns a norm, if any, into Identity."""
    return ((norm, torch.nn.Identity),) if norm else ()


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


def dims_of_heads(name, path, query_key, value, widths, adapter):
    """Structures of the dims inside every head.

    There are two: dims that query and key share, and those of value and output
    (Wang et al., "Task-Agnostic Structured Pruning of Speech Representation
    Models", 2023, fine-grained attention heads).

    Arguments
    ---------
    name : str
        Name of the attention; the structure of its heads is `name`.heads.
    path : str
        Name of the module that holds the weights.
    query_key, value : (tuple of Slices, tuple of Slices)
        Masks and cuts of each.
    widths : (tuple of int, tuple of int)
        From `widths_of_heads`.
    adapter : type
        Class that the module gets when heads differ in width.

    Returns
    -------
    tuple of Structure
    """
    return tuple(
        Structure(
            name=f"{name}.{which}",
            kind=f"{which}_dims",
            units=len(masks[0].index),
            masks=tuple(masks),
            cuts=tuple(cuts),
            adapters=((path, adapter),),
            inside=tuple(inside),
            widths=((path, f"{which}_widths"),),
        )
        for which, (masks, cuts), inside in zip(
            ("query_key", "value"), (query_key, value), widths
        )
    )


def pair_operations(name, scores, values):
    """Operations of attention over pairs of queries and keys.

    Arguments
    ---------
    name : str
        Name of the attention.
    scores, values : float
        MACs of the scores, and of the weighted sums of values.

    Returns
    -------
    list of Operation
    """
    heads = f"{name}.heads"
    return [
        Operation(macs, name, structures=((f"{name}.{which}", heads),))
        for which, macs in (("query_key", scores), ("value", values))
    ]


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
