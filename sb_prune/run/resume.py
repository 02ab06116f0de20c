"""What lets a run continue after any kill, with the same bits."""

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

RESUME_POINT = "resume_point"  # its name among a checkpoint's files


def _state_of_rank(states):
    """What this process saved, where as many run as then."""
    if len(states) == process_count():
        return states[get_rank() or 0]
    logger.warning(
        f"Saved by {len(states)} processes, continued by {process_count()}: "
        "the run goes on, but not as it would have without the interruption"
    )
    return states[0]


@partial(register_checkpoint_hooks, save_on_main_only=False)
class ResumePoint:
    """What SpeechBrain does not checkpoint: random generators, the pruner.

    The generators are those of every process, the pruner is the same in all.

    Arguments
    ---------
    pruner : Pruner, optional
        Saved along while there is one.
    loaders : list of DataLoader
        Those whose position SpeechBrain saves.
    """

    def __init__(self, pruner=None, loaders=()):
        self.pruner = pruner
        self._loaders = loaders
        self._spared = []

    def begin_batch_(self):
        """To be called when the first batch has been read, or later."""
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
        # the generators' states are not tensors only; the file is our own
        state = torch.load(path, weights_only=False)
        own = _state_of_rank(state["random"])
        set_random_state(own)
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])
        if not end_of_epoch:
            self._spare_(own["torch"])

    def _spare_(self, state):
        """In mid-epoch a loader's iterator has drawn its seed already; the
        one that replaces it draws from a copy of the generator."""
        self._spared = [x for x in self._loaders if x.generator is None]
        for loader in self._spared:
            loader.generator = torch.Generator().set_state(state)


def make_resumable_(checkpointer, pruner=None):
    """From now on a run continues after any kill as if there had been none.

    For where the checkpointer knows the loader of training data already, and
    has not recovered yet: a Brain's `on_fit_start`, before SpeechBrain's own.
    Torn checkpoints are set aside.

    Arguments
    ---------
    checkpointer : Checkpointer
    pruner : Pruner, optional
        Saved along.

    Returns
    -------
    ResumePoint
        Its `begin_batch_` is to be called in every batch.
    """
    folder = Path(checkpointer.checkpoints_dir)
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
