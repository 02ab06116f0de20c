"""Parts of layers: what all architectures say of one module of a layer.

A `Part` has the structures of the whole module, of its units and of what is
inside the units, and the operations that it runs.
"""

from dataclasses import dataclass, replace
from functools import wraps
from typing import Callable

import torch
from torch.nn.utils.rnn import pad_sequence

from sb_prune.architectures.indices import consecutive
from sb_prune.cut.surgery import Absent
from sb_prune.declare.structure import Operation, Slices, Structure


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


def identity(norm):
    """Entry of `Structure.removes` that turns a norm, if any, into Identity."""
    return ((norm, torch.nn.Identity),) if norm else ()


def whole_linear(name, linear):
    """Masks for all of a Linear, the last of a module that one gate closes."""
    size = consecutive(1, linear.out_features)
    tensors = ["weight"] if linear.bias is None else ["weight", "bias"]
    return tuple(Slices(f"{name}.{tensor}", 0, size) for tensor in tensors)


def same_length(frames):
    """Returns the number of frames, for modules that run once per frame."""
    return frames


def uncut_operations(name, module, steps=same_length):
    """Operations of a module that stays whole, as far as its weights go.

    Arguments
    ---------
    name : str
        Name of the module from the root.
    module : torch.nn.Module
        Each of its weights is applied once per step.
    steps : callable
        frames -> number of steps.

    Returns
    -------
    callable
        frames (int) -> list of Operation.
    """
    size = sum(
        weight.numel()
        for part, weight in module.named_parameters()
        if weight.dim() > 1 and "bias" not in part
    )
    return lambda frames: [Operation(steps(frames) * size, name)]


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
