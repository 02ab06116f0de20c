"""What can be pruned in a model, as plain data.

A file of the room `architectures` lists `Structure` objects. Masks
(`cut/masking.py`), cost (`declare/cost.py`) and surgery (`cut/surgery.py`) are
all derived from this one list, so that they always agree.

Legend of the shapes in this package
    units     units of one structure; each has one gate
    entries   positions that a unit occupies along one axis of a tensor
    N         units of all structures of a declaration, and so its gates
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
        Axis that the indices refer to. None stands for the flattened tensor,
        whose last axis becomes shorter when units are cut. (RelPosMHAXL stores
        its position biases as (head_dim, heads), but reads the memory as
        (heads, head_dim).) If the entries that stay do not fill whole rows, a
        vector of them is left.
    index : torch.Tensor
        (units, entries), int64. One row for each unit. In masks -1 fills the
        rows of units with fewer entries, such as heads that an earlier cut has
        made narrower than others. In cuts all units have equally many.
    """

    tensor: str
    dim: Optional[int]
    index: torch.Tensor


@dataclass(frozen=True)
class Structure:
    """Units of one module that can be pruned: heads, channels, or all of it.

    A unit is a set of coupled slices of several tensors, which are kept or cut
    together.

    Arguments
    ---------
    name : str
        Unique in its declaration, e.g. `encoder.layers.0.ffn_module1.units`.
    kind : str
        Name of the kind for the YAML, e.g. `ffn_units`.
    units : int
        Number of units.
    masks : tuple of Slices
        The weights that gates multiply in training: those that read the units.
    cuts : tuple of Slices
        The tensors that lose slices when units are cut.
    norms : tuple of Slices
        Norm modules whose statistics are taken over the units; `dim` and
        `index` refer to their `normalized_shape`.
    counts : tuple of (str, str)
        (module, attribute) pairs that are set to the number of kept units.
    positions : tuple of (str, str)
        (module, attribute) pairs that are set to the list of kept units. A
        list from an earlier cut, with an entry for each unit, keeps those of
        the kept units.
    adapters : tuple of (str, type)
        (module, class) pairs: the class that a module gets when units are cut,
        if its own forward cannot run with fewer. If the class has a method
        `after_cut_`, it is called after the whole model was cut.
    removes : tuple of (str, callable)
        (module, factory) pairs of a structure with a single unit, which stands
        for whole modules. When it is cut, each module is replaced by what the
        factory makes of it, or deleted from its list if that is None. All
        that lies below these modules belongs to this structure.
    stays : tuple of str
        Modules below the removed ones that stay nevertheless.
    parent : str, optional
        Structure without which this one does not exist. If each unit of the
        parent `holds` units of this structure (as a head holds its dims), it
        holds them in order: the first unit the first ones.
    inside : tuple of int
        How many of the units lie in each unit of a parent that holds them; by
        default equally many.
    holds : bool
        Whether other structures declare what is inside each unit.
    widths : tuple of (str, str)
        (module, attribute) pairs that are set to the list of how many units
        stay inside each kept unit of the parent.
    multiple : int
        Plans keep a multiple of this many units (inside each unit of a parent
        that holds them), as convolutions of some widths are much faster than
        those of others.

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
    inside: tuple = ()
    holds: bool = False
    widths: tuple = ()
    multiple: int = 1

    @property
    def is_leaf(self):
        """Whether units are plain slices: no whole module, no other units."""
        return not self.removes and not self.holds

    def takes(self, name):
        """Whether removing this structure removes a given module or tensor.

        Arguments
        ---------
        name : str
            Dotted name from the root.

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
        Module that runs the operation; without it there are no MACs.
    tensor : str, optional
        Weight that the operation multiplies by; MACs shrink with its size.
    structures : tuple of (str or tuple of str)
        Structures whose kept fraction scales it (attention scores: the heads).
        Of a tuple the first that is declared (their dims, or else the heads).
    """

    macs: float
    module: str
    tensor: Optional[str] = None
    structures: tuple = ()


@dataclass(frozen=True)
class Declaration:
    """Everything that can be pruned below one root module.

    Arguments
    ---------
    root : torch.nn.Module
        Module from which all names start.
    scope : tuple of str
        Modules whose parameters and MACs the budget counts.
    structures : tuple of Structure
        Parents come before their children.
    operations : callable
        frames (int) -> list of Operation inside the scope, for an utterance
        with this many frames at the input of the scope.
    layers : tuple of str
        The stacked layers, from the first to the last, for distillation and
        reports; those of a decoder follow those of its encoder.
    layerdrop : float
        Probability with which training skips a layer.
    blocks : tuple of str
        Further modules for reports, which distillation does not compare.
    output_frames : callable
        frames (int) at the input of the scope -> frames at its output.
    usual_frames : int
        Default length of the utterance for which MACs are counted, usually
        that of 10 s.
    time_axis : int
        Axis of the frames at the input of the scope.

    Raises
    ------
    ValueError
        If two structures have the same name, a parent is not declared before
        its child, or a tensor is not a plain parameter or buffer, or is shared
        by several modules.
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
    time_axis: int = 1
    by_name: dict = field(init=False, repr=False)
    shapes: dict = field(init=False, repr=False)  # of masked and cut tensors

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
            if parent and parent.holds:
                _check_inside(structure, parent)
            by_name[structure.name] = structure
        object.__setattr__(self, "by_name", by_name)
        shapes = {
            name: tuple(tensor_of(self.root, name).shape)
            for s in self.structures
            for name in dict.fromkeys(p.tensor for p in (*s.masks, *s.cuts))
        }
        object.__setattr__(self, "shapes", shapes)
        known = {}
        for name in shapes:
            other = known.setdefault(id(tensor_of(self.root, name)), name)
            if other != name:
                raise ValueError(
                    f"{name} and {other} are the same tensor; what several "
                    "modules share cannot be cut: leave these out by `kinds` "
                    "or `only`, or build the model without sharing"
                )

    @property
    def total_units(self):
        """Number of gates, N."""
        return sum(s.units for s in self.structures)

    def split(self, values):
        """Splits a vector over all gates into one piece for each structure.

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
        """Finds the structure whose units hold those of another.

        Arguments
        ---------
        structure : Structure

        Returns
        -------
        Structure or None
            None if the parent holds no units, or there is no parent.
        """
        parent = self.by_name.get(structure.parent)
        return parent if parent and parent.holds else None

    def inside(self, structure):
        """Lists how many units of a structure lie in each unit of its holder.

        Arguments
        ---------
        structure : Structure

        Returns
        -------
        tuple of int
            (units of the holder,); one number, of all units, if there is no
            holder.
        """
        holder = self.holder(structure)
        if holder is None:
            return (structure.units,)
        equally = (structure.units // holder.units,) * holder.units
        return structure.inside or equally

    def by_holder(self, structure, values):
        """Views values of units as one piece for each unit of the holder.

        Arguments
        ---------
        structure : Structure
        values : torch.Tensor
            (units,)

        Returns
        -------
        tuple of torch.Tensor
            Views of the values; a single one if there is no holder.
        """
        return values.split(self.inside(structure))

    def held(self, structure, values):
        """Repeats a value per unit of the holder for each unit that it holds.

        Arguments
        ---------
        structure : Structure
            A structure with a holder.
        values : torch.Tensor
            (units of the holder,)

        Returns
        -------
        torch.Tensor
            (units,)
        """
        return values.repeat_interleave(torch.tensor(self.inside(structure)))


def _check_inside(structure, holder):
    """Refuses units of which it is not clear what holds them."""
    name, units, inside = structure.name, structure.units, structure.inside
    if not inside and units % holder.units:
        raise ValueError(
            f"{units} units of {name} are not divisible by the {holder.units} "
            f"of {holder.name}; write `inside`"
        )
    if inside and (len(inside), sum(inside)) != (holder.units, units):
        raise ValueError(
            f"inside: {len(inside)} numbers with the sum {sum(inside)} for "
            f"{units} units of {name} in the {holder.units} of {holder.name}"
        )


def tensor_of(root, name):
    """Finds a parameter or buffer by its dotted name.

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
        If it is neither, as for the `weight` under weight norm.
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
    """Joins the parts of a dotted name; empty parts are left out.

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
