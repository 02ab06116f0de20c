"""Plans that fit a budget: which units stay, given a score for each."""

import torch

from sb_prune.declare.plan import Plan, full_plan


def fit_plan(declaration, groups, scores, sparsities=None, min_keep=1):
    """The best plan within the budget: one threshold, then a greedy finish.

    Units stay in the order of their scores, those of a structure with a
    `multiple` in blocks of so many. A module that would stay without
    any of its units goes; where it must stay, `min_keep` units do. What is
    then left of the budget is filled with the best-scored units that fit; if
    all the cheapest are open already, some close for a more costly one. So
    the realised cost is never above the budget and short of it by less than
    the cheapest open leaf unit, unless no exchange of units comes closer.

    Arguments
    ---------
    declaration : Declaration
        Of the dense model.
    groups : list of Group
        From a budget.
    scores : torch.Tensor
        (N,), higher stays longer.
    sparsities : list of float, optional
        Sparsity to reach per group; by default each group's target.
    min_keep : int
        Units that stay where a module stays.

    Returns
    -------
    Plan
    """
    ranks = _ranks(declaration, scores)
    plan = full_plan(declaration)
    for i, group in enumerate(groups):
        sparsity = group.target if sparsities is None else sparsities[i]
        if sparsity > 0:
            limit = group.dense * (1 - sparsity) * (1 + 1e-9)
            _Fit(declaration, group, ranks, limit, min_keep, plan).fit_()
    for structure in declaration.structures:
        if not plan.is_open(structure, declaration):
            plan.keep[structure.name][:] = False
        plan.keep[structure.name] = plan.kept(structure, declaration)
    return plan


