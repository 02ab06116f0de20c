"""What attention of all families has in common: heads, and dims inside them.

Shapes: H heads, k head width, L queries, S keys and values.
"""

from functools import partial

from sb_prune.architectures.parts import identity, whole_linear
from sb_prune.cut.modules.attention import UnequalHeads
from sb_prune.cut.surgery import Absent
from sb_prune.declare.structure import Operation, Structure

INSIDE_HEADS = ("query_key_dims", "value_dims")

absent_self_attention = partial(Absent, extra_outputs=1)


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


def whole_attention(name, out_proj, absent, norm=None, cross=False):
    """Structure of an attention as a whole.

    Arguments
    ---------
    name : str
        Name of the module from the root.
    out_proj : (str, torch.nn.Linear)
        Its last layer, and the name of that from the root.
    absent : callable
        Makes what takes its place.
    norm : str, optional
        Norm before the module, if nothing else reads it; removed with it.
    cross : bool
        Whether it is cross-attention.

    Returns
    -------
    Structure
    """
    return Structure(
        name=name,
        kind="cross_attention_modules" if cross else "attention_modules",
        units=1,
        masks=whole_linear(*out_proj),
        removes=((name, absent), *identity(norm)),
    )


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
