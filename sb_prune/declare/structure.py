"""What can be cut in a model, as plain data.

An architecture file (`sb_prune/structures/*.py`) lists `Structure` objects.
Masks (`masking.py`), cost (`cost.py`) and surgery (`surgery.py`) are all
derived from that one list, so they cannot drift apart.

Legend of the shapes in this package
    units     gates of one structure
    entries   positions one unit occupies along one axis of one tensor
    N         gates of the whole declaration
"""

from dataclasses import dataclass, field
from typing import Callable, Optional

import torch


@dataclass(frozen=True)
class Slices:
    """The positions that each unit occupies along one axis of one tensor.

    Arguments
    ---------
    tensor : str
        Dotted name of the tensor (or of a norm module), from the root.
    dim : int or None
        Axis that the indices address. None: the flattened tensor, whose last
        axis shrinks when units are cut (RelPosMHAXL stores its position
        biases (head_dim, heads) but reads the memory as (heads, head_dim));
        a vector is left where what stays makes no whole rows.
    index : torch.Tensor
        (units, entries), int64. A row per unit.
    """

    tensor: str
    dim: Optional[int]
    index: torch.Tensor


@dataclass(frozen=True)
class Structure:
    """A named set of coupled slices that are kept or cut together.

    Arguments
    ---------
    name : str
        Unique in its declaration, e.g. `encoder.layers.0.ffn_module1.units`.
    kind : str
        What users name in YAML, e.g. `ffn_units`.
    units : int
        How many gates.
    masks : tuple of Slices
        Where the gates multiply in training: the consuming weights.
    cuts : tuple of Slices
        Which tensors lose slices when units are cut.
    norms : tuple of Slices
        Norm modules whose statistics span the units; `dim` and `index`
        address their `normalized_shape`.
    counts : tuple of (str, str)
        (module, attribute) pairs set to the number of kept units.
    positions : tuple of (str, str)
        (module, attribute) pairs set to the list of kept units.
    adapters : tuple of (str, type)
        (module, class) pairs: the class the module takes once units are cut,
        where the stock forward cannot run with fewer. Its method `after_cut_`,
        if it has one, is called when everything is cut.
    removes : tuple of (str, callable)
        (module, factory) pairs: makes, of the stock module, what takes its
        place when the (only) unit is cut; None where a list gets shorter.
        Everything below those modules is this structure's.
    stays : tuple of str
        What lies below those modules and stays nevertheless.
    parent : str, optional
        Structure that must be open for this one to matter. Where each unit of
        the parent `holds` units (heads hold their dims), these are spread over
        the parent's evenly and in order: the first of them lie in its first.
    holds : bool
        Whether other structures declare what is inside each unit.
    widths : tuple of (str, str)
        (module, attribute) pairs set to the list of units kept inside each
        kept unit of the parent.
    multiple : int
        Plans keep multiples of so many units, inside each unit of a parent
        that holds them: convolutions of some widths are much faster than those
        of others.

    Example
    -------
    >>> index = torch.arange(6).view(3, 2)
    >>> heads = Structure(
    ...     "att.heads", "heads", 3, masks=(Slices("att.weight", 1, index),)
    ... )
    >>> heads.is_leaf
    True
    """

    name: str
    kind: str
    units: int
    masks: tuple = ()
    cuts: tuple = ()
    norms: tuple = ()
    counts: tuple = ()
    positions: tuple = ()
    adapters: tuple = ()
    removes: tuple = ()
    stays: tuple = ()
    parent: Optional[str] = None
    holds: bool = False
    widths: tuple = ()
    multiple: int = 1

    @property
    def is_leaf(self):
        """Whether the units are slices that hold nothing else."""
        return not self.removes and not self.holds

    def takes(self, name):
        """Whether a module or tensor goes when this structure is removed.

        Arguments
        ---------
        name : str
            Dotted, from the root.

        Returns
        -------
        bool
        """
        gone = any(below(name, module) for module, _ in self.removes)
        return gone and not any(below(name, kept) for kept in self.stays)


@dataclass(frozen=True)
class Operation:
    """Multiply-accumulates of one operation of the dense model.

    Arguments
    ---------
    macs : float
        MACs of the dense operation for one utterance.
    module : str
        Module that runs it; whoever removes that module removes the MACs.
    tensor : str, optional
        Weight it multiplies by: MACs shrink as that tensor does.
    structures : tuple of (str or tuple of str)
        Structures whose kept share scales it (attention scores: the heads).
        Of a tuple the first that is declared (their dims, or else the heads).
    """

    macs: float
    module: str
    tensor: Optional[str] = None
    structures: tuple = ()


