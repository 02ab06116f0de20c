"""Parameters and multiply-accumulates of a dense, a masked or a cut model.

Both are polynomials in the numbers of kept units of all structures. The
parameters of a tensor are the product of the lengths of its axes, which become
shorter. The MACs of an operation are the dense ones times the fraction that is
kept of each dimension that it runs over. A `Cost` stores such a polynomial as
three small tensors, so that it is evaluated within microseconds for thousands
of gates, and autograd computes its derivative.
"""

import math
from collections import defaultdict
from itertools import accumulate

import torch

from sb_prune.declare.structure import below
from sb_prune.support.values import Whole, checked

WHOLE = [(1.0, ())]  # terms of a tensor that no structure cuts


class Cost:
    """A polynomial in the numbers of kept units of all structures.

    Arguments
    ---------
    declaration : Declaration
        Declares the structures, which are the variables.
    terms : list of (float, tuple)
        Pairs (coefficient, factors). Each factor is a triple (structure name,
        fixed, slope) and stands for `fixed + slope * kept units`.
    """

    def __init__(self, declaration, terms):
        self.declaration = declaration
        position = {s.name: i for i, s in enumerate(declaration.structures)}
        merged = defaultdict(float)
        for coefficient, factors in terms:
            merged[tuple(sorted(factors))] += coefficient
        width = max((len(f) for f in merged), default=0) or 1
        shape = (len(merged), width)
        self.coefficients = torch.tensor(list(merged.values())).double()
        self.variables = torch.full(shape, len(position))
        self.fixed = torch.ones(shape, dtype=torch.float64)
        self.slopes = torch.zeros(shape, dtype=torch.float64)
        for row, factors in enumerate(merged):
            for column, (name, fixed, slope) in enumerate(factors):
                self.variables[row, column] = position[name]
                self.fixed[row, column] = fixed
                self.slopes[row, column] = slope
        self._owner = torch.repeat_interleave(
            torch.tensor([s.units for s in declaration.structures])
        )
        self._holder = _holding_units(declaration)

    def of_kept(self, kept):
        """Cost for given numbers of kept units.

        Arguments
        ---------
        kept : torch.Tensor
            (..., structures), float64; 0 for structures in removed modules.

        Returns
        -------
        torch.Tensor
            (...)
        """
        ones = torch.ones_like(kept[..., :1])
        kept = torch.cat([kept, ones], dim=-1)[..., self.variables]
        return (self.fixed + self.slopes * kept).prod(-1) @ self.coefficients

    def expected(self, probabilities):
        """Expected cost if gates are independent, differentiable.

        Arguments
        ---------
        probabilities : torch.Tensor
            (N,) keep probabilities.

        Returns
        -------
        torch.Tensor
            Scalar, float64.
        """
        return self.of_kept(self.sum_units(probabilities))

    def sum_units(self, values):
        """Sums the values of the gates of each structure.

        The value of a gate inside the unit of a holder is multiplied by the
        value of that unit.

        Arguments
        ---------
        values : torch.Tensor
            (N,)

        Returns
        -------
        torch.Tensor
            (structures,), float64.
        """
        values = values.double().cpu()
        if self._holder is not None:
            values = (
                values * torch.cat([values, values.new_ones(1)])[self._holder]
            )
        total = torch.zeros(len(self.declaration.structures)).double()
        return total.index_add(0, self._owner, values)

    def depends_on(self):
        """Names of the structures whose kept units change this cost.

        Returns
        -------
        set of str
        """
        structures = self.declaration.structures
        positions = self.variables.unique().tolist()
        return {structures[i].name for i in positions if i < len(structures)}

    def dense(self):
        """Cost with all units kept."""
        return float(self.expected(torch.ones(len(self._owner))))


