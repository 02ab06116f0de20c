"""Turns the YAML of the dense model into that of an export."""

from pathlib import Path

import ruamel.yaml
from ruamel.yaml.comments import CommentedMap

from sb_prune.cut.edits import FORMAT
from sb_prune.declare.roots import entries_of
from sb_prune.export.encoders import encoders_of, key_of
from sb_prune.export.loadables import find_object, saver_of
from sb_prune.export.yaml_nodes import (
    factory_of,
    reference,
    references,
    tag_of,
    tagged,
    written_edit,
)
from sb_prune.support.disk import reason

MARK = "sb_prune export"  # in the first line of an export's YAML
BUILDER = "!apply:sb_prune.rebuild"
TOGETHER = "pruned_modules"  # key of several modules that are cut together


def prepare_document(folder, inference, brain, module):
    """Reads the YAML of the dense model and checks that it can be exported.

    Arguments
    ---------
    folder : Path
        Folder that the export will be written to.
    inference : str
        Path of the inference YAML of the dense model.
    brain : Brain
        Its hparams give the values for placeholders in the YAML.
    module : str or list of str
        Keys of the modules that will be cut.

    Returns
    -------
    CommentedMap
        The YAML, with its placeholders filled in.

    Raises
    ------
    ValueError
        If the YAML lacks something that an export needs, or if `folder` holds
        files that are not an export.
    """
    _check_ours(Path(folder))
    document = _read(inference)
    _fill_placeholders(document, brain.hparams, inference)
    if any(tag_of(node) == BUILDER for node in document.values()):
        raise ValueError(
            f"inference: {inference} is the YAML of an export; write that of "
            "the dense model, as when it was pruned first"
        )
    for entry in entries_of(module):
        if entry not in document:
            raise ValueError(
                f"inference: {inference} has no {entry}, which is pruned; "
                f"write the YAML of this model, with {entry} as in training"
            )
        if not tag_of(document[entry]).startswith("!new:"):
            raise ValueError(
                f"inference: {inference}: {entry} must be a !new: of the "
                "stock class, as in the training YAML"
            )
    if not isinstance(module, str):
        _check_together(document, module, inference)
    if not document.get("modules"):
        raise ValueError(
            f"inference: {inference} has no modules; list them, as for any "
            "published SpeechBrain model"
        )
    if not document.get("pretrainer", {}).get("loadables"):
        raise ValueError(
            f"inference: {inference} has no pretrainer with loadables; add "
            "one, as for any published SpeechBrain model"
        )
    for elsewhere in ("paths", "conditions"):
        # all is loaded, from the folder of the export
        document["pretrainer"].pop(elsewhere, None)
    for key, named in document["pretrainer"]["loadables"].items():
        loaded = find_object(brain, named.value.strip("<>"), inference)
        saver_of(loaded, key, inference)
    encoders = encoders_of(brain, module, inference)
    if len(encoders) > 1:
        raise ValueError(
            f"module: {[*encoders]} are Hugging Face models, and an export is "
            "the folder of one; prune one after another"
        )
    for entry in encoders:
        if key_of(document, entry) is None:
            raise ValueError(
                f"inference: {inference}: the pretrainer needs a loadable of "
                f"its own for the encoder; add {entry}: !ref <{entry}>, and "
                "leave it out of the others"
            )
    return document


def _check_together(document, entries, inference):
    """Refuses entries that use a cut module before all of them are built.

    Several modules are built together, where the last of them stands.
    """
    if TOGETHER in document:
        raise ValueError(
            f"inference: {inference}: {TOGETHER} is what the export calls the "
            "cut modules; write another key"
        )
    above = list(document)[: _last_place(document, entries)]
    for key in above:
        early = references(document[key]) & set(entries)
        if early:
            raise ValueError(
                f"inference: {inference}: {key} refers to {sorted(early)} "
                f"above the last of {entries}; move {key} below them"
            )


def _check_ours(folder):
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    yaml_file, first = folder / "hyperparams.yaml", ""
    if yaml_file.is_file():
        first, *_ = yaml_file.read_text("utf-8").splitlines() or [""]
    if MARK not in first:
        raise ValueError(
            f"export_folder: {folder} holds something else; write a folder "
            "that does not exist"
        )


def _read(inference):
    if Path(inference).is_dir():
        raise ValueError(
            f"inference: {inference} is a folder; write the YAML of the dense "
            "model in it"
        )
    if not Path(inference).is_file():
        raise ValueError(
            f"inference: {inference} does not exist; write the YAML of the "
            "dense model as for publishing (relative to where train.py runs)"
        )
    try:
        text = Path(inference).read_text("utf-8")
        document = ruamel.yaml.YAML().load(text)
    except (UnicodeDecodeError, ruamel.yaml.YAMLError) as error:
        raise ValueError(
            f"inference: {inference} is no YAML ({reason(error)}); write the "
            "YAML of the dense model as for publishing"
        ) from error
    if not isinstance(document, CommentedMap):
        raise ValueError(
            f"inference: {inference} is empty; write the YAML of the dense "
            "model as for publishing"
        )
    return document


def _fill_placeholders(document, hparams, inference):
    """Gives each !PLACEHOLDER the scalar of that name in the training YAML."""
    for key, node in document.items():
        if tag_of(node) != "!PLACEHOLDER":
            continue
        value = getattr(hparams, key, ...)  # null is a scalar, too
        if not isinstance(value, (int, float, str, bool, type(None))):
            raise ValueError(
                f"inference: {inference}: {key} is a !PLACEHOLDER, but the "
                f"training YAML has no scalar {key}; write its value"
            )
        document[key] = value


def wrap_cut_modules(document, module, edits):
    """Replaces the dense modules in the YAML by edited ones.

    `module: !new:Stock ...` becomes `module: !apply:sb_prune.rebuild` with the
    stock class as its `factory`. Several modules are built together, where the
    last of them stands, and each entry refers to its part.

    Arguments
    ---------
    document : CommentedMap
        The YAML of the dense model, changed in place.
    module : str or list of str
        Keys of the cut modules.
    edits : list of Edit
        What was done to the modules.
    """
    if isinstance(module, str):
        document[module] = _builder(factory_of(document[module]), edits)
        return
    place = _last_place(document, module) + 1 - len(module)
    factories = {entry: factory_of(document.pop(entry)) for entry in module}
    together = tagged("!name:sb_prune.side_by_side", **factories)
    document.insert(place, TOGETHER, _builder(together, edits))
    for i, entry in enumerate(module, start=1):
        part = reference(f"{TOGETHER}.{entry}")
        document.insert(place + i, entry, part)


def _last_place(document, entries):
    return max(list(document).index(entry) for entry in entries)


def _builder(factory, edits):
    written = [written_edit(edit) for edit in edits]
    return tagged(BUILDER, format=FORMAT, factory=factory, edits=written)
