"""Snapshots: states on disk that are written aside and renamed into place."""

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

OF_EVERY_CHECKPOINT = {"unixtime", "end-of-epoch"}  # SpeechBrain's meta data


def save_snapshot(folder, recoverables, meta):
    """Saves objects into a folder that exists only once it is complete.

    If there are several processes, each must call this; the main one writes.

    Arguments
    ---------
    folder : Path
        A folder that does not exist yet.
    recoverables : dict
        Name -> object, as for SpeechBrain's Checkpointer.
    meta : dict
        Plain data to save beside the objects.

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
    ddp_barrier()  # another process could still create the folder
    run_on_main(rename_, [aside, folder])


def load_snapshot(folder, recoverables):
    """Loads objects that `save_snapshot` saved.

    Arguments
    ---------
    folder : Path
        Folder of the snapshot.
    recoverables : dict
        Name -> object; all or some of those that were saved.

    Returns
    -------
    dict
        The meta data.

    Raises
    ------
    ValueError
        If the snapshot is damaged or of another model.
    """
    checkpointer = Checkpointer(folder, recoverables)
    guard_(checkpointer)
    return checkpointer.recover_if_possible().meta


def read_meta(folder):
    """Reads the meta data of a snapshot.

    Arguments
    ---------
    folder : Path
        Folder of the snapshot.

    Returns
    -------
    dict
    """
    return find_snapshot(folder).meta


def find_snapshot(folder):
    """Finds the checkpoint of SpeechBrain in a snapshot.

    Arguments
    ---------
    folder : Path
        Folder of the snapshot.

    Returns
    -------
    Checkpoint
    """
    return Checkpointer(folder).find_checkpoint()


def load_dense(
    folder, recoverables, min_key=None, max_key=None, key="start_from"
):
    """Loads the modules of a finished dense run, without its training state.

    Arguments
    ---------
    folder : str
        The `save` folder of a SpeechBrain recipe, or one checkpoint in it.
    recoverables : dict
        Name in the checkpoint -> module. The checkpoint must have them all.
    min_key, max_key : str, optional
        Chooses the checkpoint with the lowest or highest value of this key in
        its meta data, as `Brain.evaluate` does; by default the newest.
    key : str
        Key of the YAML that names the folder, for error messages.

    Returns
    -------
    Path
        The checkpoint that was loaded.

    Raises
    ------
    FileNotFoundError
        If there is no checkpoint with all of them.
    ValueError
        If none has the key, or the weights are of another architecture.
    """
    folder = Path(folder)
    checkpoints = []
    if folder.is_dir():
        inside = folder.name.startswith("CKPT")
        save_folder = folder.parent if inside else folder
        _check_metas(save_folder, key)
        checkpoints = Checkpointer(save_folder).find_checkpoints(
            ckpt_predicate=lambda c: (
                recoverables.keys() <= c.paramfiles.keys()
                and (not inside or c.path.resolve() == folder.resolve())
            ),
        )
    if not checkpoints:
        raise FileNotFoundError(
            f"{key}: {folder} has no checkpoint with "
            f"{sorted(recoverables)}; write the save folder of a finished "
            "dense run, e.g. results/train/7775/save, or an export"
        )
    chosen = _best(checkpoints, min_key, max_key)
    loader = Checkpointer(chosen.path.parent, recoverables)
    try:
        loader.load_checkpoint(chosen)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{key}: {chosen.path} does not fit the model in "
            f"this YAML, or is damaged; use the YAML values of the dense run "
            f"({reason(error)})"
        ) from error
    return chosen.path


def _best(checkpoints, min_key, max_key):
    """By a key of their meta data, or else the first, which is the newest."""
    key = min_key or max_key
    if key is None:
        return checkpoints[0]
    if not any(key in checkpoint.meta for checkpoint in checkpoints):
        known = set().union(*(checkpoint.meta for checkpoint in checkpoints))
        raise ValueError(
            f"start_{'min' if min_key else 'max'}_key: {key!r} is in no "
            f"checkpoint of {checkpoints[0].path.parent}; write one of "
            f"{sorted(known - OF_EVERY_CHECKPOINT)}"
        )
    best = min if min_key else max
    return best(
        (c for c in checkpoints if key in c.meta), key=lambda c: c.meta[key]
    )


def _check_metas(folder, key):
    """Refuses a damaged meta file, which SpeechBrain would fail to read.

    To choose a checkpoint it reads the meta files of all in the folder.
    """
    for path in sorted(folder.glob("CKPT*/CKPT.yaml")):
        try:
            with open(path, encoding="utf-8") as file:
                readable = "unixtime" in yaml.safe_load(file)
        except (TypeError, ValueError, yaml.YAMLError):
            readable = False
        if not readable:
            raise ValueError(
                f"{key}: {path} is damaged; move {path.parent} away, and "
                "the others in that folder can be used"
            )
