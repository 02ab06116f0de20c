"""Budgets: the cost that is counted, and the target sparsity.

Sparsity is always the fraction of the dense model's cost that is removed. If a
model was pruned before, its dense model is the original, from before the first
pruning; so what is gone already counts.
"""

from dataclasses import dataclass
from functools import cached_property
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
    """The part of a model that has one target.

    Arguments
    ---------
    prefix : str
        Module of this group; its cost is counted, its structures are pruned.
    target : float
        Final sparsity.
    cost : Cost
        Cost as a polynomial in the numbers of kept units.
    dense : float
        Cost of the module in the original dense model.
    members : torch.Tensor
        (N,) bool, True for the gates of the group.
    unit : str
        What is counted, for error messages, e.g. `parameters`.
    """

    prefix: str
    target: float
    cost: Cost
    dense: float
    members: torch.Tensor
    unit: str

    def sparsity(self, cost):
        """Fraction of the dense cost that is removed, given the cost left."""
        return 1 - cost / self.dense

    @cached_property
    def gone(self):
        """Sparsity with all gates open: what earlier prunings removed."""
        return self.sparsity(self.cost.dense())

    def scheduled(self, fraction):
        """Sparsity on the way from what is gone to the target.

        Arguments
        ---------
        fraction : float
            Fraction of the way, in [0, 1], from a schedule.

        Returns
        -------
        float
            Exactly `gone` at 0, and exactly `target` at 1.
        """
        return self.gone * (1 - fraction) + self.target * fraction

    def check_above_gone(self, sparsity, key, remedy):
        """Refuses a sparsity that earlier prunings have reached already.

        Arguments
        ---------
        sparsity : float
            As the user wrote it.
        key : str
            Key of the YAML that holds it, e.g. `milestones`.
        remedy : str
            What to write instead, the end of the error message.

        Raises
        ------
        ValueError
            If it is not above `gone`.
        """
        if sparsity <= self.gone:
            raise ValueError(
                f"{key}: {sparsity} is not above what earlier prunings removed "
                f"already ({self.gone:.1%} of the {self.unit} of the dense "
                f"model are gone); {remedy}"
            )


class _Budget:
    unit = ""
    frames = None

    @checked
    def __init__(self, target: SPARSITIES):
        self.target = target
        self.targets = target if isinstance(target, dict) else {"": target}

    def groups(self, declaration, min_keep=1, original=None):
        """Makes one `Group` for each target.

        Arguments
        ---------
        declaration : Declaration
            Of the model that is pruned now.
        min_keep : int
            Smallest number of units in a module that stays.
        original : Declaration, optional
            Of the dense model, made by the same function, if `declaration` is
            that of a model that was pruned before. Targets count from it.

        Returns
        -------
        list of Group
            Ordered so that the cost of a group depends on its own structures
            and those of earlier groups only. For example, a front-end comes
            before the Transformer, whose first Linear becomes smaller with the
            channels of the front-end. So targets can be met one by one.

        Raises
        ------
        ValueError
            If a target is reached already or cannot be reached with the
            declared structures, a structure does not lie in exactly one group,
            or two groups depend on each other.
        """
        if original is None:
            original = declaration
        _check_original(declaration, original)
        _check_partition(declaration, list(self.targets))
        groups = _in_order(
            declaration,
            [
                self._group(declaration, original, prefix, target)
                for prefix, target in self.targets.items()
            ],
        )
        for group in groups:
            _check_reach(declaration, group, min_keep)
        return groups

    def _group(self, declaration, original, prefix, target):
        cost = self.cost(declaration, prefix)
        if not cost.dense() > 0:
            raise ValueError(
                f"{_key(prefix)}: there are no {self.unit} to remove below "
                f"{prefix or 'the module'}; name another module"
                + (", or write more frames" if self.frames else "")
            )
        dense = self.cost(original, prefix).dense()
        if not dense > 0:
            raise ValueError(
                f"{_key(prefix)}: the dense model from before earlier prunings "
                f"has no {self.unit} below {prefix}; name a module that it has"
            )
        members = torch.cat(
            [
                torch.full((s.units,), below(s.name, prefix))
                for s in declaration.structures
            ]
        )
        return Group(prefix, target, cost, dense, members, self.unit)

    def cost(self, declaration, prefix=""):
        """Cost below a module, as a `Cost`; defined by subclasses."""
        raise TypeError("use ParameterBudget or MACBudget")


def _key(prefix):
    return f"target[{prefix}]" if prefix else "target"


class ParameterBudget(_Budget):
    """A budget of parameters.

    Arguments
    ---------
    target : float or dict
        Sparsity to reach, in (0, 1), or a dict: module prefix -> sparsity.

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
    """A budget of multiply-accumulates (MACs) for utterances of one length.

    Arguments
    ---------
    target : float or dict
        Sparsity to reach, in (0, 1), or a dict: module prefix -> sparsity.
    frames : int, optional
        Length of the utterance at the input of the counted modules. For 10 s of
        audio it is 250 after a front-end that makes 25 frames per second, 1000
        feature frames if that front-end is counted too, and 160000 samples if
        the input is a waveform. The default is the `usual_frames` of the
        declaration.
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


def _check_original(declaration, original):
    """Refuses an original of which other modules or lengths are counted."""
    for field in ("scope", "usual_frames"):
        now, before = (getattr(d, field) for d in (declaration, original))
        if now != before:
            raise ValueError(
                f"original: its {field} is {before}, not {now}; declare it "
                "with the function that declares the model to prune"
            )


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
    key = _key(group.prefix)
    group.check_above_gone(
        group.target, key, f"write more (at most {most:.3f})"
    )
    if group.target > most:
        raise ValueError(
            f"{key}: {group.target} cannot be reached with the "
            f"declared kinds (at most {most:.3f}); lower it or declare more "
            "kinds"
        )


def _fewest(declaration, min_keep, prefix):
    """Smallest possible numbers of kept units in a group, (structures,)."""
    counts, alive = {}, {None: True}
    for s in declaration.structures:
        if not below(s.name, prefix):
            counts[s.name] = s.units
            continue
        alive[s.name] = alive[s.parent] and not s.removes
        holder = declaration.holder(s)
        holders = counts[holder.name] if holder else 1
        # whichever units of the holder stay, no more than the widest
        widest = sorted(declaration.inside(s))[-holders:] if holders else []
        block = -(-min_keep // s.multiple) * s.multiple
        fewest = sum(min(block, units) for units in widest)
        counts[s.name] = fewest if alive[s.name] else 0
    return torch.tensor(list(counts.values())).double()


def _in_order(declaration, groups):
    """Sorts groups: each comes after those on whose structures it depends."""
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
