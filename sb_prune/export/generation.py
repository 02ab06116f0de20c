"""How the model of a lobe generates: `generation_config.json` of an export."""

import json
from pathlib import Path

from transformers import GenerationConfig

from sb_prune.support.hashes import check_hash

GENERATION = "generation_config.json"


def save_generation(lobe, folder):
    """Writes how the model of a lobe generates beside its weights.

    Arguments
    ---------
    lobe : torch.nn.Module
        A Hugging Face lobe.
    folder : Path

    Returns
    -------
    bool
        False if the lobe does not know, as SpeechBrain's own; then nothing is
        written.
    """
    generation = getattr(lobe, "generation_config", None)
    if generation is None:
        return False
    generation.save_pretrained(folder)
    return True


def load_generation(lobe, path, sha256):
    """Loads how the model of a lobe generates; a hook of a Pretrainer.

    Arguments
    ---------
    lobe : torch.nn.Module
        One of `sb_prune.lobes`.
    path : str
        The file `generation_config.json`.
    sha256 : str
        Hash of the file at the export, as hexadecimal digits.

    Raises
    ------
    ValueError
        If the file was truncated or edited.
    """
    check_hash(path, sha256)
    settings = json.loads(Path(path).read_text("utf-8"))
    lobe.generation_config = GenerationConfig.from_dict(settings)
