"""Reads and writes pruned encoders as Hugging Face folders.

`config.json` is that of the dense model. Its entry `sb_prune` adds the format,
the edits that were made to the model, and the hash of the weights. The lobes in
`sb_prune.lobes` load such folders.

    "sb_prune": {
      "format": 3,
      "edits": [
        {"cut": {"structures": "wav2vec2_structures", "kinds": ["heads"],
                 "plan": {"encoder.layers.0.attention.heads": "1 of 2: 0"}}},
        {"fold": {}}
      ],
      "sha256": "..."
    }
"""

import copy
import json
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import sb_prune
from sb_prune.architectures.whole_layers import KIND, layer_structures
from sb_prune.cut.edits import (
    ENTRY,
    FORMAT,
    Cut,
    Fold,
    LaterFormat,
    before_cuts,
    check_format,
    rebuild,
)
from sb_prune.cut.folding import folded_state
from sb_prune.cut.modules.whisper import drop_decoder_
from sb_prune.cut.student_shape import StudentShape
from sb_prune.declare.plan import Plan, full_plan
from sb_prune.declare.structure import below, dotted
from sb_prune.export.old_configs import OLD_KEYS, old_entry
from sb_prune.export.tokens import SpecialTokens
from sb_prune.support.disk import reason
from sb_prune.support.hashes import check_hash, file_hash

WEIGHTS = "model.safetensors"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
STRUCTURES = {"whisper": "whisper_structures"}
OTHERS = "wav2vec2_structures"  # declares what all other models consist of


class _Skeleton:
    """Mixin of a lobe that makes its model from the config, without weights."""

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, **kwargs
    ):
        with torch.device(self._device):
            self.model = self.auto_class.from_config(
                self.config, **attention_of(kwargs)
            )
        if self._encoder_only:
            drop_decoder_(self.model)

    def load_tokenizer(self, source, **kwargs):
        self.tokenizer = SpecialTokens(**self._tokens)


