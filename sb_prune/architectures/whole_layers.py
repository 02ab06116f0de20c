"""Layers that go as if they had never been: another depth of any stack.

The kind `layers` of an architecture closes a layer by its gates, so that a norm
behind a residual stays. Here nothing stays: what the layer below gives is what
the layer above gets. That cannot be masked, so that no gate learns it; a
criterion chooses (`sb_prune.depth.criteria`), and the model is cut at once.
"""

from dataclasses import replace

from sb_prune.cut.surgery import leave_out
from sb_prune.declare.plan import full_plan
from sb_prune.declare.structure import Structure, below

KIND = "whole_layers"
ENDING = ".whole"  # of their names


def layer_structures(root, structures, inside=False):
    """Declares the layers that another function finds, to be left out whole.

    Arguments
    ---------
    root : torch.nn.Module
        What `structures` takes.
    structures : callable
        Module -> Declaration with `layers`, e.g. `wav2vec2_structures`.
    inside : bool
        Whether what `structures` declares inside the layers, and elsewhere, is
        declared too.

    Returns
    -------
    Declaration
        WavLM's first layer computes a bias for all others: it is not declared.

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
    """Whether layers above use what this one computes beside its output."""
    names = (name for name, _ in layer.named_modules())
    return any(name.endswith("rel_attn_embed") for name in names)


def stack_of(layer):
    """What a layer is in: `"encoder.layers"` of `"encoder.layers.3"`."""
    return layer.rpartition(".")[0]


def layer_plan(declaration, keep):
    """The plan that leaves layers out and touches nothing else.

    Arguments
    ---------
    declaration : Declaration
        Of `layer_structures`.
    keep : list of bool
        For each of the declaration's `layers`.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If no layer of a stack is kept, there are not as many, or one that must
        stay goes.
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
                f"layers: {layer} must stay: it computes a bias for all others"
            )
    return plan
