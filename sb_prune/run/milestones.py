"""Milestones: smaller models on the way to the smallest."""

import copy
from types import SimpleNamespace

import torch

from sb_prune.support.parallel import unwrap


class Milestones:
    """Sparsities on the way to a target, at each of which a model is wanted.

    Arguments
    ---------
    sparsities : list of float
        Rising, each between 0 and the target.
    target : float or dict
        Of the run.
    export_folder : str or None
        Of the run's last model; the others go beside it.

    Raises
    ------
    ValueError
        Naming what to write.

    Example
    -------
    >>> milestones = Milestones([0.3, 0.5], 0.7, "results/export")
    >>> milestones.passed(before=0.29, now=0.31)
    [0.3]
    >>> milestones.folder(0.3)
    'results/export_0.3'
    """

    def __init__(self, sparsities, target, export_folder):
        self.sparsities = list(sparsities or ())
        self._export_folder = export_folder
        if self.sparsities and isinstance(target, dict):
            raise ValueError(
                "pruning: milestones: they lie below one target, but `target` "
                "names several; leave `milestones` out"
            )
        if self.sparsities and export_folder is None:
            raise ValueError(
                "pruning: milestones: are exported; write `inference` and "
                "`export_folder` too"
            )
        last = 0.0
        for sparsity in self.sparsities:
            is_number = isinstance(sparsity, float)
            if not (is_number and last < sparsity < target):
                raise ValueError(
                    f"pruning: milestones: {self.sparsities}; write rising "
                    f"sparsities between 0 and the target ({target})"
                )
            last = sparsity

    def passed(self, before, now):
        """Those that the target reached with its last step.

        Arguments
        ---------
        before, now : float
            What the schedule asked for, and asks for now.

        Returns
        -------
        list of float
        """
        return [s for s in self.sparsities if before < s <= now]

    def folder(self, sparsity):
        """Where the model of a milestone goes.

        Arguments
        ---------
        sparsity : float

        Returns
        -------
        str
        """
        return f"{self._export_folder}_{sparsity:g}"

    @property
    def folders(self):
        """Where they all go: list of str."""
        return [self.folder(sparsity) for sparsity in self.sparsities]


def twin_of(brain, declaration):
    """The same Brain with modules of its own, to be cut while this one trains.

    Arguments
    ---------
    brain : Brain
        Its modules may be masked and wrapped.
    declaration : Declaration
        Of some of them.

    Returns
    -------
    Brain
        With unwrapped copies of its modules, in its hparams and attributes
        too; all else is shared.
    Declaration
        Of the copies.
    """
    modules = torch.nn.ModuleDict(
        {name: unwrap(module) for name, module in brain.modules.items()}
    )
    places = [
        {k: v for k, v in vars(place).items() if _share(modules, v)}
        for place in (brain, brain.hparams)
    ]
    modules, places, declaration = copy.deepcopy((modules, places, declaration))
    attributes, hparams = places
    twin = copy.copy(brain)
    vars(twin).update(attributes)
    twin.modules = modules
    twin.hparams = SimpleNamespace(**{**vars(brain.hparams), **hparams})
    return twin, declaration


def _share(modules, value):
    """Whether a value is a module with parts among some modules."""
    if not isinstance(value, torch.nn.Module) or value is modules:
        return False
    known = set(map(id, modules.modules()))
    return any(id(part) in known for part in value.modules())
