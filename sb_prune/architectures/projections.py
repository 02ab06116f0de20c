"""Attention of transformers: four Linears of the names q, k, v and out_proj.

Projections may lack a bias. The classes of transformers can run with fewer
heads.

Shapes: L queries, S keys and values.
"""

from dataclasses import replace

from sb_prune.architectures.heads import (
    absent_self_attention,
    already_unequal,
    dims_of_heads,
    pair_operations,
    whole_attention,
    widths_of_heads,
)
from sb_prune.architectures.indices import consecutive, of_widths
from sb_prune.architectures.parts import Part, same_length
from sb_prune.declare.structure import Operation, Slices, Structure


def attention_of_projections(
    name,
    module,
    norm=None,
    steps=same_length,
    memory=None,
    absent=absent_self_attention,
):
    """Describes such a module and its heads.

    Arguments
    ---------
    name : str
        Name of the module from the root.
    module : torch.nn.Module
        The attention.
    norm : str, optional
        Norm before the module, if nothing else reads it; removed with it.
    steps : callable
        frames -> L.
    memory : callable, optional
        frames -> S, for cross-attention; None for self-attention.
    absent : callable
        Makes what takes its place when it is removed.

    Returns
    -------
    Part
    """
    cross = memory is not None
    out_proj = f"{name}.out_proj", module.out_proj
    return Part(
        whole_attention(name, out_proj, absent, norm, cross),
        _heads(name, module, cross),
        _operations(name, module, steps, memory or steps),
    )


def _heads(name, module, cross):
    query_key, value = map(of_widths, widths_of_heads(module))
    out = Slices(f"{name}.out_proj.weight", 1, value)
    made = _made(name, module, query_key, value)
    heads = Structure(
        name=f"{name}.heads",
        kind="cross_heads" if cross else "heads",
        units=module.num_heads,
        masks=(out,),
        cuts=(out, *made["q"], *made["k"], *made["v"]),
        counts=((name, "num_heads"),),
    )
    return replace(heads, **already_unequal(name, module))


def dims_of_projections(name, module, adapter):
    """Structures of the dims inside the heads.

    Arguments
    ---------
    name : str
        Name of the module from the root.
    module : torch.nn.Module
        The attention.
    adapter : type
        Class that the module gets when heads differ in width.

    Returns
    -------
    tuple of Structure
    """
    widths = widths_of_heads(module)
    query_key, value = (consecutive(sum(inside)) for inside in widths)
    made = _made(name, module, query_key, value)
    out = Slices(f"{name}.out_proj.weight", 1, value)
    return dims_of_heads(
        name,
        name,
        query_key=(made["k"], made["q"] + made["k"]),
        value=((out,), (out, *made["v"])),
        widths=widths,
        adapter=adapter,
    )


def _made(name, module, query_key, value):
    """Letter of a projection -> slices of the rows that it makes."""
    found = {}
    for letter, index in zip("qkv", (query_key, query_key, value)):
        linear = module.get_submodule(f"{letter}_proj")
        tensors = ["weight"] if linear.bias is None else ["weight", "bias"]
        found[letter] = tuple(
            Slices(f"{name}.{letter}_proj.{tensor}", 0, index)
            for tensor in tensors
        )
    return found


def _operations(name, module, steps, memory):
    """Makes the function frames -> operations of L queries over S keys."""
    sizes = {
        f"{p}_proj": module.get_submodule(f"{p}_proj").weight.numel()
        for p in ("q", "k", "v", "out")
    }
    query_key, value = map(sum, widths_of_heads(module))

    def operations(frames):
        queries, keys = steps(frames), memory(frames)
        times = {"k_proj": keys, "v_proj": keys}
        linears = [
            Operation(
                times.get(part, queries) * size,
                name,
                tensor=f"{name}.{part}.weight",
            )
            for part, size in sizes.items()
        ]
        pairs = queries * keys
        return linears + pair_operations(name, pairs * query_key, pairs * value)

    return operations
