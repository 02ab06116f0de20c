"""Milestones: models that are exported on the way to the target sparsity."""

import copy
from types import SimpleNamespace

import torch

from sb_prune.support.parallel import unwrap


class Milestones:
    """Sparsities below the target at which a model is exported too.

    Arguments
    ---------
    sparsities : list of float
        Rising, each between 0 and the target.
    target : float or dict
        Target sparsity of the run.
    export_folder : str or None
        Folder of the final export; those of the milestones go beside it.

    Raises
    ------
    ValueError
        If the sparsities are not such, or there is no export folder. The
        message says what to write.

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
            if not last < sparsity < target:
                raise ValueError(
                    f"pruning: milestones: {self.sparsities}; write rising "
                    f"sparsities between 0 and the target ({target})"
                )
            last = sparsity

    def passed(self, before, now):
        """Lists the milestones that the schedule has just reached.

        Arguments
        ---------
        before, now : float
            The sparsity that the schedule asked for one step ago, and the one
            that it asks for now.

        Returns
        -------
        list of float
        """
        return [s for s in self.sparsities if before < s <= now]

    def folder(self, sparsity):
        """Folder of the export at a milestone.

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
        """List of the folders of all milestones."""
        return [self.folder(sparsity) for sparsity in self.sparsities]


def twin_of(brain, declaration):
    """Copies a Brain and its modules, so that the copy can be cut and exported.

    The Brain itself goes on training.

    Arguments
    ---------
    brain : Brain
        Its modules may be masked and wrapped.
    declaration : Declaration
        Declaration of the modules that are pruned.

    Returns
    -------
    twin : Brain
        With unwrapped copies of all modules, also where its attributes and its
        hparams refer to them. It shares everything else with the original.
    declaration : Declaration
        Declaration of the copies.
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
    """Whether a value is a module that shares a part with some modules."""
    if not isinstance(value, torch.nn.Module) or value is modules:
        return False
    known = set(map(id, modules.modules()))
    return any(id(part) in known for part in value.modules())
