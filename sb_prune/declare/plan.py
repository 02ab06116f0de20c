"""A plan says which units of a model stay; surgery needs nothing else."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """Which units of every structure of a declaration stay.

    Arguments
    ---------
    keep : dict
        Structure name -> bool tensor (units,), True for a unit that stays.

    Example
    -------
    >>> plan = Plan({"heads": torch.tensor([True, True, False, True])})
    >>> plan.to_dict()
    {'heads': '3 of 4: 0-1 3'}
    >>> Plan.from_dict(plan.to_dict()).keep["heads"].tolist()
    [True, True, False, True]
    """

    keep: dict

    def to_dict(self):
        """Writes the plan as strings, for YAML and JSON.

        Returns
        -------
        dict
            Structure name -> "kept of all: ranges", e.g. "3 of 4: 0-1 3".
        """
        return {
            name: f"{int(kept.sum())} of {len(kept)}: {_ranges(kept)}".strip()
            for name, kept in self.keep.items()
        }

    @classmethod
    def from_dict(cls, table):
        """Reads what `to_dict` wrote.

        Arguments
        ---------
        table : dict
            Structure name -> "kept of all: ranges".

        Returns
        -------
        Plan

        Raises
        ------
        ValueError
            If an entry cannot be read or its count and ranges disagree.
        """
        return cls({name: _parse(name, text) for name, text in table.items()})

    def check(self, declaration):
        """Refuses the plan if it does not fit a declaration.

        Arguments
        ---------
        declaration : Declaration
            Of the dense model.

        Raises
        ------
        ValueError
            If the names or numbers of units differ, or if a structure keeps no
            unit although the module that it belongs to stays.
        """
        units = {n: s.units for n, s in declaration.by_name.items()}
        planned = {name: len(kept) for name, kept in self.keep.items()}
        if units != planned:
            names = sorted(
                name
                for name in units.keys() | planned.keys()
                if units.get(name) != planned.get(name)
            )
            raise ValueError(
                f"plan: made for another architecture: {names[0]} has "
                f"{planned.get(names[0], 'no')} units in the plan and "
                f"{units.get(names[0], 'no')} in the model ({len(names)} "
                "structures differ); build the model it was made for"
            )
        for structure in declaration.structures:
            if structure.removes or not self.is_open(structure, declaration):
                continue
            if self._is_empty(structure, declaration):
                raise ValueError(
                    f"plan: {structure.name} keeps no unit while the module "
                    "or head that contains it stays; keep a unit, or remove "
                    "what contains it"
                )

    def _is_empty(self, structure, declaration):
        """Whether a structure keeps no unit.

        A structure with a holder (e.g. the dims inside heads) must keep one in
        each kept unit of its holder.
        """
        inside = self.kept_inside(structure, declaration)
        holder = declaration.holder(structure)
        if holder is not None:
            inside = inside[self.keep[holder.name]]
        return bool((inside == 0).any())

    def is_open(self, structure, declaration):
        """Whether every parent above a structure stays.

        Arguments
        ---------
        structure : Structure
        declaration : Declaration
            Of the dense model.

        Returns
        -------
        bool
        """
        while structure.parent:
            structure = declaration.by_name[structure.parent]
            if not self.keep[structure.name].any():
                return False
        return True

    def kept(self, structure, declaration):
        """Which units of a structure stay, given what its holder keeps.

        A unit inside a removed unit of the holder (e.g. a dim of a removed
        head) does not stay.

        Arguments
        ---------
        structure : Structure
        declaration : Declaration
            Of the dense model.

        Returns
        -------
        torch.Tensor
            (units,) bool.
        """
        kept = self.keep[structure.name]
        holder = declaration.holder(structure)
        if holder is None:
            return kept
        return kept & declaration.held(structure, self.keep[holder.name])

    def kept_inside(self, structure, declaration):
        """Counts the units that stay inside each unit of the holder.

        Arguments
        ---------
        structure : Structure
        declaration : Declaration
            Of the dense model.

        Returns
        -------
        torch.Tensor
            (units of the holder,) int64, 0 for those that are removed; (1,) if
            there is no holder.
        """
        kept = self.kept(structure, declaration)
        pieces = declaration.by_holder(structure, kept)
        return torch.stack([piece.sum() for piece in pieces])

    def kept_counts(self, declaration):
        """Counts the kept units of each structure.

        A structure below a removed one counts 0.

        Arguments
        ---------
        declaration : Declaration
            Of the dense model.

        Returns
        -------
        torch.Tensor
            (structures,), float64: the argument of `Cost.of_kept`.
        """
        return torch.tensor(
            [
                float(self.kept(s, declaration).sum())
                * self.is_open(s, declaration)
                for s in declaration.structures
            ]
        ).double()

    def values(self, declaration):
        """The plan as gate values: 1 for a unit that stays, 0 otherwise.

        Arguments
        ---------
        declaration : Declaration
            Of the dense model.

        Returns
        -------
        torch.Tensor
            (N,), for the N units of all structures, one after another.
        """
        return torch.cat(
            [self.keep[s.name] for s in declaration.structures]
        ).float()


def full_plan(declaration):
    """The plan that keeps everything.

    Arguments
    ---------
    declaration : Declaration
        Of the dense model.

    Returns
    -------
    Plan
    """
    return Plan(
        {s.name: torch.ones(s.units).bool() for s in declaration.structures}
    )


def _ranges(kept):
    """Writes which positions are True: '0-2 5' for 0, 1, 2 and 5."""
    runs = []
    for i in kept.nonzero().flatten().tolist():
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return " ".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)


def _parse(name, text):
    try:
        counts, ranges = str(text).split(":")
        kept_count, units = (int(n) for n in counts.split(" of "))
        kept = torch.zeros(units, dtype=torch.bool)
        for run in ranges.split():
            first, _, last = run.partition("-")
            first, last = int(first), int(last or first)
            if not 0 <= first <= last < units:
                raise ValueError(run)
            kept[first : last + 1] = True
        if int(kept.sum()) != kept_count:
            raise ValueError(f"{int(kept.sum())} positions")
    except ValueError as error:
        raise ValueError(
            f"plan: cannot read {name}: {text!r} ({error}); write e.g. "
            "'3 of 4: 0-1 3'"
        ) from None
    return kept
