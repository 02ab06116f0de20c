"""What a run starts from: the recipe's modules, a dense run, or an export."""

import copy
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import PARAMFILE_EXT
from speechbrain.utils.logger import get_logger

from sb_prune.declare.roots import entries_of
from sb_prune.export.loadables import is_plain_module
from sb_prune.export.loading import ExportError, load_export
from sb_prune.run.checks import saved_modules
from sb_prune.run.edited import shapes
from sb_prune.run.snapshots import load_dense
from sb_prune.support.parallel import unwrap
from sb_prune.support.random_state import generators_untouched
from sb_prune.support.values import Place, Text

logger = get_logger(__name__)

START = Place("the save folder of a dense run, or an export")
META_KEY = Text("a key of its checkpoints, e.g. WER")


class Start:
    """The keys `start_from`, `start_min_key` and `start_max_key` of a block.

    Arguments
    ---------
    block : str
        Name of the block in the YAML.
    folder : str or None
        Save folder of a dense run, or one checkpoint in it, or an export.
    min_key, max_key : str or None
        Chooses among the checkpoints.

    Raises
    ------
    ValueError
        If there are both keys, or one without a folder.
    """

    def __init__(self, block, folder, min_key, max_key):
        keys = {"start_min_key": min_key, "start_max_key": max_key}
        given = {key: name for key, name in keys.items() if name is not None}
        if len(given) > 1:
            raise ValueError(
                f"{block}: write `start_min_key` or `start_max_key`, not both"
            )
        for key, name in given.items():
            if folder is None:
                raise ValueError(
                    f"{block}: {key}: {name!r} chooses among the checkpoints "
                    "of `start_from`; write that too"
                )
        self.folder = folder
        self._keys = given
        self._chosen = {"min_key": min_key, "max_key": max_key}

    def load_(self, brain, edited, checkpoints):
        """Gives the modules of a recipe the weights and shapes to start with.

        Arguments
        ---------
        brain : Brain
        edited : Edited
            Those of its modules that the run edits.
        checkpoints : dict
            Key of the block -> checkpoint with which the run began. It gets
            the one that is loaded now, if there is none yet.

        Returns
        -------
        str
            How they were made, as HyperPyYAML; empty if they are stock.

        Raises
        ------
        FileNotFoundError
            If the folder is neither a run nor an export.
        ValueError
            If what is in it does not fit the recipe, or is damaged.
        """
        if self.folder is None:
            return ""
        _check_folder(self.folder, "start_from")
        if not _is_export(self.folder):
            modules = saved_modules(brain)
            folder = _with_the_same(self.folder, "start_from", checkpoints)
            source = load_dense(folder, modules, **self._chosen)
            checkpoints["start_from"] = source.name
            logger.info(f"The run starts from {source}")
            _warn_about_updates(brain)
            return ""
        for key, name in self._keys.items():
            raise ValueError(
                f"{key}: {name!r} chooses among checkpoints, and start_from: "
                f"{self.folder} is an export, which has none; leave {key} out"
            )
        export = _load_export(self.folder, "start_from")
        edited.adopt_(export.history, f"start_from: {self.folder}")
        _copy_weights_(brain, export, entries_of(edited.module))
        _warn_about_updates(brain)
        return export.history.text


def load_teacher(folder, brain, module, checkpoints):
    """Loads another model as the teacher, before the recipe's is changed.

    Arguments
    ---------
    folder : str or None
        Save folder of a dense run of the recipe, or one checkpoint in it, or
        an export.
    brain : Brain
    module : str or list of str
        Keys of the modules that learn from it.
    checkpoints : dict
        As for `Start.load_`.

    Returns
    -------
    dict or None
        Name of an entry of `modules` -> module.

    Raises
    ------
    FileNotFoundError
        If the folder is neither a run nor an export.
    ValueError
        If what is in it does not fit the recipe, or is damaged.
    """
    if folder is None:
        return None
    _check_folder(folder, "teacher")
    if _is_export(folder):
        found = _load_export(folder, "teacher").hparams
        for entry in entries_of(module):
            if entry not in found:
                raise ValueError(
                    f"teacher: {folder} has no {entry}, which is to learn from "
                    "it; write a dense run of this recipe, or an export of it"
                )
        return {n: found[n] for n in brain.modules if n in found}
    saved = saved_modules(brain)
    trained = {id(p) for m in saved.values() for p in m.parameters()}
    shared = [p for p in brain.modules.parameters() if id(p) not in trained]
    memo = {id(parameter): parameter for parameter in shared}
    modules, saved = copy.deepcopy((dict(brain.modules), saved), memo)
    source = load_dense(
        _with_the_same(folder, "teacher", checkpoints), saved, key="teacher"
    )
    checkpoints["teacher"] = source.name
    return modules


