"""Complete states on disk: written aside, then renamed into place."""

import shutil
from pathlib import Path

import yaml
from speechbrain.utils.checkpoints import (
    Checkpointer,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from sb_prune.support.disk import guard_, reason, rename_

logger = get_logger(__name__)


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