def parameter_cost(declaration, prefix=""):
    """Number of parameters of the scope.

    Arguments
    ---------
    declaration : Declaration
        Declares what can be pruned.
    prefix : str
        Counts only what lies below this module.

    Returns
    -------
    Cost
    """
    kept = _kept_fractions(declaration)
    terms = [
        (parameter.numel() * part, factors + _owners(declaration, name))
        for name, parameter in declaration.root.named_parameters()
        if _counted(declaration, name, prefix)
        for part, factors in kept[name]
    ]
    return Cost(declaration, terms)


@checked
def mac_cost(declaration, frames: Whole(1), prefix=""):
    """Multiply-accumulates of the scope for one utterance.

    Arguments
    ---------
    declaration : Declaration
        Declares what can be pruned.
    frames : int
        Length of the utterance at the input of the scope.
    prefix : str
        Counts only what lies below this module.

    Returns
    -------
    Cost

    Raises
    ------
    ValueError
        If frames is no positive whole number.
    """
    kept = _kept_fractions(declaration)
    terms = []
    for operation in declaration.operations(frames):
        if not _counted(declaration, operation.module, prefix):
            continue
        more = _scaling(declaration, operation)
        more += _owners(declaration, operation.module)
        parts = kept[operation.tensor] if operation.tensor else WHOLE
        terms += [
            (operation.macs * part, factors + more) for part, factors in parts
        ]
    return Cost(declaration, terms)


def _scaling(declaration, operation):
    """Factors of the structures that an operation runs over."""
    found = []
    for names in operation.structures:
        names = (names,) if isinstance(names, str) else names
        known = [declaration.by_name.get(name) for name in names]
        known = [structure for structure in known if structure]
        found += [(s.name, 0.0, 1 / s.units) for s in known[:1]]
    return tuple(found)


def _counted(declaration, name, prefix):
    return below(name, prefix) and any(
        below(name, module) for module in declaration.scope
    )


def _kept_fractions(declaration):
    """Fraction of each tensor that is kept: name -> terms as in `Cost`.

    Structures that cut the same axis add up; different axes multiply.
    """
    sizes = {
        name: tuple(p.shape) for name, p in declaration.root.named_parameters()
    }
    slopes = defaultdict(list)  # (tensor, axis) -> fraction of it in each unit
    for structure in declaration.structures:
        for cut in structure.cuts:
            if cut.tensor not in sizes:  # buffers are not counted
                continue
            size = sizes[cut.tensor]
            size = math.prod(size) if cut.dim is None else size[cut.dim]
            slope = cut.index.shape[1] / size
            slopes[cut.tensor, cut.dim].append((structure, slope))
    kept = defaultdict(lambda: WHOLE)
    for (tensor, _), found in slopes.items():
        kept[tensor] = [
            (a * b, first + second)
            for a, first in kept[tensor]
            for b, second in _kept_of_axis(found)
        ]
    return kept


def _kept_of_axis(found):
    """Terms of the kept fraction of an axis, for all structures that cut it."""
    fixed = round(1 - sum(s.units * slope for s, slope in found), 12)
    if len(found) == 1:
        (structure, slope) = found[0]
        return [(1.0, ((structure.name, fixed, slope),))]
    never_cut = [(fixed, ())] if fixed else []
    return never_cut + [
        (1.0, ((structure.name, 0.0, slope),)) for structure, slope in found
    ]


def _holding_units(declaration):
    """(N,) position of the gate of the unit that holds each unit, else N.

    None if there are no units that hold others.
    """
    structures = declaration.structures
    if not any(s.holds for s in structures):
        return None
    total = declaration.total_units
    starts = {s.name: p for s, p in zip(structures, _starts(structures))}
    return torch.cat(
        [
            torch.full((s.units,), total)
            if holder is None
            else declaration.held(
                s, starts[holder.name] + torch.arange(holder.units)
            )
            for s in structures
            for holder in [declaration.holder(s)]
        ]
    )


def _starts(structures):
    """Position of the first gate of each structure."""
    return accumulate((s.units for s in structures), initial=0)


def _owners(declaration, name):
    """Factors of every structure whose removal removes `name` too."""
    return tuple(
        (s.name, 0.0, 1.0) for s in declaration.structures if s.takes(name)
    )
