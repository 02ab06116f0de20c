"""Complete states on disk: written aside, then renamed into place."""

import random
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy
import torch
import yaml
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    get_rank,
    if_main_process,
    run_on_main,
)
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader

from sb_prune.durable import guard_, reason, rename_, set_torn_aside
from sb_prune.parallel import of_all_processes, process_count

logger = get_logger(__name__)

RESUME_POINT = "resume_point"  # its name among a checkpoint's files


def save_snapshot(folder, recoverables, meta):
    """Saves objects into a folder that is either absent or complete.

    In several processes each must call it; the main process writes.

    Arguments
    ---------
    folder : Path
        Must not exist.
    recoverables : dict
        As a Checkpointer takes them.
    meta : dict
        Plain data kept beside them.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".incomplete")
    run_on_main(shutil.rmtree, [aside], {"ignore_errors": True})
    checkpointer = Checkpointer(aside, recoverables)
    guard_(checkpointer)
    checkpointer.save_checkpoint(meta=meta)
    ddp_barrier()  # none is yet to make the folder that is renamed
    run_on_main(rename_, [aside, folder])


def load_snapshot(folder, recoverables):
    """Loads what `save_snapshot` saved.

    Arguments
    ---------
    folder : Path
    recoverables : dict
        Any of the saved objects.

    Returns
    -------
    dict
        The meta data.

    Raises
    ------
    ValueError
        If it is damaged or of another model.
    """
    checkpointer = Checkpointer(folder, recoverables)
    guard_(checkpointer)
    return checkpointer.recover_if_possible().meta


def read_meta(folder):
    """Meta data of a snapshot.

    Arguments
    ---------
    folder : Path

    Returns
    -------
    dict
    """
    return Checkpointer(folder).find_checkpoint().meta


def load_dense(folder, recoverables, min_key=None, max_key=None):
    """Loads modules from a dense run: never counters or optimizers.

    Arguments
    ---------
    folder : str
        A SpeechBrain `save` folder, or one checkpoint in it.
    recoverables : dict
        Checkpoint name -> module; each must be in the checkpoint.
    min_key, max_key : str, optional
        As for `evaluate`: the checkpoint with the lowest or highest value of
        this key in its meta data is taken; by default the newest.

    Returns
    -------
    Path
        The checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is no checkpoint with all of them.
    ValueError
        If the weights are of another architecture.
    """
    folder = Path(folder)
    checkpoints = []
    if folder.is_dir():
        inside = folder.name.startswith("CKPT")
        save_folder = folder.parent if inside else folder
        _check_metas(save_folder)
        checkpoints = Checkpointer(save_folder).find_checkpoints(
            min_key=min_key,
            max_key=max_key,
            ckpt_predicate=lambda c: (
                recoverables.keys() <= c.paramfiles.keys()
                and (not inside or c.path.resolve() == folder.resolve())
            ),
        )
    if not checkpoints:
        wanted = [*sorted(recoverables), *filter(None, (min_key, max_key))]
        raise FileNotFoundError(
            f"start_from: {folder} has no checkpoint with {wanted}; write "
            "the save folder of a finished dense run, e.g. "
            "results/train/7775/save"
        )
    loader = Checkpointer(checkpoints[0].path.parent, recoverables)
    try:
        loader.load_checkpoint(checkpoints[0])
    except Exception as error:  # damaged files fail in any way
        raise ValueError(
            f"start_from: {checkpoints[0].path} does not fit the model in "
            f"this YAML, or is damaged; use the YAML values of the dense run "
            f"({reason(error)})"
        ) from error
    return checkpoints[0].path


def _check_metas(folder):
    """SpeechBrain reads the meta file of every checkpoint in a folder."""
    for path in sorted(folder.glob("CKPT*/CKPT.yaml")):
        try:
            with open(path, encoding="utf-8") as file:
                readable = "unixtime" in yaml.safe_load(file)
        except (TypeError, ValueError, yaml.YAMLError):
            readable = False
        if not readable:
            raise ValueError(
                f"start_from: {path} is damaged; move {path.parent} away, and "
                "the others in that folder can be used"
            )


def random_state():
    """State of every global random generator.

    Returns
    -------
    dict
    """
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": numpy.random.get_state(legacy=False),
        "python": random.getstate(),
    }


def set_random_state(state):
    """Puts a `random_state` back.

    Arguments
    ---------
    state : dict
    """
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy.random.set_state(state["numpy"])
    random.setstate(state["python"])


@contextmanager
def generators_untouched():
    """Whatever is drawn inside does not move the global generators."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


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
