"""SpeechBrain's lobes of wav2vec 2.0, HuBERT and WavLM, pruned ones too.

In any recipe a small encoder takes the place of a dense one by one entry:

    wav2vec2: !new:sb_prune.lobes.Wav2Vec2
        source: path/to/export    # or its name on the hub
        save_path: !ref <save_folder>/wav2vec2_checkpoint

Constructors and outputs are those of the classes with the same names in
`speechbrain.integrations.huggingface`; a source that is not pruned is loaded
as there. A pruned one is a Hugging Face folder whose `config.json` is that of
the dense model with the plan beside it; one of a student (`sb_prune.students`)
says which layers reuse an attention map.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from speechbrain.integrations.huggingface import hubert, wav2vec2, wavlm
from transformers import AutoModel
from transformers.utils import cached_file

from sb_prune.export import check_exported
from sb_prune.folding import fold_, folded_state
from sb_prune.plan import Plan, full_plan
from sb_prune.structures.wav2vec2 import kinds_of, wav2vec2_structures
from sb_prune.structures.whole_layers import ENDING, layer_structures
from sb_prune.students import STUDENT, build_student
from sb_prune.surgery import cut_

PLAN = "sb_prune_plan"  # key of config.json
WEIGHTS = "model.safetensors"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


class _PrunedLobe:
    """What the lobes here change of SpeechBrain's."""

    def __init__(self, source, save_path, *args, layerdrop=None, **kwargs):
        self._layerdrop = layerdrop
        super().__init__(source, save_path, *args, **kwargs)
        self._mask = None
        self.model.register_forward_pre_hook(self._pass_mask, with_kwargs=True)

    def forward(self, wav, wav_lens=None, mask=None):
        """As that of SpeechBrain's lobe, with frames hidden from the encoder.

        Arguments
        ---------
        wav : torch.Tensor
            (batch, samples)
        wav_lens : torch.Tensor, optional
            (batch,) relative lengths.
        mask : torch.Tensor, optional
            (batch, frames) bool, True where the front-end's output is replaced
            by the encoder's learnt vector; `apply_spec_augment` must be True.

        Returns
        -------
        torch.Tensor
        """
        self._mask = mask
        try:
            return super().forward(wav, wav_lens)
        finally:
            self._mask = None

    def _pass_mask(self, model, args, kwargs):
        if self._mask is None:
            return None
        if not model.config.apply_spec_augment:
            raise ValueError(
                "mask: the encoder ignores it; write apply_spec_augment: True"
            )
        return args, {**kwargs, "mask_time_indices": self._mask}

    def override_config(self, config):
        """The config, with the layerdrop that was asked for."""
        if self._layerdrop is not None:
            config.layerdrop = self._layerdrop
        return super().override_config(config)

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, **kwargs
    ):
        if getattr(self.config, PLAN, None) is not None:
            self.model = _cut_skeleton(self.config, **_attention(kwargs))
        elif getattr(self.config, STUDENT, None) is not None:
            with torch.device("meta"):
                self.model = build_student(self.config, **_attention(kwargs))
        else:
            super()._from_pretrained(
                source, save_path, cache_dir, device, **kwargs
            )
            return
        _assign(self.model, cached_file(source, WEIGHTS, cache_dir=save_path))
        if device is not None:
            self.model.to(device)


class Wav2Vec2(_PrunedLobe, wav2vec2.Wav2Vec2):
    """`speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2`, pruned or not.

    Arguments
    ---------
    source : str
        An export of sb_prune, local or on the hub, or what the stock lobe
        takes.
    save_path : str
        Where files from the hub go.
    layerdrop : float, optional
        Probability with which training skips a layer; by default the
        source's. Layerwise distillation needs 0.0.
    *args, **kwargs
        Of the stock lobe.
    """


class HuBERT(_PrunedLobe, hubert.HuBERT):
    """`speechbrain.integrations.huggingface.hubert.HuBERT`, pruned or not.

    Arguments are those of `Wav2Vec2`.
    """


class WavLM(_PrunedLobe, wavlm.WavLM):
    """`speechbrain.integrations.huggingface.wavlm.WavLM`, pruned or not.

    Arguments are those of `Wav2Vec2`.
    """


def save_encoder(lobe, folder):
    """Writes an encoder as a Hugging Face folder, for other recipes.

    Arguments
    ---------
    lobe : torch.nn.Module
        SpeechBrain's or one of these, with the weights to save; not pruned.
    folder : str
        The `source` of lobes; those here for a student.
    """
    lobe.model.save_pretrained(folder)
    lobe.feature_extractor.save_pretrained(folder)


class _Skeleton:
    """Makes a lobe without weights, of a config that is at hand."""

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, **kwargs
    ):
        self.model = self.auto_class.from_config(
            self.config, **_attention(kwargs)
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
    if config.get(PLAN) is not None:
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


def write_encoder(folder, lobe, plan):
    """Writes what the lobes here load into a folder.

    Arguments
    ---------
    folder : Path
        Exists.
    lobe : torch.nn.Module
        Trained and cut.
    plan : Plan
        What was kept, by names from the Hugging Face model.

    Returns
    -------
    str
        Name of the file with its weights.
    """
    config, preprocessor = describe(lobe)
    _write_json(folder / CONFIG, {**config, PLAN: plan.to_dict()})
    _write_json(folder / PREPROCESSOR, preprocessor)
    state = folded_state(lobe.model)
    state = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return WEIGHTS


def load_verified(lobe, path, sha256):
    """Loads an encoder's weights if they are those exported; a Pretrainer
    hook.

    Arguments
    ---------
    lobe : torch.nn.Module
        Its parameters may be on the meta device.
    path : str
        A safetensors file; it is memory-mapped and assigned.
    sha256 : str
        What the file must hash to.

    Raises
    ------
    ValueError
        If the file was truncated or edited, or does not fit the lobe.
    """
    check_exported(path, sha256)
    _assign(lobe.model, path)


def _assign(model, path):
    try:
        model.load_state_dict(load_file(path), strict=True, assign=True)
    except Exception as error:  # a torn file fails in any way
        raise ValueError(
            f"{path} does not fit the encoder that {CONFIG} describes (was "
            f"one of them truncated or edited?): {error}"
        ) from error


def _cut_skeleton(config, **attention):
    """The small model on the meta device, by the plan in its config."""
    with torch.device("meta"):
        model = AutoModel.from_config(config, **attention)
    plan = Plan.from_dict(getattr(config, PLAN))
    declaration = _declare(model, plan)
    kept = {**full_plan(declaration).keep, **plan.keep}
    cut_(declaration, Plan(kept))
    fold_(model)
    return model


def _declare(model, plan):
    """What a plan of a Hugging Face model was made for."""
    structures = partial(wav2vec2_structures, kinds=kinds_of(plan))
    if any(name.endswith(ENDING) for name in plan.keep):
        return layer_structures(model, structures, inside=True)
    return structures(model)


def _attention(kwargs):
    """Of `from_pretrained`'s arguments, what a config alone can follow."""
    key = "attn_implementation"
    return {key: kwargs[key]} if key in kwargs else {}


def _write_json(path, settings):
    text = json.dumps(settings, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