@dataclass(frozen=True)
class Declaration:
    """All that can be cut below one root module.

    Arguments
    ---------
    root : torch.nn.Module
        Module from which all names start.
    scope : tuple of str
        Modules whose parameters and MACs the budget counts.
    structures : tuple of Structure
        Parents stand before their children.
    operations : callable
        frames (int) -> list of Operation inside the scope, for an utterance
        that has so many frames at the input of the scope.
    layers : tuple of str
        The stacked blocks, bottom first (distillation, reports); those of a
        decoder follow those of its encoder.
    layerdrop : float
        Probability with which training skips a block.
    blocks : tuple of str
        Modules that reports show, but distillation does not compare.
    output_frames : callable
        frames (int) at the input of the scope -> frames at its output.
    usual_frames : int
        Length at which MACs are stated where nobody names another: those of
        10 s.

    Raises
    ------
    ValueError
        If two structures share a name, a parent is not declared before, or a
        tensor is no plain parameter or buffer.
    """

    root: torch.nn.Module
    scope: tuple
    structures: tuple
    operations: Callable
    layers: tuple = ()
    layerdrop: float = 0.0
    blocks: tuple = ()
    output_frames: Callable = lambda frames: frames
    usual_frames: int = 250
    by_name: dict = field(init=False, repr=False)
    shapes: dict = field(init=False, repr=False)  # of what is masked or cut

    def __post_init__(self):
        by_name = {}
        for structure in self.structures:
            if structure.name in by_name:
                raise ValueError(f"structure {structure.name} stands twice")
            parent = by_name.get(structure.parent)
            if structure.parent and parent is None:
                raise ValueError(
                    f"parent {structure.parent} of {structure.name} is not "
                    "declared before it"
                )
            if parent and parent.holds and structure.units % parent.units:
                raise ValueError(
                    f"{structure.units} units of {structure.name} are not "
                    f"divisible by the {parent.units} of {parent.name}"
                )
            by_name[structure.name] = structure
        object.__setattr__(self, "by_name", by_name)
        shapes = {
            name: tuple(tensor_of(self.root, name).shape)
            for s in self.structures
            for name in dict.fromkeys(p.tensor for p in (*s.masks, *s.cuts))
        }
        object.__setattr__(self, "shapes", shapes)

    @property
    def total_units(self):
        """Number of gates, N."""
        return sum(s.units for s in self.structures)

    def split(self, values):
        """Cuts a flat vector over all gates into one piece per structure.

        Arguments
        ---------
        values : torch.Tensor
            (N,)

        Returns
        -------
        dict
            Structure name -> (units,)
        """
        pieces = values.split([s.units for s in self.structures])
        return {s.name: p for s, p in zip(self.structures, pieces)}

    def holder(self, structure):
        """The structure whose units hold those of another, or None.

        Arguments
        ---------
        structure : Structure

        Returns
        -------
        Structure or None
        """
        parent = self.by_name.get(structure.parent)
        return parent if parent and parent.holds else None

    def held(self, structure, values):
        """A value per unit of a structure's holder, for each unit it holds.

        Arguments
        ---------
        structure : Structure
            That has a holder.
        values : torch.Tensor
            (holder's units,)

        Returns
        -------
        torch.Tensor
            (units,)
        """
        return values.repeat_interleave(structure.units // len(values))

    def touched_tensors(self):
        """Names of the parameters that training must move for gates to work.

        Returns
        -------
        list of str
            Every masked tensor, once.
        """
        names = (m.tensor for s in self.structures for m in s.masks)
        return list(dict.fromkeys(names))


def tensor_of(root, name):
    """A parameter or buffer, by its dotted name.

    Arguments
    ---------
    root : torch.nn.Module
    name : str

    Returns
    -------
    torch.Tensor

    Raises
    ------
    ValueError
        If it is neither, as the `weight` under weight norm.
    """
    path, _, tensor = name.rpartition(".")
    module = root.get_submodule(path)
    found = module._parameters.get(tensor)
    if found is None:
        found = module._buffers.get(tensor)
    if found is None:
        raise ValueError(
            f"module: {name} cannot be cut, for it is no plain parameter of "
            f"its {type(module).__name__}; if weight_norm makes it anew at "
            "every forward, call torch.nn.utils.parametrize."
            "remove_parametrizations (or remove_weight_norm) before"
        )
    return found


def dotted(*names):
    """A name from its parts; empty ones are left out.

    Example
    -------
    >>> dotted("", "encoder", "layers", "0")
    'encoder.layers.0'
    """
    return ".".join(filter(None, names))


def below(name, module):
    """Whether a dotted name is a module or lies below it.

    Example
    -------
    >>> below("encoder.layers.10.norm", "encoder.layers.1")
    False
    >>> below("encoder.layers.1.norm", "encoder.layers.1")
    True
    """
    return module == "" or name == module or name.startswith(module + ".")