def _with_the_same(folder, key, checkpoints):
    """The folder, or the checkpoint in it with which the run began."""
    name = checkpoints.get(key)
    if name is None or Path(folder).name == name:
        return folder
    if not Path(folder, name).is_dir():
        raise FileNotFoundError(
            f"{key}: {folder} has lost {name}, with which this run began; put "
            "it back, or write another output_folder"
        )
    return Path(folder, name)


def _load_export(folder, key):
    try:
        with generators_untouched():
            return load_export(folder)
    except ExportError as error:
        if Path(folder, "save").is_dir():  # the recipe's YAML is beside it
            raise ValueError(f"{key}: {folder} {_IS_OUTPUT}") from error
        raise ValueError(f"{key}: {error}") from error


_IS_OUTPUT = (
    "is the output_folder of a run; write its `save` if it is a dense run, its "
    "export_folder if it pruned"
)


def _is_export(folder):
    return Path(folder, "hyperparams.yaml").is_file()


def _check_folder(folder, key):
    """Refuses what is neither a run nor an export, and says what it is."""
    place = Path(folder)
    if place.is_dir() and (_is_export(folder) or list(place.glob("CKPT*"))):
        return
    instead = "write the save folder of a dense run, or an export"
    if not place.exists():
        what = f"does not exist; {instead}"
    elif not place.is_dir():
        what = f"is a file; {instead}"
    elif not any(place.iterdir()):
        what = f"is empty; {instead}"
    elif (place / "run.json").is_file():
        what = "has the checkpoints of a pruning; write its export_folder"
    elif (place / "save").is_dir():
        what = _IS_OUTPUT
    elif (place / "config.json").is_file():
        what = f"is a Hugging Face folder; {instead}"
        if key == "start_from":
            what = (
                "is a Hugging Face folder; write it as `source` of the lobe, "
                "and leave start_from out"
            )
    else:
        return  # one checkpoint, or something else
    raise FileNotFoundError(f"{key}: {folder} {what}")


@torch.no_grad()
def _copy_weights_(brain, export, pruned):
    """Copies the weights of an export into modules of the same names.

    What the export lacks, or has with other shapes (as the output layer of
    another task), stays as the recipe made it.
    """
    fresh, other = [], []
    for name, module in brain.modules.items():
        ours, theirs = unwrap(module), export.hparams.get(name)
        if not isinstance(theirs, torch.nn.Module):
            fresh += [name] if any(True for _ in ours.parameters()) else []
        elif not is_plain_module(theirs):
            _load_by_hook_(ours, theirs, export)
        elif name in pruned or shapes(ours) == shapes(theirs):
            ours.load_state_dict(theirs.state_dict())
        else:
            other.append(name)
    logger.info(f"The run starts from the export {export.folder}")
    for names, why in ((fresh, "is not in it"), (other, "has other shapes")):
        for name in names:
            logger.warning(
                f"start_from: {name} {why}, and stays as this recipe made it"
            )


def _load_by_hook_(ours, theirs, export):
    """Loads a module whose state dict does not hold all of its state."""
    pretrainer = export.hparams["pretrainer"]
    files = getattr(pretrainer, "files", {})
    for key, loadable in pretrainer.loadables.items():
        if loadable is theirs and type(ours) is type(theirs):
            path = export.folder / files.get(key, f"{key}{PARAMFILE_EXT}")
            pretrainer.custom_hooks[key](ours, path)


def _warn_about_updates(brain):
    named = {**saved_modules(brain), **brain.modules}
    for module, name in {m: n for n, m in named.items()}.items():
        until = getattr(module, "update_until_epoch", None)
        if until is not None and until > 1:
            logger.warning(
                f"{name}: update_until_epoch: {until} changes the statistics "
                "that the model was trained with; write 1 to keep them"
            )
