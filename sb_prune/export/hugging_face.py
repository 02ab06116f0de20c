"""Reads and writes pruned encoders as Hugging Face folders.

`config.json` is that of the dense model. Its entry `sb_prune` adds the format,
the plan, the kinds of structures in it, and the hash of the weights. The lobes
in `sb_prune.lobes` load such folders.
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

ENTRY = "sb_prune"  # key in config.json
PLAN_1 = "sb_prune_plan"  # key in config.json of format 1, with the plan alone
WEIGHTS = "model.safetensors"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


class _Skeleton:
    """Mixin of a lobe that makes its model from the config, without weights."""

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, **kwargs
    ):
        self.model = self.auto_class.from_config(
            self.config, **attention_of(kwargs)
        )


def skeleton(lobe, config, preprocessor):
    """Makes a dense lobe with random weights from its config alone.

    Nothing is downloaded. The YAML of an export calls this on the meta device
    and cuts the result.

    Arguments
    ---------
    lobe : callable
        SpeechBrain's class with its arguments, except for `source` and
        `save_path`.
    config : dict
        Content of the config.json of the dense model.
    preprocessor : dict
        Content of its preprocessor_config.json.

    Returns
    -------
    torch.nn.Module
        An instance of SpeechBrain's class.

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
    lobe = partial(lobe)  # without arguments HyperPyYAML passes the bare class
    stock, arguments = lobe.func, lobe.keywords
    unloaded = type(stock.__name__, (_Skeleton, stock), {})
    with tempfile.TemporaryDirectory() as folder:
        _write_json(Path(folder, CONFIG), config)
        _write_json(Path(folder, PREPROCESSOR), preprocessor)
        made = unloaded(source=folder, save_path=folder, **arguments)
    made.__class__ = stock
    return made


def describe(lobe):
    """Returns the arguments with which `skeleton` makes a lobe again.

    Arguments
    ---------
    lobe : torch.nn.Module
        A Hugging Face lobe.

    Returns
    -------
    config : dict
        Content of the config.json of the dense model.
    preprocessor : dict
        Content of its preprocessor_config.json.

    Raises
    ------
    ValueError
        If the lobe was loaded from an export, so pruned before.
    """
    config = lobe.model.config.to_dict()
    if is_pruned(config):
        raise ValueError(
            "pruning: module: the encoder is an export that was pruned "
            "before; start from the dense one, with a higher target"
        )
    # keys with an underscore say where the dense model was loaded from
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    return _plain(config), _plain(lobe.feature_extractor.to_dict())


def _plain(settings):
    """Turns settings into plain values that JSON and YAML can hold."""
    return json.loads(json.dumps(settings, default=str))


def write_weights(folder, lobe):
    """Writes the weights of a lobe into a folder.

    Arguments
    ---------
    folder : Path
        An existing folder.
    lobe : torch.nn.Module
        The lobe, trained and cut.

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
    """Writes config.json and preprocessor_config.json beside the weights.

    Arguments
    ---------
    folder : Path
        Holds the weights already.
    lobe : torch.nn.Module
        The lobe, trained and cut.
    plan : Plan
        The units that were kept; names start inside the Hugging Face model.
    kinds : list of str
        Kinds of the structures in the plan.
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
    """Loads the weights of a model from a file.

    Arguments
    ---------
    model : torch.nn.Module
        Its parameters may be on the meta device.
    path : str
        A safetensors file, which is memory-mapped and assigned, not copied.

    Raises
    ------
    ValueError
        If the file does not fit the model.
    """
    try:
        model.load_state_dict(load_file(path), strict=True, assign=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{path} does not fit the encoder that {CONFIG} describes (was "
            f"one of them truncated or edited?): {error}"
        ) from error


def is_pruned(config):
    """Whether a config belongs to a pruned encoder.

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
    """Builds a cut model from the plan in its config, without weights.

    Arguments
    ---------
    config : transformers.PreTrainedConfig
        Config of an export.
    attention : str
        The argument `attn_implementation` of transformers.

    Returns
    -------
    torch.nn.Module
        On the meta device.

    Raises
    ------
    ValueError
        If the plan does not fit the model, or the export was written by a later
        version of sb_prune.
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
    """Refuses weights that were not exported together with a config.

    Arguments
    ---------
    config : transformers.PreTrainedConfig
        Config of an export. One of format 1 holds no hash, so nothing is
        checked.
    path : str
        File of the weights.

    Raises
    ------
    ValueError
        If the file has another hash.
    """
    settings = getattr(config, ENTRY, None)
    if settings is not None:
        check_hash(path, settings["sha256"])


def _plan_and_kinds(config):
    """Reads plan and kinds from a config; format 1 had the plan alone."""
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
    """Selects the arguments of `from_pretrained` that `from_config` takes."""
    key = "attn_implementation"
    return {key: kwargs[key]} if key in kwargs else {}


def _write_json(path, settings):
    text = json.dumps(settings, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
