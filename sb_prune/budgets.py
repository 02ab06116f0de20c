"""Budgets: what is measured, how much of it may stay, and plans that fit.

Sparsity everywhere is the share of the dense cost that is gone.
"""

from dataclasses import dataclass

import torch

from sb_prune.cost import Cost, mac_cost, parameter_cost
from sb_prune.plan import Plan, full_plan
from sb_prune.structure import below


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
        """Share of the dense cost that is gone."""
        return 1 - cost / self.dense


class _Budget:
    unit = ""
    frames = 250  # at which MACs are logged

    def __init__(self, target):
        self.targets = target if isinstance(target, dict) else {"": target}
        for prefix, value in self.targets.items():
            if not 0 < value < 1:
                name = f"target[{prefix}]" if prefix else "target"
                raise ValueError(
                    f"{name}: {value} is no sparsity; write a number between "
                    "0 and 1, e.g. 0.5 to cut half"
                )

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

        Raises
        ------
        ValueError
            If a target is beyond what the declared structures allow, or the
            groups do not partition the structures.
        """
        _check_partition(declaration, list(self.targets))
        groups = []
        for prefix, target in self.targets.items():
            cost = self.cost(declaration, prefix)
            members = torch.cat(
                [
                    torch.full((s.units,), below(s.name, prefix))
                    for s in declaration.structures
                ]
            )
            group = Group(prefix, target, cost, cost.dense(), members)
            most = group.sparsity(
                float(cost.of_kept(_fewest(declaration, min_keep)))
            )
            if target > most:
                raise ValueError(
                    f"target: {target} cannot be reached with the declared "
                    f"kinds (at most {most:.3f}); lower it or declare more "
                    "kinds"
                )
            groups.append(group)
        return groups

    def cost(self, declaration, prefix=""):
        """The cost that this budget counts, as a `Cost`."""
        raise TypeError("use ParameterBudget or MACBudget")


class ParameterBudget(_Budget):
    """Counts parameters.

    Arguments
    ---------
    target : float or dict
        Sparsity to reach, in (0, 1); a dict gives one per module prefix.

    Example
    -------
    >>> ParameterBudget(target=1.5)
    Traceback (most recent call last):
    ValueError: target: 1.5 is no sparsity; write a number between 0 and 1, e.g. 0.5 to cut half
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
    frames : int
        Length at the input of the counted modules, e.g. 250: 10 s of audio
        behind a front-end that makes 25 frames per second.
    """

    unit = "MACs"

    def __init__(self, target, frames=250):
        super().__init__(target)
        self.frames = frames

    def cost(self, declaration, prefix=""):
        """MACs below prefix, as a `Cost`."""
        return mac_cost(declaration, self.frames, prefix)


def _check_partition(declaration, prefixes):
    by_structure = {
        s.name: [p for p in prefixes if below(s.name, p)]
        for s in declaration.structures
    }
    for prefix in prefixes:
        if not any(prefix in found for found in by_structure.values()):
            raise ValueError(
                f"target: no structure lies below {prefix!r}; the modules are "
                f"{sorted(declaration.layers)}"
            )
    for structure in declaration.structures:
        found = by_structure[structure.name]
        parents = by_structure.get(structure.parent, found)
        if len(found) != 1 or parents != found:
            raise ValueError(
                f"target: {structure.name} lies in {found or 'no group'}; "
                "every structure must lie in one group, with its parent"
            )


def _fewest(declaration, min_keep):
    """Kept units when all that may go has gone."""
    counts, alive = [], {None: True}
    for s in declaration.structures:
        alive[s.name] = alive[s.parent] and s.is_leaf
        counts.append(min(min_keep, s.units) if alive[s.name] else 0)
    return torch.tensor(counts).double()


def fit_plan(declaration, groups, scores, shares=None, min_keep=1):
    """The best plan within the budget: one threshold, then a greedy finish.

    Units stay in the order of their scores. A module that would stay without
    any of its units goes; where it must stay, `min_keep` units do. What is
    then left of the budget is filled with the best-scored units that fit; if
    all the cheapest are open already, some make room for a dearer one. So the
    realised cost is never above the budget and short of it by less than the
    cheapest open leaf unit, as long as any closed unit stands in an open
    module.

    Arguments
    ---------
    declaration : Declaration
        Of the dense model.
    groups : list of Group
        From a budget.
    scores : torch.Tensor
        (N,), higher stays longer.
    shares : list of float, optional
        Sparsity to reach per group; by default each group's target.
    min_keep : int
        Units that stay where a module stays.

    Returns
    -------
    Plan
    """
    order = _ranks(declaration, scores)
    plan = full_plan(declaration)
    for i, group in enumerate(groups):
        share = group.target if shares is None else shares[i]
        if share > 0:
            limit = group.dense * (1 - share) * (1 + 1e-9)
            _fit_group(declaration, group, order, limit, min_keep, plan)
    for structure in declaration.structures:
        if not plan.is_open(structure, declaration):
            plan.keep[structure.name][:] = False
    return plan


def _ranks(declaration, scores):
    """Scores without ties: whole modules outlive units, else by lot."""
    lot = torch.randperm(
        declaration.total_units, generator=torch.Generator().manual_seed(0)
    )
    whole = torch.cat(
        [torch.full((s.units,), not s.is_leaf) for s in declaration.structures]
    )
    order = torch.argsort(whole[lot].int(), stable=True)
    lot = lot[order]
    lot = lot[torch.argsort(scores.detach().cpu()[lot], stable=True)]
    ranks = torch.empty_like(lot)
    ranks[lot] = torch.arange(len(lot))
    return ranks


def _fit_group(declaration, group, ranks, limit, min_keep, plan):
    """Fits one group's part of a plan, in place."""
    levels = ranks[group.members].sort().values
    low, high = 0, len(levels)  # keep units whose rank is >= levels[low]
    while low < high:
        middle = (low + high) // 2
        _keep_from(declaration, group, ranks, levels[middle], min_keep, plan)
        if _gap(declaration, group, limit, plan) >= 0:
            high = middle
        else:
            low = middle + 1
    level = levels[low] if low < len(levels) else levels[-1] + 1
    _keep_from(declaration, group, ranks, level, min_keep, plan)
    while _fill(declaration, group, ranks, limit, plan) or _open_module(
        declaration, group, ranks, limit, min_keep, plan
    ):
        pass
    while _exchange(declaration, group, ranks, limit, min_keep, plan):
        pass


