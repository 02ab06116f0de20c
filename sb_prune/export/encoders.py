"""Hugging Face lobes of SpeechBrain among the cut modules.

Such a lobe reads its shapes from a source; an export has them in its YAML, and
its weights where the lobes of `sb_prune.lobes` look. transformers is imported
only where there is such a lobe.
"""

import sys

from ruamel.yaml.tag import Tag

from sb_prune.declare.plan import Plan
from sb_prune.declare.roots import entries_of
from sb_prune.export.loadables import find_object
from sb_prune.export.yaml_nodes import factory_of, references, tagged
from sb_prune.support.hashes import file_hash
from sb_prune.support.parallel import unwrap


def encoders_of(brain, module, inference):
    """Entry -> lobe, of the cut modules that are Hugging Face lobes."""
    lobes = sys.modules.get("speechbrain.integrations.huggingface.huggingface")
    if lobes is None:  # so nothing can be one; transformers is not needed
        return {}
    found = {
        entry: unwrap(find_object(brain, entry, inference))
        for entry in entries_of(module)
    }
    return {
        entry: lobe
        for entry, lobe in found.items()
        if isinstance(lobe, lobes.HFTransformersInterface)
    }


def key_of(document, entry):
    """Under which key the pretrainer loads exactly one entry, if it does."""
    loadables = document["pretrainer"]["loadables"]
    keys = [k for k, node in loadables.items() if references(node) == {entry}]
    return keys[0] if keys else None


def describe_encoder(document, entry, lobe):
    """entry: !new:Lobe with a source becomes one made from its config."""
    from sb_prune.export import hugging_face

    stock = document[entry]
    sources = [stock.pop(key, None) for key in ("source", "save_path")]
    config, preprocessor = hugging_face.describe(lobe)
    document[entry] = tagged(
        "!new:sb_prune.lobes.skeleton",
        lobe=factory_of(stock),
        config=config,
        preprocessor=preprocessor,
    )
    for key in references(sources) - references(document):
        del document[key]  # nothing else needs to know where it came from


def save_encoder_weights(document, entry, lobe, folder):
    """The encoder's weights in a file of their own instead of a checkpoint."""
    from sb_prune.export import hugging_face

    pretrainer, key = document["pretrainer"], key_of(document, entry)
    (folder / f"{key}.ckpt").unlink()
    file = hugging_face.write_weights(folder, lobe)
    pretrainer.yaml_set_ctag(Tag(suffix="!new:sb_prune.Pretrainer"))
    pretrainer["files"] = {key: file}
    pretrainer["custom_hooks"][key] = tagged(
        "!name:sb_prune.load_verified", sha256=file_hash(folder / file)
    )


def save_encoder_config(declaration, plan, module, entry, lobe, folder):
    """What the lobes of sb_prune read: shapes, plan, kinds, the weights' hash.

    Arguments
    ---------
    declaration : Declaration
        Of the dense modules.
    plan : Plan
        What was kept of them.
    module : str or list of str
        Keys of the cut modules.
    entry : str
        Which of them the lobe is.
    lobe : torch.nn.Module
    folder : Path
        The export, with its weights.
    """
    from sb_prune.export import hugging_face

    prefix = "model." if isinstance(module, str) else f"{entry}.model."
    inside = [s for s in declaration.structures if s.name.startswith(prefix)]
    keep = {s.name.removeprefix(prefix): plan.keep[s.name] for s in inside}
    kinds = list(dict.fromkeys(s.kind for s in inside))
    hugging_face.write_config(folder, lobe, Plan(keep), kinds)
