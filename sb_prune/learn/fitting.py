"""Makes plans that meet a budget, given a score for each unit."""

from functools import partial

import torch

from sb_prune.declare.plan import Plan, full_plan


def fit_plan(declaration, groups, scores, sparsities=None, min_keep=1):
    """Makes the plan that keeps the units with the highest scores.

    First, one threshold on the scores is found with which the cost is within
    the budget. A structure with a `multiple` keeps blocks of this many units. A
    module of which no unit would stay is removed; if it cannot be removed,
    `min_keep` of its units stay.

    Then the rest of the budget is filled greedily with the best-scored units
    that still fit. If only expensive units are left, cheap ones are removed to
    make room for one of them, as long as this uses more of the budget.

    So the cost never exceeds the budget. It falls short of it by less than the
    cheapest unit of a leaf structure in a module that stays, unless no exchange
    of units comes closer.

    Arguments
    ---------
    declaration : Declaration
        Of the model that is pruned.
    groups : list of Group
        From a budget.
    scores : torch.Tensor
        (N,), higher for units that should stay.
    sparsities : list of float, optional
        Sparsity to reach for each group; by default its target.
    min_keep : int
        Smallest number of units in a module that stays.

    Returns
    -------
    Plan
    """
    ranks = _ranks(declaration, scores)
    plan = full_plan(declaration)
    for i, group in enumerate(groups):
        sparsity = group.target if sparsities is None else sparsities[i]
        if sparsity > group.gone:
            limit = group.dense * (1 - sparsity) * (1 + 1e-9)
            _PlanFitter(declaration, group, ranks, limit, min_keep, plan).fit_()
    for structure in declaration.structures:
        if not plan.is_open(structure, declaration):
            plan.keep[structure.name][:] = False
        plan.keep[structure.name] = plan.kept(structure, declaration)
    return plan


def leaf_prices(declaration, group, plan):
    """Cost of one more unit of each leaf structure of a group.

    Structures inside removed modules are left out.

    Arguments
    ---------
    declaration : Declaration
        Of the model that is pruned.
    group : Group
        The group, whose cost is counted.
    plan : Plan
        The units that stay so far.

    Returns
    -------
    dict
        Structure name -> cost of a unit, or of a block of `multiple` units.
    """
    counts = plan.kept_counts(declaration)
    multiples = torch.tensor([s.multiple for s in declaration.structures])
    one_more = group.cost.of_kept(counts + torch.diag(multiples.double()))
    prices = one_more - group.cost.of_kept(counts)
    members = declaration.split(group.members)
    return {
        s.name: float(price)
        for s, price in zip(declaration.structures, prices)
        if s.is_leaf and members[s.name].any() and plan.is_open(s, declaration)
    }


