"""Layers that are removed as if they had never existed, from any stack.

The kind `layers` of an architecture removes the modules of a layer, but norms
of the residual stream stay. Here nothing of a layer stays: the layer above
reads the output of the layer below. A mask cannot express this, so no gate can
learn it. Instead a criterion (`sb_prune.depth.criteria`) chooses the layers,
and the model is cut before training.
"""

from dataclasses import replace

from sb_prune.cut.surgery import leave_out
from sb_prune.declare.plan import full_plan
from sb_prune.declare.structure import Structure, below

KIND = "whole_layers"
ENDING = ".whole"  # end of the names of these structures


def layer_structures(root, structures, inside=False):
    """Declares whole layers of the stacks that another function finds.

    Arguments
    ---------
    root : torch.nn.Module
        Argument of `structures`.
    structures : callable
        Module -> Declaration with `layers`, e.g. `wav2vec2_structures`.
    inside : bool
        Whether to declare the structures of this function too.

    Returns
    -------
    Declaration
        Without the first layer of WavLM, which computes a bias for all others,
        and the layers of students that share attention maps.

    Raises
    ------
    ValueError
        If there are no layers.

    Example
    -------
    >>> from speechbrain.lobes.models.transformer.Conformer import (
    ...     ConformerEncoder,
    ... )
    >>> from sb_prune import Plan, conformer_structures, cut_
    >>> encoder = ConformerEncoder(3, d_model=8, d_ffn=16, nhead=2)
    >>> declaration = layer_structures(encoder, conformer_structures)
    >>> [s.name for s in declaration.structures]
    ['layers.0.whole', 'layers.1.whole', 'layers.2.whole']
    >>> cut_(declaration, layer_plan(declaration, [True, False, True]))
    >>> [name for name, _ in encoder.layers.named_children()]
    ['0', '2']
    """
    dense = structures(root)
    if not dense.layers:
        raise ValueError(
            "structures: declare no layers to choose from; write a function "
            "for an encoder, e.g. wav2vec2_structures"
        )
    found = []
    for layer in dense.layers:
        within = [s for s in dense.structures if below(s.name, layer)]
        if not _is_needed(root.get_submodule(layer)):
            whole = Structure(
                name=layer + ENDING,
                kind=KIND,
                units=1,
                removes=((layer, leave_out),),
            )
            found.append(whole)
            within = [replace(s, parent=s.parent or whole.name) for s in within]
        found += within if inside else []
    if inside:
        known = {s.name for s in found}
        found = [s for s in dense.structures if s.name not in known] + found
    return replace(dense, structures=tuple(found))


def _is_needed(layer):
    """Whether other layers use more of this one than its output."""
    return any(
        name.endswith("rel_attn_embed") or hasattr(module, "attention_map")
        for name, module in layer.named_modules()
    )


def stack_of(layer):
    """Name of the stack of a layer: "encoder.layers" of "encoder.layers.3"."""
    return layer.rpartition(".")[0]


def layer_plan(declaration, keep):
    """Makes the plan that removes whole layers and nothing else.

    Arguments
    ---------
    declaration : Declaration
        From `layer_structures`.
    keep : list of bool
        For each of the `layers` of the declaration, whether it stays.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If the list has another length, no layer of a stack is kept, or a layer
        is removed that must stay.
    """
    layers = declaration.layers
    left = {stack_of(name) for name, kept in zip(layers, keep) if kept}
    if len(keep) != len(layers) or left < {stack_of(name) for name in layers}:
        raise ValueError(
            f"layers: keep {sum(keep)} of {len(keep)}; keep at least one of "
            f"the {len(layers)} there are, of each stack of layers"
        )
    plan = full_plan(declaration)
    for layer, kept in zip(layers, keep):
        name = layer + ENDING
        if name in plan.keep:
            plan.keep[name][:] = bool(kept)
        elif not kept:
            raise ValueError(
                f"layers: {layer} must stay: it shares a position bias or an "
                "attention map with others"
            )
    return plan
