"""Makes a declaration out of stacked layers, for all architectures."""

import re
from dataclasses import dataclass
from typing import Callable

from speechbrain.nnet.adapters import AdaptedModel, HoulsbyAdapterLinear, LoRA

from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.architectures.parts import NotCut, Part, no_operations
from sb_prune.cut.surgery import Absent, FewerLayers
from sb_prune.declare.structure import Declaration, Structure, dotted
from sb_prune.support.values import ListOf, Text

# what `kinds` may be
NAMES = ListOf(Text("names of kinds"), least=1, example="[heads]")

ADAPTERS = (AdaptedModel, LoRA, HoulsbyAdapterLinear)


@dataclass(frozen=True)
class Layer:
    """One layer, described by its parts.

    Arguments
    ---------
    parts : tuple of Part, NotCut or None
        In the order in which they run; None for a module that an earlier cut
        has removed.
    masks : tuple of Slices
        The weights that the gate of the layer multiplies; by default those
        that the gates of its parts multiply.
    removes : tuple of (str, callable)
        As in `Structure`: modules outside of the parts that are removed with
        the layer.
    operations : callable
        frames (int) -> list of Operation outside of the parts.
    """

    parts: tuple
    masks: tuple = ()
    removes: tuple = ()
    operations: Callable = no_operations

    def structures(self, name, kinds):
        """Lists the layer, its modules and their units, parents first.

        Arguments
        ---------
        name : str
            Name of the layer from the root.
        kinds : list of str
            The kinds to list.

        Returns
        -------
        list of Structure
        """
        masks = self.masks or sum((p.module.masks for p in self.cuttable), ())
        whole = "layers" in kinds and bool(masks)  # without masks it is empty
        found = [self._whole(name, masks)] if whole else []
        for part in self.cuttable:
            found += part.structures(kinds, name if whole else None)
        return found

    @property
    def cuttable(self):
        """The parts that can be cut."""
        return [part for part in self.parts if isinstance(part, Part)]

    @property
    def not_cut(self):
        """The parts that cannot be cut."""
        return [part for part in self.parts if isinstance(part, NotCut)]

    def _whole(self, name, masks):
        modules = [part.module for part in self.cuttable]
        return Structure(
            name=name,
            kind="layers",
            units=1,
            masks=masks,
            removes=sum((m.removes for m in modules), self.removes),
            stays=sum((m.stays for m in modules), ()),
        )

    def all_operations(self, frames):
        """Lists the operations of the layer on one utterance.

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
    """Finds every stack of layers of some classes below a module.

    Arguments
    ---------
    root : torch.nn.Module
        The module to search.
    architectures : dict
        Class of a module with `layers` -> function (name, layer) -> Layer.

    Returns
    -------
    dict
        Name -> module.

    Raises
    ------
    ValueError
        If there is no such stack, or the module has adapters.
    """
    check_no_adapters(root)
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
    """Declares everything that can be pruned in the stacks below a module.

    Arguments
    ---------
    root : torch.nn.Module
        The module from which names start.
    architectures : dict
        Class of a module with `layers` -> function (name, layer) -> Layer.
    known : tuple of str
        Kinds that these architectures have.
    kinds : list of str, optional
        The kinds to declare; by default see `default_kinds`. With
        query_key_dims or value_dims in addition to heads, the heads may become
        unequal in width.
    only : str
        Regular expression that structure names must contain; empty: all.

    Returns
    -------
    Declaration

    Raises
    ------
    ValueError
        If there is no such stack, a kind is unknown, a kind or `only` matches
        nothing, or layers are shared.
    """
    check_known(kinds, (*known, *INSIDE_HEADS))
    stacks = find_stacks(root, architectures)
    layers = {}
    for prefix, stack in stacks.items():
        describe = next(
            architectures[c] for c in architectures if isinstance(stack, c)
        )
        children = dict(stack.layers.named_children())
        if len(children) < len(stack.layers):
            raise ValueError(
                f"{dotted(prefix, 'layers')} has one layer in several places, "
                "which cannot be cut; build the model without sharing"
            )
        for index, layer in children.items():
            name = dotted(prefix, "layers", index)
            layers[name] = describe(name, layer)
    return Declaration(
        root=root,
        scope=tuple(stacks),
        structures=chosen_structures(root, layers, known, kinds, only),
        operations=lambda frames: [
            operation
            for layer in layers.values()
            for operation in layer.all_operations(frames)
        ],
        layers=tuple(layers),
        layerdrop=max(getattr(s, "layerdrop_prob", 0) for s in stacks.values()),
    )


def chosen_structures(root, layers, known, kinds=None, only="", before=()):
    """Lists the structures of some kinds, and checks what was asked for.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    layers : dict
        Name -> Layer.
    known : tuple of str
        Kinds that the architecture has.
    kinds : list of str, optional
        The kinds to declare; by default see `default_kinds`.
    only : str
        Regular expression that structure names must contain; empty: all.
    before : iterable of Structure
        Those that no layer holds; they come first.

    Returns
    -------
    tuple of Structure

    Raises
    ------
    ValueError
        If a kind cannot be cut, or a kind or `only` matches nothing.
    """
    wanted = default_kinds(known, layers.values()) if kinds is None else kinds
    check_cuttable(layers.values(), wanted)
    structures = [s for s in before if s.kind in wanted]
    for name, layer in layers.items():
        structures += layer.structures(name, wanted)
    check_matched(structures, kinds or (), root)
    return select(structures, only)


def default_kinds(known, layers):
    """Lists the kinds to declare if none are named.

    Arguments
    ---------
    known : tuple of str
        Kinds that the architecture has.
    layers : iterable of Layer

    Returns
    -------
    tuple of str
        The known kinds; and, if an earlier cut has made heads unequal, the
        dims inside heads too, without which such heads cannot be cut.
    """
    parts = [part for layer in layers for part in layer.cuttable]
    if any(part.is_unequal for part in parts):
        return (*known, *INSIDE_HEADS)
    return tuple(known)


def check_known(kinds, known):
    """Refuses kinds that an architecture does not have.

    Arguments
    ---------
    kinds : list of str or None
        Kinds that the user named.
    known : tuple of str
        Kinds that the architecture has.

    Raises
    ------
    ValueError
        If a kind is unknown.
    """
    unknown = [kind for kind in kinds or () if kind not in known]
    if unknown:
        raise ValueError(
            f"kinds: {unknown} cannot be cut here; write some of {list(known)}"
        )


def check_no_adapters(root):
    """Refuses a module with adapters, which add to the weights of others.

    Arguments
    ---------
    root : torch.nn.Module

    Raises
    ------
    ValueError
        If there is an adapter of SpeechBrain below root.
    """
    for name, module in root.named_modules():
        if isinstance(module, ADAPTERS):
            raise ValueError(
                f"module: {name or 'what it names'} has adapters "
                f"({type(module).__name__}), which cannot be cut; merge them "
                "into the weights that they adapt, and prune that model"
            )


def check_cuttable(layers, wanted):
    """Refuses kinds that cannot be cut in modules of the classes in a model.

    Arguments
    ---------
    layers : iterable of Layer
    wanted : list of str
        Kinds to declare.

    Raises
    ------
    ValueError
        Naming all such kinds, and what to write.
    """
    layers = list(layers)
    not_cut = [part for layer in layers for part in layer.not_cut]
    cuttable = {
        kind
        for layer in layers
        for part in layer.cuttable
        for kind in part.kinds
    }
    prevented = {kind for part in not_cut for kind in part.kinds} - cuttable
    prevented |= {"layers"} if not_cut else set()
    prevented = [kind for kind in wanted if kind in prevented]
    if not prevented:
        return
    part = not_cut[0]
    others = [kind for kind in wanted if kind in cuttable]
    raise ValueError(
        f"kinds: {prevented} cannot be cut, for {part.name} is a {part.what}; "
        f"write {part.remedy}"
        + (f", or kinds: [{', '.join(others)}]" if others else "")
    )


def check_matched(structures, kinds, root):
    """Refuses kinds that a model does not have.

    An earlier cut may have removed all that was of a kind. So nothing is
    refused where it removed modules; the original is declared as well.

    Arguments
    ---------
    structures : list of Structure
        Structures of the model.
    kinds : list of str
        Kinds that the user named.
    root : torch.nn.Module
        The model.

    Raises
    ------
    ValueError
        If no structure is of one of the kinds.
    """
    missing = set(kinds) - {s.kind for s in structures}
    removed = (Absent, FewerLayers)
    if missing and not any(isinstance(m, removed) for m in root.modules()):
        raise ValueError(
            f"kinds: {sorted(missing)} match nothing in this model; remove "
            "them"
            + (
                ": dims of RoPEMHA rotate in pairs and stay together"
                if missing.intersection(INSIDE_HEADS)
                else ""
            )
        )


def select(structures, only):
    """Selects the structures whose names match a regular expression.

    Arguments
    ---------
    structures : list of Structure
        Parents before their children.
    only : str
        Regular expression to be found in the names; empty for all.

    Returns
    -------
    tuple of Structure

    Raises
    ------
    ValueError
        If there are no structures, none matches, or one matches while its
        parent does not.
    """
    if not structures:
        raise ValueError(
            "module: nothing that could be cut is left of the declared kinds; "
            "declare others, or start from the dense model"
        )
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