def _ranks(declaration, scores):
    """Turns scores into ranks, (N,) int64, of which no two are equal.

    Of equal scores, whole modules rank above units, and the rest is random.
    """
    order = torch.randperm(
        declaration.total_units, generator=torch.Generator().manual_seed(0)
    )
    whole = torch.cat(
        [torch.full((s.units,), not s.is_leaf) for s in declaration.structures]
    )
    order = order[torch.argsort(whole[order].int(), stable=True)]
    order = order[torch.argsort(scores.detach().cpu()[order], stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks


def _block_ranks(ranks, multiple):
    """Gives each block of `multiple` units, best first, the rank of its best.

    Example
    -------
    >>> _block_ranks(torch.tensor([3, 9, 1, 4]), 2)
    tensor([3, 9, 3, 9])
    """
    if multiple == 1:
        return ranks
    best_first = ranks.argsort(descending=True)
    blocks = torch.empty_like(ranks)
    for block in best_first.split(multiple):
        blocks[block] = ranks[block[0]]
    return blocks


class _PlanFitter:
    """Fits the part of a plan that belongs to one group, in place.

    Arguments
    ---------
    declaration : Declaration
    group : Group
    ranks : torch.Tensor
        (N,) int64, all different, higher for units that should stay.
    limit : float
        Largest cost allowed.
    min_keep : int
        Smallest number of units in a module that stays.
    plan : Plan
        The plan to change.
    """

    def __init__(self, declaration, group, ranks, limit, min_keep, plan):
        self.declaration = declaration
        self.group = group
        self.limit = limit
        self.min_keep = min_keep
        self.plan = plan
        members = declaration.split(group.members)
        self.structures = [
            s for s in declaration.structures if members[s.name].any()
        ]
        ranks = declaration.split(ranks)
        self.ranks = {  # name -> (units,); equal within a block
            s.name: torch.cat(
                [
                    _block_ranks(inside, s.multiple)
                    for inside in declaration.by_holder(s, ranks[s.name])
                ]
            )
            for s in self.structures
        }

    def fit_(self):
        """Finds the threshold, fills up greedily, then exchanges units."""
        self._keep_above_threshold()
        while self._fill() or self._open_module():
            pass
        while self._exchange():
            pass

    def gap(self, plan=None):
        """How far the cost of a plan is below the limit; negative if above."""
        counts = (plan or self.plan).kept_counts(self.declaration)
        return self.limit - float(self.group.cost.of_kept(counts))

    def _prices(self):
        return leaf_prices(self.declaration, self.group, self.plan)

    def _keep_above_threshold(self):
        """Applies the lowest threshold within the limit, found by bisection."""
        levels = torch.cat([self.ranks[s.name] for s in self.structures])
        levels = levels.sort().values
        levels = torch.cat([levels, levels[-1:] + 1])
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            self._keep_from(levels[middle])
            if self.gap() >= 0:
                high = middle
            else:
                low = middle + 1
        self._keep_from(levels[low])

    def _keep_from(self, level):
        """Keeps the units whose rank is at least `level`."""
        keep = self.plan.keep
        for s in self.structures:
            keep[s.name] = self.ranks[s.name] >= level
        for s in reversed(self.structures):
            if s.removes:
                continue
            if self.declaration.holder(s):
                inside = self.declaration.by_holder(s, keep[s.name])
                keep[s.parent] &= torch.stack([i.any() for i in inside])
            elif not keep[s.name].any() and self._alone_in_parent(s):
                keep[s.parent][:] = False
        for s in self.structures:
            if not s.removes:
                self._top_up(s, keep[s.name])

    def _alone_in_parent(self, units):
        """Whether the parent of some units removes the module they are in."""
        parent = self.declaration.by_name.get(units.parent)
        return parent is not None and parent.name in dict(parent.removes)

    def _top_up(self, structure, kept):
        """Keeps the best `min_keep` units at least, per unit of a holder."""
        by_holder = partial(self.declaration.by_holder, structure)
        ranks = self.ranks[structure.name]
        for inside, ranked in zip(by_holder(kept), by_holder(ranks)):
            if inside.sum() < self.min_keep:
                count = min(self.min_keep, len(inside))
                inside[ranked >= ranked.topk(count).values[-1]] = True

    def _has_enough(self, structure, kept):
        """Whether `min_keep` units stay, per unit of a holder."""
        plan = Plan({**self.plan.keep, structure.name: kept})
        inside = plan.kept_inside(structure, self.declaration)
        fewest = torch.tensor(self.declaration.inside(structure))
        enough = inside >= fewest.clamp(max=self.min_keep)
        holder = self.declaration.holder(structure)
        if holder:
            enough |= ~self.plan.keep[holder.name]
        return bool(enough.all())

    def _reachable(self, structure):
        """(units,) bool, True for units that are not inside a removed unit."""
        everything = torch.ones(structure.units).bool()
        keep = {**self.plan.keep, structure.name: everything}
        return Plan(keep).kept(structure, self.declaration)

    def _closed(self, name):
        """(units,) bool, True for removed units that could stay."""
        reachable = self._reachable(self.declaration.by_name[name])
        return reachable & ~self.plan.keep[name]

    def _open(self, name):
        """(units,) bool, True for units that stay."""
        reachable = self._reachable(self.declaration.by_name[name])
        return reachable & self.plan.keep[name]

    def _block(self, name, rank):
        """(units,) bool, True for the units of a block, given by its rank."""
        return self.ranks[name] == rank

    def _fill(self):
        """Adds the best-ranked units that fit; returns whether any did."""
        gap = self.gap()
        closed = [
            (rank, price, name)
            for name, price in self._prices().items()
            if price <= gap
            for rank in self.ranks[name][self._closed(name)].unique().tolist()
        ]
        opened = []
        for rank, price, name in sorted(closed, reverse=True):
            if price <= gap:
                self.plan.keep[name][self._block(name, rank)] = True
                opened.append((name, rank))
                gap -= price
        # units of a tensor that is cut along two axes make each other more
        # expensive: take back the last ones
        while opened and self.gap() < 0:
            name, rank = opened.pop()
            self.plan.keep[name][self._block(name, rank)] = False
        return bool(opened)

    def _open_module(self):
        """Restores the best-ranked removed module that fits at smallest size.

        Returns whether there was one.
        """
        closed = self._closed_modules()
        for s, unit in sorted(
            closed, key=lambda found: -int(self.ranks[found[0].name][found[1]])
        ):
            opening = self._opened_at_smallest(s, unit)
            if self.gap(Plan({**self.plan.keep, **opening})) >= 0:
                self.plan.keep.update(opening)
                return True
        return False

    def _closed_modules(self):
        """Lists (structure, unit) for removed units that are not leaves."""
        return [
            (s, unit)
            for s in self.structures
            if not s.is_leaf and self.plan.is_open(s, self.declaration)
            for unit in (~self.plan.keep[s.name]).nonzero().flatten().tolist()
        ]

    def _opened_at_smallest(self, structure, unit=0):
        """Which units stay if a removed one is restored at its smallest."""
        kept = self.plan.keep[structure.name].clone()
        kept[unit] = True
        keep = {structure.name: kept}
        self._shrink_inside(structure, unit, keep)
        return keep

    def _shrink_inside(self, structure, unit, keep):
        """Keeps as few units as possible inside a unit that is restored."""
        for child in self.structures:
            if child.parent != structure.name:
                continue
            kept = torch.zeros(child.units).bool()
            if structure.holds:
                kept = keep.get(child.name, self.plan.keep[child.name]).clone()
                self.declaration.by_holder(child, kept)[unit][:] = False
            keep[child.name] = kept
            if child.removes:
                continue
            self._top_up(child, kept)
            if child.holds:
                for inside in kept.nonzero().flatten().tolist():
                    self._shrink_inside(child, inside, keep)

    def _exchange(self):
        """Exchanges cheap units for an expensive one, if only such are left.

        Returns whether this brought the plan closer to the limit.
        """
        gap = self.gap()
        prices = self._prices()
        if not prices or gap < min(prices.values()):
            return False
        before = {name: kept.clone() for name, kept in self.plan.keep.items()}
        for opening in self._next_openings():
            self.plan.keep.update(opening)
            self._make_room(opening)
            self._fill()
            if 0 <= self.gap() < gap:
                return True
            for name, kept in before.items():
                self.plan.keep[name] = kept.clone()
        return False

    def _next_openings(self):
        """Lists the kept units of what could be added, cheapest first."""
        found = [
            self._opened_at_smallest(*closed)
            for closed in self._closed_modules()
        ]
        for name in self._prices():
            closed = self._closed(name)
            if closed.any():
                best = int(self.ranks[name].masked_fill(~closed, -1).max())
                kept = self.plan.keep[name] | self._block(name, best)
                found.append({name: kept})
        return sorted(
            found, key=lambda o: -self.gap(Plan({**self.plan.keep, **o}))
        )

    def _make_room(self, opening):
        """Removes the cheapest, worst-ranked units until the plan fits.

        Units of what was opened stay. The fewer units are left of a structure,
        the cheaper are those of its neighbours (channels of convolutions in
        series), so prices are found anew while room is missing.
        """
        removed = True
        while removed and self.gap() < 0:
            still_open = sorted(
                (price, rank, name)
                for name, price in self._prices().items()
                if name not in opening
                for rank in self.ranks[name][self._open(name)].unique().tolist()
            )
            removed = self._remove(still_open, -self.gap())

    def _remove(self, units, missing):
        """Removes some (price, rank, name), as long as `missing` is not free.

        Returns whether any were removed.
        """
        removed = False
        for price, rank, name in units:
            if missing <= 0:
                break
            kept = self.plan.keep[name] & ~self._block(name, rank)
            if self._has_enough(self.declaration.by_name[name], kept):
                self.plan.keep[name] = kept
                missing -= price
                removed = True
        return removed
