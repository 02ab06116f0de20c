"""SpeechBrain's lobes of wav2vec 2.0, HuBERT and WavLM, for pruned ones too."""

from speechbrain.integrations.huggingface import hubert, wav2vec2, wavlm

from sb_prune.lobes.pruned import PrunedLobe


class _MaskedLobe(PrunedLobe):
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

    def speech_frames(self, samples):
        """How many frames it makes of an utterance.

        Arguments
        ---------
        samples : int

        Returns
        -------
        int
        """
        return int(self.model._get_feat_extract_output_lengths(samples))

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


class Wav2Vec2(_MaskedLobe, wav2vec2.Wav2Vec2):
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
        Other arguments of SpeechBrain's lobe. For a pruned source, those of
        `from_pretrained` but `attn_implementation` are refused.
    """


class HuBERT(_MaskedLobe, hubert.HuBERT):
    """`speechbrain.integrations.huggingface.hubert.HuBERT`, pruned or not.

    Arguments are those of `Wav2Vec2`.
    """


class WavLM(_MaskedLobe, wavlm.WavLM):
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
