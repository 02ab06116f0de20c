"""Milestones: models that are exported on the way to the target sparsity."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import torch
from speechbrain.utils.distributed import MainProcessContext, if_main_process

from sb_prune.cut.edits import Cut
from sb_prune.cut.masking import detach_
from sb_prune.cut.surgery import cut_
from sb_prune.run.comparison import difference_around
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

    def check_above_gone(self, groups):
        """Refuses sparsities that earlier prunings have reached already.

        Arguments
        ---------
        groups : list of Group
            Of the budget.

        Raises
        ------
        ValueError
            Naming the sparsity and how much is gone.
        """
        for sparsity in self.sparsities[:1]:
            groups[0].check_above_gone(
                sparsity,
                "pruning: milestones",
                "write sparsities above that, or leave these out",
            )

    @property
    def folders(self):
        """List of the folders of all milestones."""
        return [self.folder(sparsity) for sparsity in self.sparsities]


def export_milestone(run, settings, batch, plan, sparsity):
    """Exports what the model would be if it were cut now.

    The main process cuts and exports a twin of the Brain. The others go on to
    the next batch.

    Arguments
    ---------
    run : Run
        In its prune phase; the gates are set to the plan.
    settings : PruningSettings
    batch : object
        A batch for `compute_forward`, with which masked and cut twin are
        compared.
    plan : Plan
    sparsity : float
        The milestone.
    """
    if if_main_process():
        with MainProcessContext():  # so no barrier waits for the others
            _export(run, settings, batch, plan, sparsity)


def _export(run, settings, batch, plan, sparsity):
    twin, declaration = twin_of(run.brain, run.declaration)
    twin.modules.eval()

    def cut():
        detach_(declaration.root)
        cut_(declaration, plan)

    difference = difference_around(cut, twin, declaration, batch)
    edit = Cut(structures=settings.structures, plan=plan.to_dict())
    settings.publication.write(
        settings.milestones.folder(sparsity),
        twin,
        settings.module,
        [*run.edited.edits, edit],
        {
            **run.facts,
            "milestone": sparsity,
            "cut_max_abs_diff": difference,
        },
    )


def twin_of(brain, declaration):
    """Makes a Brain whose modules can be cut and exported.

    The Brain itself goes on training. The twin shares every parameter with it,
    so it takes no memory but for what is cut.

    Arguments
    ---------
    brain : Brain
        Its modules may be masked and wrapped.
    declaration : Declaration
        Declaration of the modules that are pruned.

    Returns
    -------
    twin : Brain
        With unwrapped twins of all modules, also where its attributes and its
        hparams refer to them. It shares everything else with the original.
    declaration : Declaration
        Declaration of the twins.
    """
    modules = torch.nn.ModuleDict(
        {name: unwrap(module) for name, module in brain.modules.items()}
    )
    places = [
        {k: v for k, v in vars(place).items() if _share(modules, v)}
        for place in (brain, brain.hparams)
    ]
    tensors = [*modules.parameters(), *declaration.root.parameters()]
    memo = {id(tensor): tensor for tensor in tensors}
    modules, places, root = copy.deepcopy(
        (modules, places, declaration.root), memo
    )
    attributes, hparams = places
    twin = copy.copy(brain)
    vars(twin).update(attributes)
    twin.modules = modules
    twin.hparams = SimpleNamespace(**{**vars(brain.hparams), **hparams})
    return twin, replace(declaration, root=root)


def _share(modules, value):
    """Whether a value is a module that shares a part with some modules."""
    if not isinstance(value, torch.nn.Module) or value is modules:
        return False
    known = set(map(id, modules.modules()))
    return any(id(part) in known for part in value.modules())