def skeleton(lobe, config, preprocessor, tokens=None):
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
    tokens : dict, optional
        Arguments of `SpecialTokens`, for a lobe with a tokenizer.

    Returns
    -------
    torch.nn.Module
        An instance of SpeechBrain's class.

    Example
    -------
    >>> import torch
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
    how = {
        "_device": torch.get_default_device(),
        "_encoder_only": arguments.get("encoder_only", False),
        "_tokens": tokens,
    }
    unloaded = type(stock.__name__, (_Skeleton, stock), how)
    # what a lobe has beside its model, such as filters, is in no file
    with tempfile.TemporaryDirectory() as folder, torch.device("cpu"):
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

    """
    config = lobe.model.config.to_dict()
    # keys with an underscore say where the dense model was loaded from
    ours = {ENTRY, *OLD_KEYS}
    config = {
        k: v for k, v in config.items() if not (k.startswith("_") or k in ours)
    }
    return _plain(config), _plain(lobe.feature_extractor.to_dict())


def dense_of(lobe, edits):
    """Makes a lobe as it was before its model was cut.

    Arguments
    ---------
    lobe : torch.nn.Module
        A Hugging Face lobe.
    edits : list of Edit
        What was done to its model.

    Returns
    -------
    torch.nn.Module
        Of the same class, with a dense model on the meta device.
    """
    config = type(lobe.model.config).from_dict(describe(lobe)[0])
    dense = copy.copy(lobe)
    dense._modules = dict(lobe._modules)
    stock = partial(AutoModel.from_config, config)
    dense.model = rebuild(stock, before_cuts(edits))
    if getattr(lobe, "encoder_only", False):
        dense.model.decoder = None
    return dense


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


def write_config(folder, lobe, edits):
    """Writes config.json and the other settings beside the weights.

    Arguments
    ---------
    folder : Path
        Holds the weights already.
    lobe : torch.nn.Module
        The lobe, trained and cut.
    edits : list of dict
        What was done to the Hugging Face model, from `edits_inside`.
    """
    config, preprocessor = describe(lobe)
    config[ENTRY] = {
        "format": FORMAT,
        "edits": edits,
        "sha256": file_hash(folder / WEIGHTS),
    }
    _write_json(folder / CONFIG, config)
    _write_json(folder / PREPROCESSOR, preprocessor)


def edits_inside(lobe, prefix, edits, steps):
    """Describes what edits of a larger module did to a Hugging Face model.

    Arguments
    ---------
    lobe : torch.nn.Module
        The lobe with the model; of it only the config is used.
    prefix : str
        Path of the model from the root of the edits.
    edits : list of Edit
        Of the larger module.
    steps : list of Step
        Those of its edits that are cuts.

    Returns
    -------
    list of dict
        As they stand in config.json. Names start inside the model.
    """
    config = type(lobe.model.config).from_dict(describe(lobe)[0])
    steps, found = iter(steps), []
    for edit in edits:
        if isinstance(edit, Cut):
            step = next(steps)
            cut = {
                dotted(edit.module, s.name).removeprefix(f"{prefix}."): s
                for s in step.declaration.structures
                if below(dotted(edit.module, s.name), prefix)
            }
            keep = {name: step.plan.keep[s.name] for name, s in cut.items()}
            kinds = [s.kind for s in cut.values()]
            if cut:
                found.append(_cut_of(config, found, keep, kinds))
        elif isinstance(edit, Fold):
            found.append({"fold": {}})
        elif edit.module == prefix:
            found.append({"student": {"reuse": list(edit.reuse)}})
    return found


def _cut_of(config, earlier, keep, kinds):
    """Describes a cut. Units that it does not name stay."""
    kinds = list(dict.fromkeys(kinds))
    before = rebuild(partial(AutoModel.from_config, config), _as_edits(earlier))
    name = STRUCTURES.get(config.model_type, OTHERS)
    declaration = structures_of(name, kinds)(before)
    plan = Plan({**full_plan(declaration).keep, **keep})
    cut = {"structures": name, "kinds": kinds, "plan": plan.to_dict()}
    return {"cut": cut}


def structures_of(name, kinds):
    """Finds the function that declares structures of a Hugging Face model.

    Arguments
    ---------
    name : str
        Public name of the function for what is inside layers.
    kinds : list of str
        Kinds of the structures, "whole_layers" among them.

    Returns
    -------
    callable
        Module -> Declaration.

    Raises
    ------
    ValueError
        If sb_prune has no such function.
    """
    if name not in sb_prune.__all__ or not name.endswith("_structures"):
        raise ValueError(
            f"{CONFIG}: {ENTRY}: structures: sb_prune has no function {name!r}"
        )
    inside = [kind for kind in kinds if kind != KIND]
    structures = partial(getattr(sb_prune, name), kinds=inside or None)
    if KIND not in kinds:
        return structures
    return partial(layer_structures, structures=structures, inside=bool(inside))


def _as_edits(described):
    """Turns what stands in config.json into edits."""
    edits = []
    for entry in described:
        ((kind, settings),) = entry.items()
        if kind == "cut":
            structures = structures_of(
                settings["structures"], settings["kinds"]
            )
            edits.append(Cut(structures=structures, plan=settings["plan"]))
        elif kind == "student":
            edits.append(StudentShape(reuse=settings["reuse"]))
        elif kind == "fold":
            edits.append(Fold())
        else:
            raise LaterFormat(
                f"{CONFIG}: {ENTRY}: edits: {kind!r} is none of cut, fold and "
                "student; pip install --upgrade sb_prune"
            )
    return edits


def edits_of(config):
    """Reads what was done to a Hugging Face model from its config.

    Arguments
    ---------
    config : transformers.PreTrainedConfig

    Returns
    -------
    list of Edit
        Empty for a stock model.

    Raises
    ------
    ValueError
        If the entry cannot be read, or was written by a later version of
        sb_prune.
    """
    entry = getattr(config, ENTRY, None)
    if entry is not None:
        check_format(entry.get("format"))
    if entry is None or "edits" not in entry:
        return _as_edits(_upgraded(config, old_entry(vars(config))))
    return _as_edits(entry["edits"])


def _upgraded(config, entry):
    """Edits of an earlier format, whose plan left out what stays whole."""
    if entry is None:
        return []
    if "plan" not in entry:
        return entry["edits"]
    keep = Plan.from_dict(entry["plan"]).keep
    return [_cut_of(config, [], keep, entry["kinds"]), {"fold": {}}]


@contextmanager
def naming_source(source):
    """Context in which a damaged export is named as the source of a lobe.

    Arguments
    ---------
    source : str
        As the YAML names it.

    Raises
    ------
    ValueError
        In place of any error but that of a later format, or of the hub.
    """
    try:
        yield
    except LaterFormat:
        raise
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, OSError) and not Path(source).is_dir():
            raise
        if isinstance(error, ValueError) and str(source) in str(error):
            raise ValueError(f"source: {error}") from error
        said = reason(error)
        if isinstance(error, KeyError):
            said = f"it has no {said}"
        raise ValueError(
            f"source: {source} cannot be loaded (was its {CONFIG} edited?): "
            f"{said}; copy the whole folder again"
        ) from error


def build_model(config, **attention):
    """Builds a Hugging Face model as its config describes it, without weights.

    Arguments
    ---------
    config : transformers.PreTrainedConfig
        Config of an export, or of a student.
    attention : str
        The argument `attn_implementation` of transformers.

    Returns
    -------
    torch.nn.Module
        On the meta device.

    Raises
    ------
    ValueError
        If the edits do not fit the model, or were written by a later version
        of sb_prune.
    """
    stock = partial(AutoModel.from_config, config, **attention)
    return rebuild(stock, edits_of(config))


def assign(model, path, only=""):
    """Loads the weights of a model from a file.

    Arguments
    ---------
    model : torch.nn.Module
        Its parameters may be on the meta device.
    path : str
        A safetensors file, which is memory-mapped and assigned, not copied.
    only : str
        Start of the names of the tensors to load.

    Raises
    ------
    ValueError
        If the file does not fit the model.
    """
    try:
        state = {k: v for k, v in load_file(path).items() if k.startswith(only)}
        model.load_state_dict(state, strict=True, assign=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{path} does not fit the encoder that {CONFIG} describes (was "
            f"one of them truncated or edited?): {reason(error)}; copy the "
            "whole folder again"
        ) from error


def check_weights(config, path):
    """Refuses weights that were not exported together with a config.

    Arguments
    ---------
    config : transformers.PreTrainedConfig
        Config of an export. That of a student, and one of format 1, holds no
        hash, so nothing is checked.
    path : str
        File of the weights.

    Raises
    ------
    ValueError
        If the file has another hash.
    """
    sha256 = (getattr(config, ENTRY, None) or {}).get("sha256")
    if sha256 is not None:
        check_hash(path, sha256)


def attention_of(kwargs):
    """Selects the arguments of `from_pretrained` that `from_config` takes."""
    key = "attn_implementation"
    return {key: kwargs[key]} if key in kwargs else {}


def _write_json(path, settings):
    text = json.dumps(settings, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
