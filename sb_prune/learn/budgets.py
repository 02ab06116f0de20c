"""Budgets: what is measured, and how much of it may go.

Sparsity is always the fraction of the dense cost that is gone.
"""

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import torch

from sb_prune.declare.cost import Cost, mac_cost, parameter_cost
from sb_prune.declare.structure import below
from sb_prune.support.values import Number, OneOrMapping, Whole, checked

SPARSITIES = OneOrMapping(
    Number(above=0, below=1, example=", e.g. 0.5 to cut half"), "module prefix"
)


@dataclass(frozen=True)
class Group:
    """One target: the structures it governs and the cost it counts.

    Arguments
    ---------
    prefix : str
        Module below which the cost is counted.
    target : float
        Final sparsity.
    cost : Cost
        Polynomial in the kept units.
    dense : float
        Cost of the dense model.
    members : torch.Tensor
        (N,) bool, gates of the group.
    """

    prefix: str
    target: float
    cost: Cost
    dense: float
    members: torch.Tensor

    def sparsity(self, cost):
        """Fraction of the dense cost that is gone."""
        return 1 - cost / self.dense


class _Budget:
    unit = ""
    frames = None

    @checked
    def __init__(self, target: SPARSITIES):
        self.target = target
        self.targets = target if isinstance(target, dict) else {"": target}

    def groups(self, declaration, min_keep=1):
        """One `Group` per target.

        Arguments
        ---------
        declaration : Declaration
            Of the dense model.
        min_keep : int
            Units that stay where a module stays.

        Returns
        -------
        list of Group
            Those on whose structures the cost of another depends come first
            (a front-end, then the Transformer whose first Linear shrinks with
            the front-end's channels), so that they can be met one by one.

        Raises
        ------
        ValueError
            If a target is beyond what the declared structures allow, the
            groups do not partition the structures, or two depend on each
            other.
        """
        _check_partition(declaration, list(self.targets))
        groups = _in_order(
            declaration,
            [
                self._group(declaration, prefix, target)
                for prefix, target in self.targets.items()
            ],
        )
        for group in groups:
            _check_reach(declaration, group, min_keep)
        return groups

    def _group(self, declaration, prefix, target):
        cost = self.cost(declaration, prefix)
        if not cost.dense() > 0:
            raise ValueError(
                f"{_key(prefix)}: there are no {self.unit} to remove below "
                f"{prefix or 'the module'}; name another module"
                + (", or write more frames" if self.frames else "")
            )
        members = torch.cat(
            [
                torch.full((s.units,), below(s.name, prefix))
                for s in declaration.structures
            ]
        )
        return Group(prefix, target, cost, cost.dense(), members)

    def cost(self, declaration, prefix=""):
        """The cost that this budget counts, as a `Cost`."""
        raise TypeError("use ParameterBudget or MACBudget")


def _key(prefix):
    return f"target[{prefix}]" if prefix else "target"


class ParameterBudget(_Budget):
    """Counts parameters.

    Arguments
    ---------
    target : float or dict
        Sparsity to reach, in (0, 1); a dict gives one per module prefix.

    Example
    -------
    >>> ParameterBudget(target="half")
    Traceback (most recent call last):
    ValueError: ParameterBudget: target: 'half'; write a number between 0 and 1, e.g. 0.5 to cut half
    """  # noqa: E501

    unit = "parameters"

    def cost(self, declaration, prefix=""):
        """Number of parameters below prefix, as a `Cost`."""
        return parameter_cost(declaration, prefix)


class MACBudget(_Budget):
    """Counts multiply-accumulates at a stated length.

    Arguments
    ---------
    target : float or dict
        Sparsity to reach, in (0, 1); a dict gives one per module prefix.
    frames : int, optional
        Length at the input of the counted modules, e.g. 250: 10 s of audio
        behind a front-end that makes 25 frames per second; 1000, feature
        frames, where that front-end is counted too; 160000, samples, where
        the waveform is the input. By default the declaration's usual length.
    """

    unit = "MACs"

    @checked
    def __init__(self, target: SPARSITIES, frames: Whole(1) = None):
        super().__init__(target)
        self.frames = frames

    def cost(self, declaration, prefix=""):
        """MACs below prefix, as a `Cost`."""
        frames = self.frames
        if frames is None:
            frames = declaration.usual_frames
        return mac_cost(declaration, frames, prefix)


def _check_partition(declaration, prefixes):
    by_structure = {
        s.name: [p for p in prefixes if below(s.name, p)]
        for s in declaration.structures
    }
    for prefix in prefixes:
        if not any(prefix in found for found in by_structure.values()):
            raise ValueError(
                f"target: no structure lies below {prefix!r}; the modules are "
                f"{sorted({*declaration.scope, *declaration.layers} - {''})}"
            )
    for structure in declaration.structures:
        found = by_structure[structure.name]
        parents = by_structure.get(structure.parent, found)
        if len(found) != 1 or parents != found:
            raise ValueError(
                f"target: {structure.name} lies in {found or 'no group'}; "
                "every structure must lie in one group, with its parent"
            )


def _check_reach(declaration, group, min_keep):
    fewest = _fewest(declaration, min_keep, group.prefix)
    most = group.sparsity(float(group.cost.of_kept(fewest)))
    if group.target > most:
        raise ValueError(
            f"{_key(group.prefix)}: {group.target} cannot be reached with the "
            f"declared kinds (at most {most:.3f}); lower it or declare more "
            "kinds"
        )


def _fewest(declaration, min_keep, prefix):
    """Kept units when all that may go below prefix has gone."""
    counts, alive = {}, {None: True}
    for s in declaration.structures:
        if not below(s.name, prefix):
            counts[s.name] = s.units
            continue
        alive[s.name] = alive[s.parent] and not s.removes
        holder = declaration.holder(s)
        holders, units = 1, s.units
        if holder:
            holders, units = counts[holder.name], s.units // holder.units
        fewest = min(min_keep, units) * holders
        counts[s.name] = fewest if alive[s.name] else 0
    return torch.tensor(list(counts.values())).double()


def _in_order(declaration, groups):
    """The groups, each behind those that own structures it depends on."""
    owner = {
        s.name: group.prefix
        for group in groups
        for s in declaration.structures
        if below(s.name, group.prefix)
    }
    before = {
        group.prefix: {owner[name] for name in group.cost.depends_on()}
        - {group.prefix}
        for group in groups
    }
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise ValueError(
            f"target: {error.args[1][1:]} shrink with one another; give them "
            "one target"
        ) from None
    return sorted(groups, key=lambda group: order.index(group.prefix))