def leaf_prices(declaration, group, plan):
    """Cost of one more unit, or block, of each leaf of a group left open.

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
        Structure name -> cost of a unit, or block.
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
    """Scores as ranks; of equal ones modules stay longer, then at random."""
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


def _in_blocks(ranks, multiple):
    """Ranks in which the best `multiple` units are alike, then the next.

    Example
    -------
    >>> _in_blocks(torch.tensor([3, 9, 1, 4]), 2)
    tensor([3, 9, 3, 9])
    """
    if multiple == 1:
        return ranks
    best_first = ranks.argsort(descending=True)
    blocks = torch.empty_like(ranks)
    for block in best_first.split(multiple):
        blocks[block] = ranks[block[0]]
    return blocks


class _Fit:
    """Fits one group's part of a plan, in place.

    Arguments
    ---------
    declaration : Declaration
    group : Group
    ranks : torch.Tensor
        (N,) int64, no two alike; higher stays longer.
    limit : float
        Cost that may not be exceeded.
    min_keep : int
    plan : Plan
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
        self.ranks = {  # name -> (units,); those of a block are alike
            s.name: torch.cat(
                [
                    _in_blocks(inside, s.multiple)
                    for inside in self._by_holder(s, ranks[s.name])
                ]
            )
            for s in self.structures
        }

    def _by_holder(self, structure, values):
        """Values of units, a row for each unit that holds some of them."""
        holder = self.declaration.holder(structure)
        return values.view(holder.units if holder else 1, -1)

    def fit_(self):
        """Threshold, greedy finish, exchanges."""
        self._keep_above_threshold()
        while self._fill() or self._open_module():
            pass
        while self._exchange():
            pass

    def gap(self, plan=None):
        """What a plan leaves of the limit; negative if it exceeds it."""
        counts = (plan or self.plan).kept_counts(self.declaration)
        return self.limit - float(self.group.cost.of_kept(counts))

    def _prices(self):
        return leaf_prices(self.declaration, self.group, self.plan)

    def _keep_above_threshold(self):
        """The lowest threshold that meets the limit, by bisection."""
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
        """Keeps the units ranked at or above a level."""
        keep = self.plan.keep
        for s in self.structures:
            keep[s.name] = self.ranks[s.name] >= level
        for s in reversed(self.structures):
            if s.removes:
                continue
            if self.declaration.holder(s):
                keep[s.parent] &= self._by_holder(s, keep[s.name]).any(1)
            elif not keep[s.name].any() and self._alone_in_parent(s):
                keep[s.parent][:] = False
        for s in self.structures:
            if not s.removes:
                self._top_up(s, keep[s.name])

    def _alone_in_parent(self, units):
        """Whether the units' parent removes just the module they are in."""
        parent = self.declaration.by_name.get(units.parent)
        return parent is not None and parent.name in dict(parent.removes)

    def _top_up(self, structure, kept):
        """Keeps the best `min_keep`, in each unit that holds some."""
        ranks = self.ranks[structure.name]
        for inside, ranked in zip(
            self._by_holder(structure, kept), self._by_holder(structure, ranks)
        ):
            if inside.sum() < self.min_keep:
                count = min(self.min_keep, len(inside))
                inside[ranked >= ranked.topk(count).values[-1]] = True

    def _has_enough(self, structure, kept):
        """Whether `min_keep` units stay, in each open unit that holds some."""
        inside = self._by_holder(structure, kept).sum(1)
        holder = self.declaration.holder(structure)
        if holder:
            inside = inside[self.plan.keep[holder.name]]
        return bool((inside >= self.min_keep).all())

    def _reachable(self, structure):
        """(units,) those that are in no closed unit."""
        everything = torch.ones(structure.units).bool()
        keep = {**self.plan.keep, structure.name: everything}
        return Plan(keep).kept(structure, self.declaration)

    def _closed(self, name):
        """(units,) those that could open where they are."""
        reachable = self._reachable(self.declaration.by_name[name])
        return reachable & ~self.plan.keep[name]

    def _open(self, name):
        """(units,) those that count."""
        reachable = self._reachable(self.declaration.by_name[name])
        return reachable & self.plan.keep[name]

    def _block(self, name, rank):
        """Which units of a structure have a rank."""
        return self.ranks[name] == rank

    def _fill(self):
        """Opens the best-ranked units that fit; returns whether any did."""
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
        # prices rise where a tensor is cut along two axes: take back
        while opened and self.gap() < 0:
            name, rank = opened.pop()
            self.plan.keep[name][self._block(name, rank)] = False
        return bool(opened)

    def _open_module(self):
        """Opens the best-ranked closed module that fits at its smallest."""
        closed = self._closed_modules()
        for s, unit in sorted(
            closed, key=lambda found: -int(self.ranks[found[0].name][found[1]])
        ):
            opening = self._smallest(s, unit)
            if self.gap(Plan({**self.plan.keep, **opening})) >= 0:
                self.plan.keep.update(opening)
                return True
        return False

    def _closed_modules(self):
        """(structure, unit) of all that is closed and consists of others."""
        return [
            (s, unit)
            for s in self.structures
            if not s.is_leaf and self.plan.is_open(s, self.declaration)
            for unit in (~self.plan.keep[s.name]).nonzero().flatten().tolist()
        ]

    def _smallest(self, structure, unit=0):
        """What a plan keeps of a unit opened with as little as possible."""
        kept = self.plan.keep[structure.name].clone()
        kept[unit] = True
        keep = {structure.name: kept}
        self._empty_below(structure, unit, keep)
        return keep

    def _empty_below(self, structure, unit, keep):
        """Leaves as little as possible in a unit that opens."""
        for child in self.structures:
            if child.parent != structure.name:
                continue
            kept = torch.zeros(child.units).bool()
            if structure.holds:
                kept = keep.get(child.name, self.plan.keep[child.name]).clone()
                self._by_holder(child, kept)[unit] = False
            keep[child.name] = kept
            if child.removes:
                continue
            self._top_up(child, kept)
            if child.holds:
                for inside in kept.nonzero().flatten().tolist():
                    self._empty_below(child, inside, keep)

    def _exchange(self):
        """Closes cheap units for a more costly one, where only such are closed.

        Returns whether this brought the plan closer to the limit.
        """
        gap = self.gap()
        prices = self._prices()
        if not prices or gap < min(prices.values()):
            return False
        before = {name: kept.clone() for name, kept in self.plan.keep.items()}
        for price, opening in self._openings():
            self._make_room(price - gap, prices, opening)
            self.plan.keep.update(opening)
            self._fill()
            if 0 <= self.gap() < gap:
                return True
            for name, kept in before.items():
                self.plan.keep[name] = kept.clone()
        return False

    def _openings(self):
        """(price, kept units) of all that could open next, cheapest first."""
        found = [self._smallest(*closed) for closed in self._closed_modules()]
        for name in self._prices():
            closed = self._closed(name)
            if closed.any():
                best = int(self.ranks[name].masked_fill(~closed, -1).max())
                kept = self.plan.keep[name] | self._block(name, best)
                found.append({name: kept})
        gap = self.gap()
        priced = [
            (gap - self.gap(Plan({**self.plan.keep, **o})), o) for o in found
        ]
        return sorted(priced, key=lambda pair: pair[0])

    def _make_room(self, missing, prices, opening):
        """Closes the cheapest, worst-ranked units until enough is free."""
        still_open = sorted(
            (price, rank, name)
            for name, price in prices.items()
            if name not in opening
            for rank in self.ranks[name][self._open(name)].unique().tolist()
        )
        for price, rank, name in still_open:
            if missing <= 0:
                return
            kept = self.plan.keep[name] & ~self._block(name, rank)
            if self._has_enough(self.declaration.by_name[name], kept):
                self.plan.keep[name] = kept
                missing -= price
