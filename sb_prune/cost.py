"""Parameters and multiply-accumulates of a model, dense, expected or cut.

Both are polynomials in the number of kept units of each structure: a tensor
counts the product of what is left of its axes, an operation its dense MACs
times the share left of each dimension it runs over. A `Cost` holds such a
polynomial as three small tensors, so that thousands of gates cost microseconds
and the derivative comes from autograd.
"""

import math
from collections import defaultdict

import torch

from sb_prune.structure import below


class Cost:
    """A polynomial in the kept units of every structure of a declaration.

    Arguments
    ---------
    declaration : Declaration
        Whose structures are the variables.
    terms : list of (float, tuple)
        (coefficient, factors); each factor is (structure name, fixed, slope)
        and stands for `fixed + slope * kept units`.
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

    def of_kept(self, kept):
        """Cost at given numbers of kept units.

        Arguments
        ---------
        kept : torch.Tensor
            (..., structures), float64; closed modules count 0.

        Returns
        -------
        torch.Tensor
            (...)
        """
        ones = torch.ones_like(kept[..., :1])
        kept = torch.cat([kept, ones], dim=-1)[..., self.variables]
        return (self.fixed + self.slopes * kept).prod(-1) @ self.coefficients

    def expected(self, probabilities):
        """Expected cost under independent gates, differentiable.

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
        """Sums a value per gate into a value per structure.

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
        """Cost with every unit kept."""
        return float(self.expected(torch.ones(len(self._owner))))


def parameter_cost(declaration, prefix=""):
    """Number of parameters of the scope.

    Arguments
    ---------
    declaration : Declaration
        What can be cut.
    prefix : str
        Counts only what lies below this module.

    Returns
    -------
    Cost
    """
    share = _tensor_shares(declaration)
    terms = [
        (parameter.numel(), share[name] + _owners(declaration, name))
        for name, parameter in declaration.root.named_parameters()
        if _counted(declaration, name, prefix)
    ]
    return Cost(declaration, terms)


def mac_cost(declaration, frames, prefix=""):
    """Multiply-accumulates of the scope for one utterance.

    Arguments
    ---------
    declaration : Declaration
        What can be cut.
    frames : int
        Length of the utterance at the input of the scope.
    prefix : str
        Counts only what lies below this module.

    Returns
    -------
    Cost
    """
    share = _tensor_shares(declaration)
    units = {s.name: s.units for s in declaration.structures}
    terms = []
    for operation in declaration.operations(frames):
        if not _counted(declaration, operation.module, prefix):
            continue
        factors = share[operation.tensor] if operation.tensor else ()
        factors += tuple(
            (name, 0.0, 1 / units[name])
            for name in operation.structures
            if name in units
        )
        owners = _owners(declaration, operation.module)
        terms.append((operation.macs, factors + owners))
    return Cost(declaration, terms)


def _counted(declaration, name, prefix):
    return below(name, prefix) and any(
        below(name, module) for module in declaration.scope
    )


def _tensor_shares(declaration):
    """Tensor name -> factors for the share of it that its cuts leave."""
    sizes = {
        name: tuple(p.shape) for name, p in declaration.root.named_parameters()
    }
    shares = defaultdict(tuple)
    for structure in declaration.structures:
        for cut in structure.cuts:
            size = sizes[cut.tensor]
            size = math.prod(size) if cut.dim is None else size[cut.dim]
            slope = cut.index.shape[1] / size
            fixed = 1 - structure.units * slope
            factor = (structure.name, round(fixed, 12), slope)
            shares[cut.tensor] += (factor,)
    return shares


def _owners(declaration, name):
    """Factors of every structure whose removal takes `name` with it."""
    return tuple(
        (s.name, 0.0, 1.0) for s in declaration.structures if s.takes(name)
    )
