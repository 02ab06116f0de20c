"""Writes an export: a folder that SpeechBrain's own `from_hparams` loads.

The recipe supplies the YAML with which it would publish the *dense* model: an
ordinary inference `hyperparams.yaml`, whose `!PLACEHOLDER` scalars take their
values from the training YAML. The export holds this YAML, changed so that
`rebuild` builds the pruned module and `load_verified` loads every file, and
beside it the weights, the normaliser, the tokenizer and a model card. If a
Hugging Face lobe of SpeechBrain was cut, the folder is a Hugging Face folder
too (see `encoders`).
"""

import io
import shutil
from contextlib import contextmanager
from pathlib import Path

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import CommentedMap
from speechbrain.utils.logger import get_logger

from sb_prune.cut.folding import folded_state
from sb_prune.export.card import write_card
from sb_prune.export.document import MARK, prepare_document, wrap_cut_modules
from sb_prune.export.encoders import (
    describe_encoder,
    encoders_of,
    holds_lobe,
    save_encoder_config,
    save_encoder_weights,
)
from sb_prune.export.loadables import (
    find_object,
    is_plain_module,
    saver_of,
    state_on_cpu,
)
from sb_prune.export.loading import load_export, read_history
from sb_prune.export.yaml_nodes import tagged
from sb_prune.support.disk import naming_what_fails, reason, rename_
from sb_prune.support.hashes import file_hash
from sb_prune.support.parallel import unwrap
from sb_prune.support.random_state import generators_untouched

logger = get_logger(__name__)


def export_model(folder, inference, brain, module, edits, facts):
    """Writes an export aside, checks it, and renames it into place.

    Arguments
    ---------
    folder : str
        The folder; an earlier export there is replaced.
    inference : str
        Path of the inference YAML of the dense model.
    brain : Brain
        With the trained and cut modules and the other objects of the recipe.
    module : str or list of str
        Keys of the cut modules, in the recipe's `modules` and in the YAML.
    edits : list of Edit
        What was done to the modules since they were stock.
    facts : dict
        Measured figures for the model card.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If the YAML lacks something that an export needs, or if `folder` holds
        files that are not an export.
    RuntimeError
        If a tensor differs after the export was loaded again.
    """
    folder = Path(folder)
    document = prepare_document(folder, inference, brain, module)
    place = folder.resolve()  # a symbolic link stays a link
    aside = place.with_name(place.name + ".incomplete")
    encoders = encoders_of(brain, module, inference)
    for entry, lobe in encoders.items():
        describe_encoder(document, entry, lobe)
    wrap_cut_modules(document, module, edits)
    with naming_what_fails(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _save_loadables(document, inference, brain, aside)
        for entry, lobe in encoders.items():
            save_encoder_weights(document, entry, lobe, aside)
        _write_yaml(aside / "hyperparams.yaml", document)
    with generators_untouched():
        loaded = load_export(aside)
    _verify(loaded, brain, document, inference)
    _verify_names(loaded, brain, inference)
    with naming_what_fails(folder):
        for entry, lobe in encoders.items():
            save_encoder_config(edits, loaded.steps, module, entry, lobe, aside)
        write_card(aside / "README.md", loaded, facts)
        _replace(aside, place)
    logger.info(f"Exported to {folder}: {facts}")
    return folder


def check_fits(document, inference, brain, edited):
    """Refuses, before anything trains, the YAML of another model.

    Arguments
    ---------
    document : CommentedMap
        From `prepare_document`; it is changed.
    inference : str
        Path of the YAML.
    brain : Brain
    edited : Edited
        The modules as they are now, with their edits since they were stock.

    Raises
    ------
    ValueError
        Naming a tensor that the YAML would build otherwise.
    """
    encoders = encoders_of(brain, edited.module, inference)
    for entry, lobe in encoders.items():
        describe_encoder(document, entry, lobe)
    wrap_cut_modules(document, edited.module, edited.edits)
    text = _dumped(document)
    with _building(edited.module, inference):
        built = read_history(text).rebuild()
    _check_shapes(built, edited.root, inference)
    resolved = ruamel.yaml.YAML().load(resolve_references(text))
    for reference in document["pretrainer"]["loadables"].values():
        name = reference.value.strip("<>")
        ours = find_object(brain, name, inference)
        if not is_plain_module(ours) or holds_lobe(ours):
            continue  # lobes would be downloaded
        with _building(name, inference):
            built = load_hyperpyyaml(_dumped({name: resolved[name]}))[name]
        _check_shapes(built, unwrap(ours), inference, f"{name}.")
    with _building("not all", inference):
        load_hyperpyyaml(text)  # what decodes, too


def _dumped(document):
    text = io.StringIO()
    ruamel.yaml.YAML().dump(document, text)
    return text.getvalue()


@contextmanager
def _building(what, inference):
    """Context that names what the YAML cannot build, and leaves no trace."""
    try:
        with generators_untouched():
            yield
    except Exception as error:  # what the YAML makes can raise anything
        raise ValueError(
            f"inference: {inference}: {what} cannot be built from it "
            f"({reason(error)}); write the values of the training YAML"
        ) from error


def _check_shapes(built, ours, inference, prefix=""):
    """Refuses a module with other tensors than that of the recipe."""
    built, ours = folded_state(built), folded_state(ours)
    for name in [*built, *ours]:
        theirs = _shape(built.get(name))
        if theirs != _shape(ours.get(name)):
            raise ValueError(
                f"inference: {inference}: it builds another model: "
                f"{prefix}{name} has the shape {theirs}, and "
                f"{_shape(ours.get(name))} in the recipe; write the values of "
                "the training YAML"
            )


def _shape(tensor):
    return "of no tensor" if tensor is None else tuple(tensor.shape)


def _write_yaml(path, document):
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"# {MARK}: made by sb_prune\n")
        ruamel.yaml.YAML().dump(document, file)


