"""Pretrained encoders: whether one can be loaded, and how wide it is.

Without a network, a Hugging Face lobe of SpeechBrain fails only after half a
minute of retries. A YAML can check the source first:

    __check_source: !apply:sb_prune.recipe.sources.check_source
        wav2vec2_hub: !ref <wav2vec2_hub>
        save_path: !ref <wav2vec2_folder>
"""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from sb_prune.support.disk import reason

CONFIG = "config.json"
TIMEOUT = 10  # seconds, for the hub to answer
OFFLINE = (
    "without a network, write a local folder as save_pretrained makes it, "
    "copied from where there is one"
)


def check_source(save_path, **sources):
    """Refuses the source of an encoder that a lobe could not load.

    Arguments
    ---------
    save_path : str
        Where the lobe keeps downloaded files. A model that is there already
        needs no network.
    sources : str
        Each a folder or a name on the Hugging Face hub, under the key that it
        has in the YAML.

    Raises
    ------
    ValueError
        If a source cannot be loaded. The message names its key and what to
        write.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> check_source("saved", wav2vec2_hub=str(folder))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: wav2vec2_hub: ... has no config.json; write a folder ...
    """
    for key, source in sources.items():
        if Path(source).exists():
            _check_folder(key, Path(source))
        elif not _is_fetched(source, save_path):
            _check_hub(key, source)


def _check_folder(key, folder):
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{key}: {folder} has no {CONFIG}; write a folder as "
            "save_pretrained makes it, or a name on the hub"
        )


def _is_fetched(source, save_path):
    """Whether an earlier run has downloaded the encoder already."""
    cached = Path(save_path, f"models--{source.replace('/', '--')}")
    return any(cached.glob(f"snapshots/*/{CONFIG}"))


def _check_hub(key, source):
    try:
        HfApi().model_info(source, timeout=TIMEOUT)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ValueError(
            f"{key}: {source} is neither a folder that exists nor a model "
            "that you may read on the Hugging Face hub; write one of them"
        ) from error
    except Exception as error:  # each HTTP client has errors of its own
        raise ValueError(
            f"{key}: {source} is no folder, and the Hugging Face hub cannot "
            f"be reached ({reason(error)}); {OFFLINE}"
        ) from error


def hidden_size(encoder):
    """Width of the hidden states of a Hugging Face encoder.

    Arguments
    ---------
    encoder : torch.nn.Module
        A lobe, of SpeechBrain or of `sb_prune.lobes`.

    Returns
    -------
    int
    """
    return encoder.model.config.hidden_size
