"""Where a run stands on disk, and what each of its phases starts with."""

import copy
import shutil

import torch
from speechbrain.dataio.dataloader import LoopedLoader
from torch.utils.data import DataLoader

from sb_prune.run.resume import ResumePoint
from sb_prune.support.disk import set_torn_snapshot_aside


def standing(folder, is_training):
    """Whether a run has begun in a folder, and whether it is past the cut.

    A start that no checkpoint followed is forgotten where training begins.

    Arguments
    ---------
    folder : Path
        Of the recipe's checkpointer.
    is_training : bool

    Returns
    -------
    (bool, bool)
    """
    set_torn_snapshot_aside(folder / "dense")
    set_torn_snapshot_aside(folder / "cut")
    if is_training and not has_trained(folder):
        shutil.rmtree(folder / "dense", ignore_errors=True)
    return (folder / "dense").is_dir(), (folder / "cut").is_dir()


def has_trained(folder):
    """Whether a run is past its first checkpoint; argument as `standing`."""
    return (folder / "cut").is_dir() or any((folder / "prune").glob("CKPT*"))


class FreshStart:
    """What is as at the run's start when the second phase begins.

    Schedulers, the scaler of losses, and what an EpochCounterWithStopper has
    seen. Made before any phase.

    Arguments
    ---------
    brain : Brain
    epoch_counter : EpochCounter or None
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
        """A rising target is no lack of progress: nothing ends the phase.

        Arguments
        ---------
        epoch_counter : EpochCounter
        """
        if self._stopping:
            epoch_counter.limit_to_stop = float("inf")

    def restore_(self, brain, epoch_counter):
        """Brings it back.

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
    """What a phase starts afresh: the checkpointer's objects with a plain
    state that are no module, counter, optimizer, data loader or part of us."""
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