def _replace(aside, folder):
    """Replaces an earlier export; a kill in between leaves a complete one."""
    earlier = folder.with_name(folder.name + ".earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        rename_(folder, earlier)
    rename_(aside, folder)
    shutil.rmtree(earlier, ignore_errors=True)


def _save_loadables(document, inference, brain, folder):
    """Saves every object that the Pretrainer of the export will load."""
    pretrainer = document["pretrainer"]
    hooks = CommentedMap()
    for key, reference in pretrainer["loadables"].items():
        path = folder / f"{key}.ckpt"
        loaded = find_object(brain, reference.value.strip("<>"), inference)
        saver_of(loaded, key, inference)(loaded, path)
        hooks[key] = tagged(
            "!name:sb_prune.load_verified", sha256=file_hash(path)
        )
    pretrainer["custom_hooks"] = hooks


def _verify(loaded, brain, document, inference):
    """Refuses an export whose tensors are not, bit by bit, the recipe's."""
    for key, theirs in loaded.hparams["pretrainer"].loadables.items():
        if not is_plain_module(theirs):
            continue
        name = document["pretrainer"]["loadables"][key].value.strip("<>")
        theirs = state_on_cpu(theirs)
        ours = state_on_cpu(find_object(brain, name, inference))
        for tensor, value in ours.items():
            if not torch.equal(value, theirs[tensor]):
                raise RuntimeError(f"export: {tensor} differs after reloading")


def _verify_names(loaded, brain, inference):
    """Refuses an export in which a module has the weights of another one.

    Names inside a ModuleList are numbers: with its modules in another order,
    two layers of the same shape would load each other's weights.
    """
    recipe = {**vars(brain.hparams), **dict(brain.modules)}
    for name, theirs in loaded.hparams.items():
        if not (is_plain_module(theirs) and is_plain_module(recipe.get(name))):
            continue
        ours, theirs = state_on_cpu(recipe[name]), state_on_cpu(theirs)
        if ours.keys() == theirs.keys() and not all(
            torch.equal(ours[tensor], theirs[tensor]) for tensor in ours
        ):
            raise ValueError(
                f"inference: {inference}: {name} would get other weights than "
                f"the recipe's {name}; list the modules of each of the "
                "pretrainer's loadables in the order of the training YAML"
            )
