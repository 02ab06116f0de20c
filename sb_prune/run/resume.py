"""Resuming a run after it was killed, as if it had not been interrupted."""

from functools import partial
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import (
    get_rank,
    if_main_process,
    run_on_main,
)
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader

from sb_prune.support.disk import guard_, set_torn_aside
from sb_prune.support.parallel import of_all_processes, process_count
from sb_prune.support.random_state import random_state, set_random_state

logger = get_logger(__name__)

RESUME_POINT = "resume_point"  # name of its file in a checkpoint


def _state_of_rank(states):
    """Selects the state that this process saved.

    If another number of processes saved the checkpoint, all take the first one.
    """
    if len(states) == process_count():
        return states[get_rank() or 0]
    logger.warning(
        f"Saved by {len(states)} processes, continued by {process_count()}: "
        "the run goes on, but not as it would have without the interruption"
    )
    return states[0]


@partial(register_checkpoint_hooks, save_on_main_only=False)
class ResumePoint:
    """Checkpoints what SpeechBrain does not: random generators and the pruner.

    Every process has random generators of its own; the pruner is the same in
    all processes.

    Arguments
    ---------
    pruner : Pruner, optional
        By default, no pruner is saved.
    loaders : list of DataLoader
        The data loaders whose position SpeechBrain saves.
    """

    def __init__(self, pruner=None, loaders=()):
        self.pruner = pruner
        self._loaders = loaders
        self._spared = []

    def begin_batch_(self):
        """Takes back the generators lent to data loaders (see `_spare_`).

        To be called in every batch, once it has been read.
        """
        for loader in self._spared:
            loader.generator = None
        self._spared = []

    @mark_as_saver
    def _save(self, path):
        state = {"random": of_all_processes(random_state())}
        if self.pruner is not None:
            state["pruner"] = self.pruner.state_dict()
        if if_main_process():
            torch.save(state, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        state = torch.load(path, weights_only=True)
        own = _state_of_rank(state["random"])
        set_random_state(own)
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])
        if not end_of_epoch:
            self._spare_(own["torch"])

    def _spare_(self, state):
        """Lends data loaders a copy of the random generator.

        An iterator draws a seed when it is made. The iterator of an epoch that
        was interrupted drew its seed before the checkpoint; its replacement
        must draw one without moving the restored generator.
        """
        self._spared = [x for x in self._loaders if x.generator is None]
        for loader in self._spared:
            loader.generator = torch.Generator().set_state(state)


def make_resumable_(checkpointer, pruner=None, trains=True):
    """Makes a run continue after a kill as if it had not been interrupted.

    To be called at the beginning of a Brain's `on_fit_start`, when the
    checkpointer knows the loader of the training data but has not loaded a
    checkpoint yet. Torn checkpoints are set aside.

    To be called as well before a model is evaluated: what is not written to its
    end is not loaded then.

    Arguments
    ---------
    checkpointer : Checkpointer
    pruner : Pruner, optional
        Pruner to save in the checkpoints.
    trains : bool
        Whether this process trains. Otherwise another one may, which is just
        writing what looks torn, so nothing is set aside.

    Returns
    -------
    ResumePoint
        Its method `begin_batch_` is to be called in every batch.
    """
    folder = Path(checkpointer.checkpoints_dir)
    if trains:
        run_on_main(_make_room, [folder])
    guard_(checkpointer)
    loaders = [
        saved
        for saved in checkpointer.recoverables.values()
        if isinstance(saved, DataLoader)
    ]
    point = ResumePoint(pruner, loaders)
    checkpointer.add_recoverable(RESUME_POINT, point)
    return point


def _make_room(folder):
    folder.mkdir(parents=True, exist_ok=True)
    set_torn_aside(folder)