def _keep_from(declaration, group, ranks, level, min_keep, plan):
    """Keeps the units ranked at or above a level."""
    pieces = declaration.split(ranks)
    members = declaration.split(group.members)
    for s in declaration.structures:
        if members[s.name].any():
            plan.keep[s.name] = pieces[s.name] >= level
    for s in reversed(declaration.structures):
        if not (s.is_leaf and members[s.name].any()):
            continue
        if not plan.keep[s.name].any() and _removable_alone(declaration, s):
            plan.keep[s.parent][:] = False
        _top_up(plan.keep[s.name], pieces[s.name], min_keep)


def _removable_alone(declaration, leaf):
    """Whether the leaf's parent removes just the module the leaf is in."""
    parent = declaration.by_name.get(leaf.parent)
    return parent is not None and parent.name in dict(parent.removes)


def _top_up(kept, ranks, min_keep):
    if kept.sum() < min_keep:
        kept[ranks.topk(min(min_keep, len(kept))).indices] = True


def _fill(declaration, group, ranks, limit, plan):
    """Opens the best-ranked units that fit; returns whether any did."""
    gap = _gap(declaration, group, limit, plan)
    pieces = declaration.split(ranks)
    closed = [
        (int(pieces[name][unit]), price, name, unit)
        for name, price in leaf_prices(declaration, group, plan).items()
        if price <= gap
        for unit in (~plan.keep[name]).nonzero().flatten().tolist()
    ]
    opened = []
    for _, price, name, unit in sorted(closed, reverse=True):
        if price <= gap:
            plan.keep[name][unit] = True
            opened.append((name, unit))
            gap -= price
    # prices rise where a tensor is cut along two axes: take back what is over
    while opened and _gap(declaration, group, limit, plan) < 0:
        name, unit = opened.pop()
        plan.keep[name][unit] = False
    return bool(opened)


