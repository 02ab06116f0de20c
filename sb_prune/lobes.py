"""SpeechBrain's lobes of wav2vec 2.0, HuBERT and WavLM, for pruned ones too.

In any recipe, one entry replaces a dense encoder by a pruned one:

    wav2vec2: !new:sb_prune.lobes.Wav2Vec2
        source: path/to/export    # or its name on the hub
        save_path: !ref <save_folder>/wav2vec2_checkpoint

The lobes have the arguments and outputs of the classes of the same names in
`speechbrain.integrations.huggingface`, and load dense encoders as these do. A
pruned encoder is a Hugging Face folder. In its `config.json` an entry
`sb_prune` is added to the config of the dense model: it says what was cut, or
for a student (`sb_prune.students`) which layers reuse an attention map.
"""

from speechbrain.integrations.huggingface import hubert, wav2vec2, wavlm
from transformers.utils import cached_file

from sb_prune.export.build import load_verified  # noqa: F401, of format 1
from sb_prune.export.hugging_face import (
    WEIGHTS,
    assign,
    attention_of,
    build_model,
    check_weights,
    edits_of,
    naming_source,
    skeleton,
)

__all__ = ["HuBERT", "WavLM", "Wav2Vec2", "save_encoder", "skeleton"]


class _PrunedLobe:
    """Mixin with everything that the lobes here change in SpeechBrain's."""

    def __init__(self, source, save_path, *args, layerdrop=None, **kwargs):
        self._layerdrop = layerdrop
        super().__init__(source, save_path, *args, **kwargs)
        self._mask = None
        self.model.register_forward_pre_hook(self._pass_mask, with_kwargs=True)

    def forward(self, wav, wav_lens=None, mask=None):
        """Encodes waveforms as SpeechBrain's lobe does, with frames masked.

        Arguments
        ---------
        wav : torch.Tensor
            (batch, samples)
        wav_lens : torch.Tensor, optional
            (batch,) relative lengths.
        mask : torch.Tensor, optional
            (batch, frames) bool, True where the output of the front-end is
            replaced by the encoder's learnt mask vector. The encoder must have
            been made with `apply_spec_augment: True`.

        Returns
        -------
        torch.Tensor
            The output of SpeechBrain's lobe.
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
        """Sets the layerdrop that was asked for; SpeechBrain calls this."""
        if self._layerdrop is not None:
            config.layerdrop = self._layerdrop
        return super().override_config(config)

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, **kwargs
    ):
        with naming_source(source):
            edits = edits_of(self.config)
        if not edits:
            super()._from_pretrained(
                source, save_path, cache_dir, device, **kwargs
            )
            return
        with naming_source(source):
            self.model = build_model(self.config, **attention_of(kwargs))
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
        An export of sb_prune, as a folder or a name on the Hugging Face hub,
        or any source that SpeechBrain's lobe takes.
    save_path : str
        Folder for files downloaded from the hub.
    layerdrop : float, optional
        Probability with which training skips a layer; by default the one in
        the source's config. Layerwise distillation needs 0.0.
    *args, **kwargs
        Other arguments of SpeechBrain's lobe.
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
    """Saves an encoder that no run has pruned as a Hugging Face folder.

    Arguments
    ---------
    lobe : torch.nn.Module
        A lobe of SpeechBrain or of this file.
    folder : str
        Can be the `source` of lobes afterwards; that of a student only of the
        lobes in this file.
    """
    lobe.model.save_pretrained(folder)
    lobe.feature_extractor.save_pretrained(folder)
