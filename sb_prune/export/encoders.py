"""Exports of cut modules that are Hugging Face lobes of SpeechBrain.

Such a lobe downloads a config and weights from its source. An export holds the
config in its YAML, and the weights in the file that the lobes of
`sb_prune.lobes` load. transformers is imported only if there is such a lobe.
"""

import sys

from ruamel.yaml.tag import Tag

from sb_prune.declare.roots import entries_of
from sb_prune.export.loadables import find_object
from sb_prune.export.yaml_nodes import (
    factory_of,
    reference,
    references,
    tagged,
)
from sb_prune.support.hashes import file_hash
from sb_prune.support.parallel import unwrap


def encoders_of(brain, module, inference):
    """Finds the Hugging Face lobes among the cut modules.

    Arguments
    ---------
    brain : Brain
    module : str or list of str
        Keys of the cut modules.
    inference : str
        Path of the inference YAML, for the error message.

    Returns
    -------
    dict
        Entry -> lobe.
    """
    found = {
        entry: unwrap(find_object(brain, entry, inference))
        for entry in entries_of(module)
    }
    return {entry: lobe for entry, lobe in found.items() if _is_lobe(lobe)}


def past_of_lobe(module):
    """What was done to a lobe before its recipe loaded it, and to what.

    Arguments
    ---------
    module : torch.nn.Module
        Of any class.

    Returns
    -------
    edits : list of Edit
        Empty if it is a stock lobe or none.
    dense : torch.nn.Module or None
        The lobe with the model before the first cut, on the meta device.
    """
    if not _is_lobe(module):
        return [], None
    from sb_prune.export import hugging_face

    edits = hugging_face.edits_of(module.model.config)
    dense = hugging_face.dense_of(module, edits) if edits else None
    return [edit.within("model") for edit in edits], dense


def holds_lobe(module):
    """Whether a module is a Hugging Face lobe, or one lies below it."""
    return any(_is_lobe(part) for part in module.modules())


def _is_lobe(module):
    lobes = sys.modules.get("speechbrain.integrations.huggingface.huggingface")
    # without that module no lobe was made, and transformers may be missing
    return lobes is not None and isinstance(
        module, lobes.HFTransformersInterface
    )


def key_of(document, entry):
    """Key of the loadable that consists of one entry alone, or None."""
    loadables = document["pretrainer"]["loadables"]
    keys = [k for k, node in loadables.items() if references(node) == {entry}]
    return keys[0] if keys else None


def describe_encoder(document, entry, lobe):
    """Replaces a lobe in the YAML by one that needs no source.

    `entry: !new:Lobe` becomes `entry: !new:sb_prune.lobes.skeleton`, with the
    config in the YAML. Entries that only named the source are deleted.
    """
    from sb_prune.export import hugging_face
    from sb_prune.export import tokens as tokenizers

    stock = document[entry]
    sources = [stock.pop(key, None) for key in ("source", "save_path")]
    config, preprocessor = hugging_face.describe(lobe)
    tokens = tokenizers.describe_tokens(lobe)
    document[entry] = tagged(
        "!new:sb_prune.lobes.skeleton",
        lobe=factory_of(stock),
        config=config,
        preprocessor=preprocessor,
        **({"tokens": tokens} if tokens else {}),
    )
    for key in references(sources) - references(document):
        del document[key]  # only the source was made of it


def save_encoder_weights(document, entry, lobe, folder):
    """Replaces the checkpoint of a lobe by the weights of its model alone."""
    from sb_prune.export import hugging_face

    pretrainer, key = document["pretrainer"], key_of(document, entry)
    (folder / f"{key}.ckpt").unlink()
    file = hugging_face.write_weights(folder, lobe)
    pretrainer.yaml_set_ctag(Tag(suffix="!new:sb_prune.Pretrainer"))
    pretrainer["files"] = {key: file}
    pretrainer["custom_hooks"][key] = tagged(
        "!name:sb_prune.load_verified", sha256=file_hash(folder / file)
    )
    if getattr(lobe, "tokenizer", None) is not None:
        _save_beside(document, entry, lobe, folder)


def _save_beside(document, entry, lobe, folder):
    """Saves tokenizer, and how to generate, of a lobe with a decoder."""
    from sb_prune.export import generation
    from sb_prune.export import tokens as tokenizers

    settings = tokenizers.save_tokenizer(lobe.tokenizer, folder)
    pretrainer = document["pretrainer"]
    files = {tokenizers.TOKENIZER: ("tokenizer", {"settings": settings})}
    if (folder / tokenizers.SPELLING).is_file():
        files[tokenizers.SPELLING] = ("spelling", {})  # after the tokenizer
    if generation.save_generation(lobe, folder):
        files[generation.GENERATION] = ("generation", {})
    for file, (part, more) in files.items():
        key, sha256 = f"{entry}_{part}", file_hash(folder / file)
        pretrainer["loadables"][key] = reference(entry)
        pretrainer["files"][key] = file
        pretrainer["custom_hooks"][key] = tagged(
            f"!name:sb_prune.load_{part}", **more, sha256=sha256
        )


def save_encoder_config(edits, steps, module, entry, lobe, folder):
    """Writes the config that the lobes of `sb_prune.lobes` read.

    It describes the dense model and what was done to it, and holds the hash of
    the weights.

    Arguments
    ---------
    edits : list of Edit
        What was done to the modules.
    steps : list of Step
        Those of the edits that are cuts.
    module : str or list of str
        Keys of the cut modules.
    entry : str
        The key of this lobe.
    lobe : torch.nn.Module
        The lobe, trained and cut.
    folder : Path
        The export, which holds the weights already.
    """
    from sb_prune.export import hugging_face

    prefix = "model" if isinstance(module, str) else f"{entry}.model"
    inside = hugging_face.edits_inside(lobe, prefix, edits, steps)
    hugging_face.write_config(folder, lobe, inside)
