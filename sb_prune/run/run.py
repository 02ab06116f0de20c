"""A run: the phases that the blocks of a YAML describe, one after another.

The folder of the recipe's checkpointer then holds

    run.json       the settings that must not change; how the start was made
    layers.json    which layers stay, and their scores (`layer_pruning`)
    dense/         the model when pruning began; it is the default teacher
    prune/         checkpoints of the prune phase (masked model, gates)
    cut/           the model just after the cut, with the plan
    finetune/      checkpoints of the fine-tune phase (small model)

`dense` and `cut` are renamed into place when they are complete. So a rerun of
the same command knows from these which phase to continue. Without a `pruning`
block the recipe's own checkpoints lie beside `layers.json`.
"""

from pathlib import Path

from speechbrain.utils.distributed import ddp_broadcast, run_on_main

from sb_prune.export.loading import read_history
from sb_prune.run.checks import check_brain, made_from
from sb_prune.run.edited import Edited
from sb_prune.run.layer_settings import LayerSettings
from sb_prune.run.leave_out import LeaveOut
from sb_prune.run.phases import Train, where
from sb_prune.run.prune import FineTune, Prune
from sb_prune.run.record import (
    check_same_run,
    read_record,
    units_of,
    write_record,
)
from sb_prune.run.settings import PruningSettings, check_together
from sb_prune.run.start import load_teacher
from sb_prune.run.steps import Steps


