"""Which phase a run has reached, and the state in which a phase starts."""

import copy
import shutil

import torch
from speechbrain.dataio.dataloader import LoopedLoader
from torch.utils.data import DataLoader

from sb_prune.run.resume import ResumePoint
from sb_prune.support.disk import set_torn_snapshot_aside


def phase_reached(folder, is_training):
    """Finds out which phase a run has reached, from the folders on disk.

    If a run was killed before its first checkpoint, training starts it anew.

    Arguments
    ---------
    folder : Path
        Folder of the recipe's checkpointer.
    is_training : bool
        Whether training begins, rather than evaluation alone.

    Returns
    -------
    has_begun : bool
        Whether the dense model that the run started from has been saved.
    is_cut : bool
        Whether the pruned units have been cut out.
    """
    set_torn_snapshot_aside(folder / "dense")
    set_torn_snapshot_aside(folder / "cut")
    if is_training and not has_trained(folder):
        shutil.rmtree(folder / "dense", ignore_errors=True)
    return (folder / "dense").is_dir(), (folder / "cut").is_dir()


def has_trained(folder):
    """Whether a run has saved its first checkpoint.

    Arguments
    ---------
    folder : Path
        Folder of the recipe's checkpointer.

    Returns
    -------
    bool
    """
    return (folder / "cut").is_dir() or any((folder / "prune").glob("CKPT*"))


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
