"""From the parts of layers to a declaration: what all architectures share."""

import re
from dataclasses import dataclass
from typing import Callable

from sb_prune.architectures.parts import INSIDE_HEADS
from sb_prune.declare.structure import Declaration, Structure, dotted


def no_operations(frames):
    """An empty list."""
    return []


@dataclass(frozen=True)
class Layer:
    """One layer, as the parts that it adds up.

    Arguments
    ---------
    parts : tuple of Part or None
        In the order they run; None for a module that cannot be cut.
    masks : tuple of Slices
        Where the layer's gate multiplies; by default where those of its
        parts do.
    removes : tuple of (str, callable)
        What goes with the layer beyond its parts.
    operations : callable
        frames (int) -> list of Operation that run outside the parts.
    """

    parts: tuple
    masks: tuple = ()
    removes: tuple = ()
    operations: Callable = no_operations

    def structures(self, name, kinds):
        """The layer, its modules and their units, parents first.

        Arguments
        ---------
        name : str
            Of the layer.
        kinds : list of str
            Which kinds to list.

        Returns
        -------
        list of Structure
        """
        whole = "layers" in kinds
        found = [self._whole(name)] if whole else []
        for part in filter(None, self.parts):
            found += part.structures(kinds, name if whole else None)
        return found

    def _whole(self, name):
        if None in self.parts:
            raise ValueError(
                f"kinds: {name} cannot be cut whole, for one of its modules "
                "cannot; leave `layers` out, or use an attention_type of "
                "RelPosMHAXL, RoPEMHA or regularMHA, and a regularFFN"
            )
        modules = [part.module for part in self.parts]
        masks = self.masks or sum((m.masks for m in modules), ())
        return Structure(
            name=name,
            kind="layers",
            units=1,
            masks=masks,
            removes=sum((m.removes for m in modules), self.removes),
            stays=sum((m.stays for m in modules), ()),
        )

    def all_operations(self, frames):
        """MACs of the layer on one utterance.

        Arguments
        ---------
        frames : int

        Returns
        -------
        list of Operation
        """
        found = self.operations(frames)
        for part in filter(None, self.parts):
            found = found + part.operations(frames)
        return found


def find_stacks(root, architectures):
    """Every stack of layers of some classes below a module.

    Arguments
    ---------
    root : torch.nn.Module
        Where to look.
    architectures : dict
        Stock class that holds `layers` -> function (name, layer) -> Layer.

    Returns
    -------
    dict
        Name -> module.

    Raises
    ------
    ValueError
        If there is none.
    """
    stacks = {
        name: module
        for name, module in root.named_modules()
        if isinstance(module, tuple(architectures))
    }
    if not stacks:
        names = " or ".join(stack.__name__ for stack in architectures)
        raise ValueError(
            f"module: no {names} found in {type(root).__name__}; name the "
            "module that holds one, or another `structures` function"
        )
    return stacks


def declare(root, architectures, known, kinds=None, only=""):
    """Declares all that can be cut in the stacks below a module.

    Arguments
    ---------
    root : torch.nn.Module
        Where names start.
    architectures : dict
        Stock class that holds `layers` -> function (name, layer) -> Layer.
    known : tuple of str
        Kinds that these architectures have.
    kinds : list of str, optional
        Which of them to declare, by default all that this model has;
        query_key_dims and value_dims beside heads let these become unequal.
    only : str
        Regular expression that structure names must contain; empty: all.

    Returns
    -------
    Declaration

    Raises
    ------
    ValueError
        If there is no such stack, a kind is unknown, or a kind or `only`
        matches nothing.
    """
    check_known(kinds, (*known, *INSIDE_HEADS))
    stacks = find_stacks(root, architectures)
    layers = {}
    for prefix, stack in stacks.items():
        describe = next(
            architectures[c] for c in architectures if isinstance(stack, c)
        )
        for index, layer in stack.layers.named_children():
            name = dotted(prefix, "layers", index)
            layers[name] = describe(name, layer)
    structures = [
        structure
        for name, layer in layers.items()
        for structure in layer.structures(
            name, known if kinds is None else kinds
        )
    ]
    check_matched(structures, kinds or ())
    return Declaration(
        root=root,
        scope=tuple(stacks),
        structures=select(structures, only),
        operations=lambda frames: [
            operation
            for layer in layers.values()
            for operation in layer.all_operations(frames)
        ],
        layers=tuple(layers),
        layerdrop=max(getattr(s, "layerdrop_prob", 0) for s in stacks.values()),
    )


def check_known(kinds, known):
    """Refuses kinds that an architecture does not have.

    Arguments
    ---------
    kinds : list of str or None
        What the user named.
    known : tuple of str
        What there is.

    Raises
    ------
    ValueError
    """
    unknown = [kind for kind in kinds or () if kind not in known]
    if unknown:
        raise ValueError(
            f"kinds: {unknown} cannot be cut here; write some of {list(known)}"
        )


def check_matched(structures, kinds):
    """Refuses kinds that a model does not have.

    Arguments
    ---------
    structures : list of Structure
        What was found.
    kinds : list of str
        What the user named.

    Raises
    ------
    ValueError
    """
    missing = set(kinds) - {s.kind for s in structures}
    if missing:
        raise ValueError(
            f"kinds: {sorted(missing)} match nothing in this model; remove "
            "them, or use an attention_type of RelPosMHAXL, RoPEMHA or "
            "regularMHA"
        )


def select(structures, only):
    """The structures whose names match.

    Arguments
    ---------
    structures : list of Structure
        Parents before their children.
    only : str
        Regular expression that names must contain; empty: all.

    Returns
    -------
    tuple of Structure

    Raises
    ------
    ValueError
        If it matches nothing, or leaves out a parent.
    """
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