def _open_module(declaration, group, ranks, limit, min_keep, plan):
    """Opens the best-ranked closed module that fits with min_keep units."""
    pieces = declaration.split(ranks)
    closed = _closed_modules(declaration, group, plan)
    for s in sorted(closed, key=lambda s: -int(pieces[s.name][0])):
        before = dict(plan.keep)
        plan.keep.update(_opened(declaration, s, pieces, min_keep))
        if _gap(declaration, group, limit, plan) >= 0:
            return True
        plan.keep.update(before)
    return False


def _closed_modules(declaration, group, plan):
    members = declaration.split(group.members)
    return [
        s
        for s in declaration.structures
        if not s.is_leaf
        and members[s.name].any()
        and not plan.keep[s.name].all()
        and plan.is_open(s, declaration)
    ]


def _opened(declaration, module, pieces, min_keep):
    """What a plan keeps of a module opened with as little as possible."""
    keep = {module.name: torch.ones(module.units).bool()}
    for child in declaration.structures:
        if child.parent == module.name:
            keep[child.name] = torch.zeros(child.units).bool()
            if child.is_leaf:
                _top_up(keep[child.name], pieces[child.name], min_keep)
    return keep


def _exchange(declaration, group, ranks, limit, min_keep, plan):
    """Closes cheap units for something dearer, where only that is closed.

    Returns whether this brought the plan closer to the limit.
    """
    gap = _gap(declaration, group, limit, plan)
    prices = leaf_prices(declaration, group, plan)
    if not prices or gap < min(prices.values()):
        return False
    pieces = declaration.split(ranks)
    before = {name: kept.clone() for name, kept in plan.keep.items()}
    for price, opening in _openings(
        declaration, group, pieces, limit, min_keep, plan
    ):
        missing = price - gap
        for cost, _, name, unit in _open_units(prices, pieces, plan):
            kept = plan.keep[name]
            if missing > 0 and name not in opening and kept.sum() > min_keep:
                kept[unit] = False
                missing -= cost
        plan.keep.update(opening)
        _fill(declaration, group, ranks, limit, plan)
        if 0 <= _gap(declaration, group, limit, plan) < gap:
            return True
        plan.keep.update({name: kept.clone() for name, kept in before.items()})
    return False


def _openings(declaration, group, pieces, limit, min_keep, plan):
    """(price, kept units) of all that could be opened next, cheapest first."""
    found = [
        _opened(declaration, s, pieces, min_keep)
        for s in _closed_modules(declaration, group, plan)
    ]
    for name in leaf_prices(declaration, group, plan):
        kept = plan.keep[name].clone()
        if not kept.all():
            kept[pieces[name].masked_fill(kept, -1).argmax()] = True
            found.append({name: kept})
    gap = _gap(declaration, group, limit, plan)
    priced = [
        (gap - _gap(declaration, group, limit, Plan({**plan.keep, **o})), o)
        for o in found
    ]
    return sorted(priced, key=lambda pair: pair[0])


def _open_units(prices, pieces, plan):
    """(price, rank, name, unit) of all open units, cheapest and worst first."""
    return sorted(
        (price, int(pieces[name][unit]), name, unit)
        for name, price in prices.items()
        for unit in plan.keep[name].nonzero().flatten().tolist()
    )


def _gap(declaration, group, limit, plan):
    """What is left of a budget."""
    return limit - float(group.cost.of_kept(plan.kept_counts(declaration)))


def leaf_prices(declaration, group, plan):
    """Cost of one more unit of each leaf structure of a group left open.

    Arguments
    ---------
    declaration : Declaration
        Of the dense model.
    group : Group
        Whose cost counts.
    plan : Plan
        Where the model stands.

    Returns
    -------
    dict
        Structure name -> cost of a unit.
    """
    counts = plan.kept_counts(declaration)
    one_more = group.cost.of_kept(counts + torch.eye(len(counts)).double())
    prices = one_more - group.cost.of_kept(counts)
    members = declaration.split(group.members)
    return {
        s.name: float(price)
        for s, price in zip(declaration.structures, prices)
        if s.is_leaf and members[s.name].any() and plan.is_open(s, declaration)
    }
