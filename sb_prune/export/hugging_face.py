"""Pruned encoders as Hugging Face folders, for `sb_prune.lobes`.

`config.json` is that of the dense model; its entry `sb_prune` has the format,
the plan, the kinds that it was made for, and the hash of the weights.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from sb_prune.architectures.wav2vec2 import kinds_of, wav2vec2_structures
from sb_prune.architectures.whole_layers import (
    ENDING,
    KIND,
    layer_structures,
)
from sb_prune.cut.folding import fold_, folded_state
from sb_prune.cut.surgery import cut_
from sb_prune.declare.plan import Plan, full_plan
from sb_prune.export.formats import FORMAT, check_format
from sb_prune.support.hashes import check_hash, file_hash

ENTRY = "sb_prune"  # of config.json
PLAN_1 = "sb_prune_plan"  # of config.json in format 1, with the plan alone
WEIGHTS = "model.safetensors"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


class _Skeleton:
    """Makes a lobe without weights, of a config that is at hand."""

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, **kwargs
    ):
        self.model = self.auto_class.from_config(
            self.config, **attention_of(kwargs)
        )


def skeleton(lobe, config, preprocessor):
    """A lobe as its own constructor makes it, but with random weights.

    No file is read and nothing is fetched: what `hyperparams.yaml` of an
    export builds, on the meta device, before it is cut.

    Arguments
    ---------
    lobe : callable
        The stock class with its arguments, but for `source` and `save_path`.
    config : dict
        Content of the dense model's config.json.
    preprocessor : dict
        Content of its preprocessor_config.json.

    Returns
    -------
    torch.nn.Module
        Of the stock class.

    Example
    -------
    >>> from speechbrain.integrations.huggingface import wav2vec2
    >>> config = {
    ...     "model_type": "wav2vec2", "hidden_size": 16, "conv_dim": [8],
    ...     "conv_kernel": [10], "conv_stride": [5], "num_attention_heads": 2,
    ...     "num_hidden_layers": 1, "intermediate_size": 32,
    ... }
    >>> preprocessor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    >>> with torch.device("meta"):
    ...     lobe = skeleton(
    ...         partial(wav2vec2.Wav2Vec2, output_norm=True),
    ...         config,
    ...         preprocessor,
    ...     )
    >>> lobe(torch.ones(2, 800, device="meta")).shape
    torch.Size([2, 159, 16])
    """
    lobe = partial(lobe)  # HyperPyYAML gives the class if it has no arguments
    stock, arguments = lobe.func, lobe.keywords
    unloaded = type(stock.__name__, (_Skeleton, stock), {})
    with tempfile.TemporaryDirectory() as folder:
        _write_json(Path(folder, CONFIG), config)
        _write_json(Path(folder, PREPROCESSOR), preprocessor)
        made = unloaded(source=folder, save_path=folder, **arguments)
    made.__class__ = stock
    return made


def describe(lobe):
    """What `skeleton` needs to make a lobe's shapes again.

    Arguments
    ---------
    lobe : torch.nn.Module
        One of SpeechBrain's.

    Returns
    -------
    config : dict
    preprocessor : dict

    Raises
    ------
    ValueError
        If the lobe was pruned before.
    """
    config = lobe.model.config.to_dict()
    if is_pruned(config):
        raise ValueError(
            "pruning: module: the encoder is an export that was pruned "
            "before; start from the dense one, with a higher target"
        )
    # where it came from says nothing about what it became
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    return _plain(config), _plain(lobe.feature_extractor.to_dict())


def _plain(settings):
    """Through JSON, so that YAML can say it too."""
    return json.loads(json.dumps(settings, default=str))


def write_weights(folder, lobe):
    """Writes the weights that the lobes of sb_prune load into a folder.

    Arguments
    ---------
    folder : Path
        Exists.
    lobe : torch.nn.Module
        Trained and cut.

    Returns
    -------
    str
        Name of the file.
    """
    state = folded_state(lobe.model)
    state = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return WEIGHTS


def write_config(folder, lobe, plan, kinds):
    """Writes what they make the shapes from.

    Arguments
    ---------
    folder : Path
        With the weights.
    lobe : torch.nn.Module
        Trained and cut.
    plan : Plan
        What was kept, by names from the Hugging Face model.
    kinds : list of str
        Of the structures that the plan is for.
    """
    config, preprocessor = describe(lobe)
    config[ENTRY] = {
        "format": FORMAT,
        "kinds": kinds,
        "plan": plan.to_dict(),
        "sha256": file_hash(folder / WEIGHTS),
    }
    _write_json(folder / CONFIG, config)
    _write_json(folder / PREPROCESSOR, preprocessor)


def assign(model, path):
    """Gives a model the weights of a file.

    Arguments
    ---------
    model : torch.nn.Module
        Its parameters may be on the meta device.
    path : str
        A safetensors file; it is memory-mapped and assigned.

    Raises
    ------
    ValueError
        If the file does not fit the model.
    """
    try:
        model.load_state_dict(load_file(path), strict=True, assign=True)
    except Exception as error:  # a torn file fails in any way
        raise ValueError(
            f"{path} does not fit the encoder that {CONFIG} describes (was "
            f"one of them truncated or edited?): {error}"
        ) from error


def is_pruned(config):
    """Whether a config is that of an export.

    Arguments
    ---------
    config : dict
        Content of config.json.

    Returns
    -------
    bool
    """
    return config.get(ENTRY) is not None or config.get(PLAN_1) is not None


def cut_skeleton(config, **attention):
    """The small model on the meta device, by the plan in its config.

    Arguments
    ---------
    config : transformers.PreTrainedConfig
        Of an export.
    attention : str
        `attn_implementation` of transformers.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If the plan does not fit, or a later version wrote it.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(config, **attention)
    plan, kinds = _plan_and_kinds(config)
    declaration = _declare(model, kinds)
    kept = {**full_plan(declaration).keep, **plan.keep}
    cut_(declaration, Plan(kept))
    fold_(model)
    return model


def check_weights(config, path):
    """Refuses weights that are not those exported with a config.

    Arguments
    ---------
    config : transformers.PreTrainedConfig
        Of an export; that of format 1 has no hash, so that any pass.
    path : str
        Of the weights.

    Raises
    ------
    ValueError
    """
    settings = getattr(config, ENTRY, None)
    if settings is not None:
        check_hash(path, settings["sha256"])


def _plan_and_kinds(config):
    """What an export's config says; format 1 named no kinds."""
    settings = getattr(config, ENTRY, None)
    if settings is not None:
        check_format(settings["format"])
        return Plan.from_dict(settings["plan"]), settings["kinds"]
    plan = Plan.from_dict(getattr(config, PLAN_1))
    whole = any(name.endswith(ENDING) for name in plan.keep)
    return plan, [*kinds_of(plan), *([KIND] if whole else [])]


def _declare(model, kinds):
    """The declaration that the plan of a Hugging Face model belongs to."""
    inside = [kind for kind in kinds if kind != KIND]
    structures = partial(wav2vec2_structures, kinds=inside or None)
    if KIND in kinds:
        return layer_structures(model, structures, inside=bool(inside))
    return structures(model)


def attention_of(kwargs):
    """Of `from_pretrained`'s arguments, what a config alone can follow."""
    key = "attn_implementation"
    return {key: kwargs[key]} if key in kwargs else {}


def _write_json(path, settings):
    text = json.dumps(settings, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
