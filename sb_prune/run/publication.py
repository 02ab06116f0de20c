"""Where a run exports its model, and from which YAML."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from speechbrain.utils.distributed import run_on_main

from sb_prune.export.document import prepare_document
from sb_prune.export.folder import check_fits, export_model
from sb_prune.export.loadables import state_on_cpu
from sb_prune.support.random_state import generators_untouched
from sb_prune.support.values import Place

DENSE_YAML = Place("the YAML of the dense model")
NEW_FOLDER = Place("a folder that does not exist")


class Publication:
    """The keys `inference` and `export_folder` of a block.

    Arguments
    ---------
    block : str
        Name of the block in the YAML.
    inference : str or None
        YAML of the dense model, as one would publish it.
    folder : str or None
        Folder of the export. Without both nothing is exported.

    Raises
    ------
    ValueError
        If one of the two is missing.
    """

    def __init__(self, block, inference, folder):
        if (inference is None) != (folder is None):
            raise ValueError(
                f"{block}: write both `inference` and `export_folder`, or "
                "neither"
            )
        self.inference = inference
        self.folder = None if folder is None else str(Path(folder))
        self._exported = self._passing = None

    def check(self, brain, edited, save_folder, folders=()):
        """Refuses, before anything trains, what could not be exported.

        Arguments
        ---------
        brain : Brain
        edited : Edited
            The modules that will be exported.
        save_folder : Path
            Folder of the recipe's checkpointer.
        folders : list of str
            Further folders that will be written.

        Raises
        ------
        ValueError
            If the YAML is of another model or cannot be published, or the
            export would replace something else.
        """
        if self.folder is None:
            return
        for folder in (*folders, self.folder):
            check_place(folder, save_folder)
            document = prepare_document(
                folder, self.inference, brain, edited.module
            )
        check_fits(document, self.inference, brain, edited)

    def export_(self, brain, edited, facts):
        """Exports the model, if the YAML names a folder for it.

        If there are several processes, the main one writes. A model that is
        still the one exported last is not written again. With `--debug` a
        folder is written that passes with the process, as its checkpoints do.

        Arguments
        ---------
        brain : Brain
        edited : Edited
            Its cut modules.
        facts : dict
            Measured figures for the model card.
        """
        if self.folder is not None:
            run_on_main(self._export_once_, [brain, edited, facts])

    def _export_once_(self, brain, edited, facts):
        print_ = fingerprint(brain.modules)
        is_there = Path(self._kept(self.folder, brain)).is_dir()
        if self._exported == print_ and is_there:
            return
        self.write(self.folder, brain, edited.module, edited.edits, facts)
        self._exported = print_

    def write(self, folder, brain, module, edits, facts):
        """Writes an export; only the main process may call this.

        Arguments
        ---------
        folder : str
        brain : Brain
        module : str or list of str
            Keys of its cut modules.
        edits : list of Edit
            What was done to them.
        facts : dict
            Measured figures for the model card.
        """
        folder = self._kept(folder, brain)
        with generators_untouched():
            export_model(folder, self.inference, brain, module, edits, facts)

    def _kept(self, folder, brain):
        """The folder, or in a run for debugging one that passes with it."""
        if not brain.debug or brain.debug_persistently:
            return folder
        if self._passing is None:
            self._passing = TemporaryDirectory()
        return str(Path(self._passing.name, Path(folder).name))


def fingerprint(modules):
    """Hash of all tensors of some modules.

    Arguments
    ---------
    modules : torch.nn.Module

    Returns
    -------
    str

    Example
    -------
    >>> linear = torch.nn.Linear(2, 2)
    >>> before = fingerprint(linear)
    >>> with torch.no_grad():
    ...     _ = linear.bias.add_(1)
    >>> before == fingerprint(linear)
    False
    """
    digest = hashlib.blake2b()
    for name, tensor in state_on_cpu(modules).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_place(export_folder, save_folder):
    """Refuses to export over the checkpoints of the run itself.

    Arguments
    ---------
    export_folder : str
    save_folder : Path
        Folder of the recipe's checkpointer.

    Raises
    ------
    ValueError
        If the export would replace checkpoints, or cannot be made there.
    """
    place, save_folder = Path(export_folder).resolve(), save_folder.resolve()
    if place == save_folder or place in save_folder.parents:
        raise ValueError(
            f"export_folder: {export_folder} holds the checkpoints of this "
            "run; write a folder beside them, e.g. <output_folder>/export"
        )
    file = next((p for p in place.parents if p.is_file()), None)
    if file is not None:
        raise ValueError(
            f"export_folder: {export_folder} cannot be made, as {file} is a "
            "file; write a folder that does not exist"
        )