class Run:
    """What a Brain does beside the recipe's own training.

    Arguments
    ---------
    pruning : PruningSettings, optional
        Of the block `pruning`.
    layers : LayerSettings, optional
        Of the block `layer_pruning`; layers are left out first. Without both
        blocks the recipe trains as it would alone.

    Attributes
    ----------
    brain : Brain
    counter : EpochCounter or None
        None if nothing trains.
    data : Data or None
    folder : Path
        That of the recipe's checkpointer, which each phase moves below it.
    record : dict or None
        What `run.json` says, if the run has begun before.
    has_start : bool
        Whether the model at the start lies in `dense`.
    edited : Edited
        The modules that the run edits.
    declaration : Declaration or None
        What can be pruned in them.
    original : Declaration or None
        Of the dense modules, if they were pruned before.
    teacher : dict or None
        Name -> module of another model that teaches this one.
    distiller : Distiller or None
    steps : Steps
        What to do in every step of the phase that is running.
    plan : Plan or None
        The units that stay, once the model is cut.
    facts : dict
        Measured figures for the model card of an export.
    """

    def __init__(self, pruning=None, layers=None):
        self._phases = []
        if pruning is not None and layers is not None:
            check_together(pruning, layers)
        if layers is not None:
            self._phases.append(LeaveOut(layers))
        if pruning is not None:
            prune = Prune(pruning)
            self._phases += [prune, FineTune(prune)]
        elif layers is not None:
            self._phases.append(Train())
        self.settings = pruning or layers
        self._start = (layers or pruning) and (layers or pruning).start
        self.brain = self.counter = self.data = None
        self.folder = self.record = self.edited = None
        self.declaration = self.original = self.teacher = None
        self.distiller = self.plan = None
        self.has_start = self._is_past_cut = False
        self.steps = Steps()
        self.facts = {}

    @classmethod
    def of(cls, hparams):
        """Makes the run that a YAML describes.

        Arguments
        ---------
        hparams : dict
            Content of the YAML.

        Returns
        -------
        Run
        """
        return cls(
            *made_from(
                hparams, pruning=PruningSettings, layer_pruning=LayerSettings
            )
        )

    @property
    def has_phases(self):
        """Whether the YAML has a block at all."""
        return bool(self._phases)

    @property
    def is_cut(self):
        """Whether everything that the blocks remove is gone."""
        if isinstance(self.settings, PruningSettings):
            return self.plan is not None
        return self.edited is not None and bool(self._phases)

    def begin_(self, brain, counter=None, data=None):
        """Makes the model what it is at the start, and finds where to go on.

        Arguments
        ---------
        brain : Brain
            With a checkpointer.
        counter : EpochCounter, optional
            To be given if training follows.
        data : Data, optional
            As well.
        """
        if self.brain is not None:
            raise RuntimeError(
                "pruning: this process has begun the run already; start "
                "train.py again and it continues"
            )
        blocks = self._blocks()
        check_brain(brain, self.settings.module, counter, next(iter(blocks)))
        # with --debug SpeechBrain gives each process a folder of its own
        self.folder = ddp_broadcast(Path(brain.checkpointer.checkpoints_dir))
        self.record = ddp_broadcast(read_record(self.folder))
        is_training, prunes = counter is not None, "pruning" in blocks
        is_ours = self.record is not None
        is_taught = not prunes and self.settings.teaches_itself
        has_trained, self.has_start, self._is_past_cut = run_on_main(
            where, [self.folder, is_training, prunes, is_ours, is_taught]
        )
        anew = is_training and not has_trained
        self.brain, self.counter, self.data = brain, counter, data
        module = self.settings.module
        checkpoints = {}
        if is_ours and not anew:
            checkpoints = self.record["checkpoints"]
        if is_training:
            self.teacher = load_teacher(
                self.settings.teacher, brain, module, checkpoints
            )
        self.edited = Edited(brain.modules, module)
        if not anew:
            check_same_run(self.folder, self.record, blocks, has_trained)
        if anew:
            history = self._start.load_(brain, self.edited, checkpoints)
        elif not self.has_start:
            history = self._load_again_()
        else:
            history = self.record["history"]
            if history:
                self.edited.adopt_(read_history(history), self._told)
        for phase in self._phases:
            phase.prepare_(self, anew)
        if anew:
            run_on_main(
                write_record,
                [
                    self.folder,
                    blocks,
                    units_of(self.declaration),
                    history,
                    checkpoints,
                ],
            )

    @property
    def _told(self):
        return f"output_folder: {self.folder}"

    def _load_again_(self):
        """Loads the start of a run that goes on, but has no `dense` of it."""
        lost = f"{self._told} has lost its dense/, the model at the start"
        if "pruning" not in self._blocks():
            lost = f"{self._told} needs its teacher, the model at the start"
        try:
            history = self._start.load_(
                self.brain, self.edited, self.record["checkpoints"]
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{lost}, and it cannot be read again ({error}); put back what "
                "start_from names, or write another output_folder"
            ) from error
        if history != self.record["history"]:
            raise ValueError(
                f"{lost}, and start_from: {self._start.folder} is another "
                "model now; put back the one that the run began with, or write "
                "another output_folder"
            )
        return history

    def _blocks(self):
        """Name of each block -> identity of its phase."""
        return {p.block: p.identity() for p in self._phases if p.block}

    def phases(self):
        """Begins each phase that trains, and ends it once it was trained.

        Yields
        ------
        Phase
        """
        first = len(self._phases) - 1 if self._is_past_cut else 0
        for phase in self._phases[first:]:
            if phase.trains:
                phase.begin_(self)
                yield phase
                phase.end_(self)

    def resume_for_evaluation_(self, brain):
        """Rebuilds the model of a run that this process did not train.

        Arguments
        ---------
        brain : Brain
        """
        if self.brain is not None or not self._phases:
            return
        self.begin_(brain)
        trained = [phase for phase in self._phases if phase.trains]
        trained[-1 if self._is_past_cut else 0].resume_(self)

    def export_(self):
        """Exports the cut model, if the YAML names a folder for it.

        Raises
        ------
        RuntimeError
            If the model is not cut yet.
        """
        if not self.is_cut:
            raise RuntimeError("export: the model is not pruned yet; call fit")
        self.brain.modules.eval()
        self.settings.publication.export_(self.brain, self.edited, self.facts)
