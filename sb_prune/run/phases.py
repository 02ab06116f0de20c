"""What a phase of a run is, and where a run stands."""

import copy
import shutil

import torch
from speechbrain.dataio.dataloader import LoopedLoader
from torch.utils.data import DataLoader

from sb_prune.run.resume import ResumePoint, make_resumable_
from sb_prune.run.steps import Steps
from sb_prune.support.disk import (
    guard_,
    is_marked,
    set_torn_aside,
    set_torn_snapshot_aside,
)


class Phase:
    """A phase of a run. The base does nothing; subclasses do one thing each.

    `run` is the `Run` that the phase belongs to, which holds the recipe's
    Brain, the modules that are edited, and the folder.
    """

    block = None  # name of the block of the YAML that describes it
    trains = False  # whether the recipe's `fit` runs in it

    def identity(self):
        """Settings that must not change when the run is continued.

        Returns
        -------
        dict
            Key of the block -> description.
        """
        return {}

    def prepare_(self, run, anew):
        """Does what comes before anything trains, each time a process begins.

        Arguments
        ---------
        run : Run
        anew : bool
            Whether the run begins, rather than goes on.
        """

    def begin_(self, run):
        """Begins to train, or goes on after a kill."""

    def resume_(self, run):
        """Gives the model the shape of this phase, to be evaluated."""

    def end_(self, run):
        """Ends the phase, once it was trained to its end."""


class Train(Phase):
    """Training after layers were left out, with the recipe's checkpoints."""

    trains = True

    def begin_(self, run):
        """Makes the recipe's own training go on after a kill."""
        point = make_resumable_(run.brain.checkpointer)
        run.steps = Steps(
            point, run.distiller, lambda: [True] * run.distiller.layers
        )

    def resume_(self, run):
        """Lets the recipe load a checkpoint that is whole."""
        guard_(run.brain.checkpointer)


def where(folder, is_training, prunes, is_ours, is_taught):
    """Finds out where a run stands, from the folders on disk.

    If a run was killed before its first checkpoint, training begins it anew.

    Arguments
    ---------
    folder : Path
        Folder of the recipe's checkpointer.
    is_training : bool
        Whether training begins, rather than evaluation alone.
    prunes : bool
        Whether there is a `pruning` block.
    is_ours : bool
        Whether there is a record of the run.
    is_taught : bool
        Whether training without that block needs the model at the start, its
        teacher, again. A run with that block keeps it on the disk.

    Returns
    -------
    has_trained : bool
        Whether there is a checkpoint to continue from.
    has_start : bool
        Whether the model at the start is there, if it is needed.
    is_cut : bool
        Whether the pruned units have been cut out.
    """
    if not prunes:
        if is_training and is_ours:
            set_torn_aside(folder)
        has_start = not (is_training and is_taught)
        found = folder.glob("CKPT*")
        has_trained = any(map(is_marked, found) if is_ours else found)
        return has_trained, has_start, False
    set_torn_snapshot_aside(folder / "dense")
    set_torn_snapshot_aside(folder / "cut")
    is_cut = (folder / "cut").is_dir()
    found = (folder / "prune").glob("CKPT*")
    has_trained = is_cut or any(map(is_marked, found))
    if not is_ours:  # those of a dense run, perhaps
        has_trained = has_trained or any(folder.glob("CKPT*"))
    if is_training and not has_trained:
        shutil.rmtree(folder / "dense", ignore_errors=True)
    return has_trained, (folder / "dense").is_dir(), is_cut


class FreshStart:
    """Remembers the state that fine-tuning, the second phase, starts anew with.

    This is the state of learning-rate schedulers, of the loss scaler, and of an
    EpochCounterWithStopper. It is copied before the first phase begins.

    Arguments
    ---------
    brain : Brain
    epoch_counter : EpochCounter or None
        The recipe's epoch counter.
    """

    def __init__(self, brain, epoch_counter):
        self._schedulers = {
            name: copy.deepcopy(vars(scheduler))
            for name, scheduler in _schedulers(brain, epoch_counter).items()
        }
        self._scaler = brain.scaler.state_dict()
        state = vars(epoch_counter) if epoch_counter is not None else {}
        self._stopping = {
            k: v for k, v in state.items() if k not in ("current", "limit")
        }

    def hold_stopping_(self, epoch_counter):
        """Keeps an EpochCounterWithStopper from ending the first phase.

        While the target sparsity rises, the error may rise too, which does not
        mean that training has converged.

        Arguments
        ---------
        epoch_counter : EpochCounter
        """
        if self._stopping:
            epoch_counter.limit_to_stop = float("inf")

    def restore_(self, brain, epoch_counter):
        """Restores the state that was remembered.

        Arguments
        ---------
        brain : Brain
        epoch_counter : EpochCounter
        """
        for name, scheduler in _schedulers(brain, epoch_counter).items():
            vars(scheduler).update(copy.deepcopy(self._schedulers[name]))
        brain.scaler.load_state_dict(self._scaler)
        vars(epoch_counter).update(self._stopping)


def _schedulers(brain, epoch_counter):
    """Finds the learning-rate schedulers among the checkpointed objects.

    SpeechBrain's schedulers have no common base class. They are what remains
    without modules, optimizers, data loaders, the epoch counter, the Brain and
    our own objects.
    """
    return {
        name: saved
        for name, saved in brain.checkpointer.recoverables.items()
        if not isinstance(
            saved, (torch.nn.Module, DataLoader, LoopedLoader, ResumePoint)
        )
        and saved is not brain
        and saved is not epoch_counter
        and not hasattr(saved, "state_dict")
    }
