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

import torch
from speechbrain.integrations.huggingface import hubert, wav2vec2, wavlm
from transformers.utils import cached_file

from sb_prune.export.build import load_verified  # noqa: F401, of format 1
from sb_prune.export.hugging_face import (
    WEIGHTS,
    assign,
    attention_of,
    check_weights,
    cut_skeleton,
    is_pruned,
    skeleton,
)
from sb_prune.students import STUDENT, build_student

__all__ = ["HuBERT", "WavLM", "Wav2Vec2", "save_encoder", "skeleton"]


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
        if is_pruned(vars(self.config)):
            self.model = cut_skeleton(self.config, **attention_of(kwargs))
        elif getattr(self.config, STUDENT, None) is not None:
            with torch.device("meta"):
                self.model = build_student(self.config, **attention_of(kwargs))
        else:
            super()._from_pretrained(
                source, save_path, cache_dir, device, **kwargs
            )
            return
        weights = cached_file(source, WEIGHTS, cache_dir=save_path)
        check_weights(self.config, weights)
        assign(self.model, weights)
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
