"""SpeechBrain's lobe of Whisper, for pruned models and shorter contexts."""

import copy
from functools import partial

import torch
from speechbrain.integrations.huggingface import whisper
from speechbrain.utils.logger import get_logger
from torch.nn import functional as F
from transformers import GenerationConfig, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from sb_prune.cut.modules.whisper import drop_decoder_
from sb_prune.export.hugging_face import assign
from sb_prune.export.tokens import (
    SpecialTokens,
    is_multilingual,
    never_written,
)
from sb_prune.lobes.pruned import PrunedLobe
from sb_prune.support.audio import SAMPLE_RATE
from sb_prune.support.context import (
    FRAME,
    LONGEST,
    UTTERANCE,
    frames_of_end,
    longest_utterance,
    samples_heard,
)
from sb_prune.support.values import Number

logger = get_logger(__name__)
MIN_CONTEXT = 8.0  # seconds
SECONDS = Number(above=0, example=", e.g. 10")
MARGIN = Number(least=0)


class Whisper(PrunedLobe, whisper.Whisper):
    """`speechbrain.integrations.huggingface.whisper.Whisper`, pruned or not.

    Whisper was trained on windows of 30 s, in which silence follows what is
    shorter. A shorter `context` saves the time that this takes, but a decoder
    that never hears the end of a window repeats itself. So the encoder hears
    the utterance, a margin of silence, and the end of the window: the last
    quarter of the margin has the positions of the last frames of the 30 s.

    Arguments
    ---------
    source : str
        An export of sb_prune, as a folder or a name on the Hugging Face hub,
        or any source that SpeechBrain's lobe takes.
    save_path : str
        Folder for files downloaded from the hub.
    sampling_rate : int
    encoder_only : bool
        Whether to load the encoder alone.
    *args
        Other arguments of SpeechBrain's lobe.
    context : float or "utterance", optional
        Seconds of audio that the encoder sees, with the margin; "utterance":
        those of the longest one in the batch, and the margin. By default 30.
    margin : float
        Seconds of silence after the longest utterance in a batch, if there is
        a `context`.
    min_context : float, optional
        Seconds that the encoder sees at least, if the context is "utterance".
        By default 8 if a decoder reads it, which repeats itself after less
        (docs/results/whisper.md), and 0 for the encoder alone.
    aligned : bool
        Whether the frames are those of the audio, as CTC needs them: lengths
        relative to the waveforms are then lengths relative to the frames. The
        silence behind is heard, but its frames are dropped; what is longer
        than the context is heard in equal pieces. For the encoder alone.
    freeze_decoder : bool
        Whether the decoder learns nothing.
    attn_implementation : str, optional
        That of transformers: "sdpa" by default. In bfloat16 "eager" trains
        faster on a CPU.
    **kwargs
        Other arguments of SpeechBrain's lobe.

    Raises
    ------
    ValueError
        If the context is longer than 30 s or no longer than the margin, the
        source has no tokenizer, the model has no tokens for `language` and
        `task`, or frames shall be aligned that the decoder reads.
    """

    def __init__(
        self,
        source,
        save_path,
        sampling_rate=SAMPLE_RATE,
        encoder_only=False,
        *args,
        context=None,
        margin=2.0,
        min_context=None,
        aligned=False,
        freeze_decoder=False,
        attn_implementation=None,
        **kwargs,
    ):
        if min_context is None:
            min_context = 0 if encoder_only else MIN_CONTEXT
        MARGIN.check(margin, "margin")
        MARGIN.check(min_context, "min_context")
        if min_context > LONGEST:
            raise ValueError(
                f"min_context: {min_context}; Whisper hears {LONGEST:g} s, "
                "write no more"
            )
        if context not in (None, UTTERANCE):
            SECONDS.check(context, "context")
            if context > LONGEST:
                raise ValueError(
                    f"context: {context}; Whisper hears {LONGEST:g} s, write "
                    "no more"
                )
            if longest_utterance(context, margin) < FRAME:
                raise ValueError(
                    f"context: {context}; write more than the margin of "
                    f"{margin:g} s that is in it"
                )
        if aligned and not encoder_only:
            raise ValueError(
                f"aligned: {aligned}; the decoder reads all frames: write "
                "encoder_only: True, or leave `aligned` out"
            )
        self._without_decoder = encoder_only
        super().__init__(
            source, save_path, sampling_rate, encoder_only, *args, **kwargs
        )
        if attn_implementation is not None:
            self.model.set_attn_implementation(attn_implementation)
        self.context = context
        self.margin = margin
        self.min_context = min_context
        self.aligned = aligned
        self.generation_config = _generation_config(source, save_path)
        _check_tokens(self, source)
        encoder = self.model.encoder
        _check_channels(encoder, self.feature_extractor.feature_size)
        encoder.register_forward_pre_hook(_shorten, with_kwargs=True)
        encoder.register_forward_hook(_restore, always_call=True)
        if context is not None:
            frames = frames_of_end(context, margin)
            end = partial(_end_of_window, frames=frames)
            encoder.embed_positions.register_forward_pre_hook(end)
        if self.tokenizer is not None:
            hide = partial(_hide_padding, pad=self.eos)  # Whisper pads with it
            self.model.decoder.register_forward_pre_hook(hide, with_kwargs=True)
        if freeze_decoder and not encoder_only:
            self.model.decoder.requires_grad_(False)

    @property
    def is_multilingual(self):
        """Whether there are tokens of languages and tasks.

        SpeechBrain tells by the size of the vocabulary, which may be trimmed.
        """
        return is_multilingual(self.config)

    def _assign(self, weights):
        if self._without_decoder:
            drop_decoder_(self.model)
            assign(self.model, weights, only="encoder.")
        else:
            assign(self.model, weights)

    def forward(self, wav, decoder_input_ids=None, mask=None):
        """Encodes waveforms, and decodes tokens unless it has no decoder.

        Arguments
        ---------
        wav : torch.Tensor
            (batch, samples)
        decoder_input_ids : torch.Tensor, optional
            (batch, tokens); without any, the decoder rests. An encoder alone
            does not look at it, so that it may stand where a lobe of wav2vec
            2.0 is given lengths.
        mask : torch.Tensor, optional
            (batch, frames) bool, True for frames of which it hears nothing: the
            log-mel is 0 there, as SpecAugment in transformers leaves it. The
            frames must be `aligned`.

        Returns
        -------
        torch.Tensor or tuple
            As SpeechBrain's lobe returns them; None for what a decoder that
            rests would return. If `aligned`, there is one frame for each 320
            samples.

        Raises
        ------
        ValueError
            If there is a mask and the frames are not aligned.
        """
        if mask is not None and not self.aligned:
            raise ValueError("mask: write aligned: True, to mask frames")
        if decoder_input_ids is None and not self.encoder_only:
            with torch.set_grad_enabled(
                torch.is_grad_enabled() and not self.freeze
            ):
                return self.forward_encoder(self._get_mel(wav)), None, None
        if not self.aligned:
            return super().forward(wav, decoder_input_ids)
        piece = self._piece(wav.shape[-1])
        pieces = wav.split(piece, dim=-1)
        masks = [None] * len(pieces)
        if mask is not None:
            masks = mask.split(piece // FRAME, dim=1)
        return torch.cat(list(map(self._frames_of, pieces, masks)), dim=-2)

    def _piece(self, samples):
        """Samples of each of the equal pieces that the context can hold."""
        longest = self.longest // FRAME * FRAME
        pieces = max(1, -(-samples // longest))
        return -(-samples // (pieces * FRAME)) * FRAME

    def _frames_of(self, wav, mask):
        frames = -(-wav.shape[-1] // FRAME)
        if mask is None:
            return super().forward(wav)[..., :frames, :]
        mel = self._get_mel(wav)
        hidden = mask.repeat_interleave(2, dim=1)  # frames of the log-mel
        hidden = F.pad(hidden, (0, mel.shape[-1] - hidden.shape[1]))
        mel = mel.masked_fill(hidden[:, None], 0.0)
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.freeze
        ):
            return self.forward_encoder(mel)[..., :frames, :]

    def log_mel_spectrogram(self, audio, padding=0):
        """Log-mel spectra, each of which depends on one utterance alone.

        SpeechBrain's lobe lifts what is more than 80 dB below the loudest of
        the whole batch, and in fp16 loses what is quiet.

        Arguments
        ---------
        audio : torch.Tensor
            (batch, samples)
        padding : int
            Samples of silence to append.

        Returns
        -------
        torch.Tensor
            (batch, mels, frames), float32.
        """
        whole = super().log_mel_spectrogram
        with torch.autocast(audio.device.type, enabled=False):
            return torch.cat([whole(w[None], padding) for w in audio.float()])

    def speech_frames(self, samples):
        """How many of the frames of the encoder are of the audio.

        Arguments
        ---------
        samples : int
            Of the utterance.

        Returns
        -------
        int
            One for each 320 samples. If the frames are not `aligned`, silence
            follows these.
        """
        return -(-samples // FRAME)

    def pad_or_trim(self, array, length=None, axis=-1):
        """Pads waveforms to the context.

        Arguments
        ---------
        array : torch.Tensor
            (batch, samples)
        length : int, optional
            Number of samples; by default those of the context.
        axis : int
            The axis of the samples.

        Returns
        -------
        torch.Tensor
            (batch, length)

        Raises
        ------
        ValueError
            If an utterance is longer than the context.
        """
        if length is None:
            length = self.samples_heard(array.shape[axis])
        return super().pad_or_trim(array, length, axis)

    @property
    def longest(self):
        """Samples of the longest utterance that it can hear."""
        return longest_utterance(self.context, self.margin)

    def samples_heard(self, samples):
        """Samples that the encoder sees of utterances of so many samples.

        Arguments
        ---------
        samples : int

        Returns
        -------
        int
            A multiple of 320.

        Raises
        ------
        ValueError
            If utterances and margin are longer than the context.
        """
        too_long = samples > self.longest
        if too_long and self.context in (None, UTTERANCE):
            logger.warning_once(
                f"Whisper hears the first {LONGEST:g} s of an utterance"
            )
        elif too_long:
            raise ValueError(
                f"context: {self.context}: an utterance takes "
                f"{samples / SAMPLE_RATE:.2f} s, and a margin of "
                f"{self.margin:g} s; write a longer context (30 s at most), "
                "or leave such utterances out of the data"
            )
        return samples_heard(
            samples, self.context, self.margin, self.min_context
        )

    def for_generation(self, seconds=None):
        """Makes a model with the method `generate` of transformers.

        Arguments
        ---------
        seconds : float, optional
            What it hears at a time, to which it pads its input; a margin of
            it should be silent. By default the context; 30 if that depends on
            the utterance.

        Returns
        -------
        transformers.WhisperForConditionalGeneration
            It shares all of its weights with the lobe, and generates as the
            source's `generation_config.json` says.
        """
        if seconds is None:
            fixed = self.context not in (None, UTTERANCE)
            seconds = self.context if fixed else LONGEST
        config = copy.deepcopy(self.model.config)
        config.max_source_positions = round(seconds * SAMPLE_RATE / FRAME)
        with torch.device("meta"):
            model = WhisperForConditionalGeneration._from_config(config)
        model.model = self.model
        model.proj_out.weight = self.model.decoder.embed_tokens.weight
        if self.generation_config is not None:
            model.generation_config = self.generation_config
        return model.train(self.model.training)


def _generation_config(source, save_path):
    """How the model generates, or None if the source does not say."""
    try:
        return GenerationConfig.from_pretrained(source, cache_dir=save_path)
    except OSError:
        return None


def _shorten(encoder, args, kwargs):
    """Lets the encoder take as many frames as it is given."""
    mel = args[0] if args else kwargs["input_features"]
    most = encoder.embed_positions.weight.shape[0]
    frames = mel.shape[-1] // 2
    if mel.shape[-1] % 2 or frames > most:
        raise ValueError(
            f"{mel.shape[-1]} frames of the log-mel; Whisper's encoder takes "
            f"an even number of them, {2 * most} at most"
        )
    _check_channels(encoder, mel.shape[1])
    encoder.embed_positions.num_embeddings = frames
    encoder.config.max_source_positions = frames


def _check_channels(encoder, channels):
    if channels != encoder.conv1.in_channels:
        raise ValueError(
            f"a log-mel of {channels} channels; this model takes "
            f"{encoder.conv1.in_channels}, see its preprocessor_config.json"
        )


def _end_of_window(embedding, args, frames):
    """Gives the last frames of a shorter context the last positions of all."""
    (positions,) = args
    left_out = len(embedding.weight) - len(positions)
    is_end = positions >= len(positions) - frames
    return (torch.where(is_end, positions + left_out, positions),)


def _hide_padding(decoder, args, kwargs, pad):
    """Masks tokens behind a transcript in training, as losses ignore them."""
    tokens = kwargs.get("input_ids")
    cache = kwargs.get("past_key_values", kwargs.get("cache"))
    if not decoder.training or tokens is None or cache is not None:
        return None
    return args, {"attention_mask": (tokens != pad).long(), **kwargs}


def _restore(encoder, *call):
    most = encoder.embed_positions.weight.shape[0]
    encoder.embed_positions.num_embeddings = most
    encoder.config.max_source_positions = most


def _check_tokens(lobe, source):
    """Refuses a language or task that the model has no token for."""
    if lobe.tokenizer is None:  # the encoder alone
        return
    if lobe.no_timestamps == lobe.eos:  # unknown tokens are ends
        raise ValueError(
            f"source: {source} has no tokenizer of Whisper; copy tokenizer.json"
            " and tokenizer_config.json there, or write encoder_only: True"
        )
    if not isinstance(lobe.tokenizer, SpecialTokens):
        _check_splitting(lobe.tokenizer, source)
    if not lobe.is_multilingual:
        if lobe.language not in (None, "en", "english"):
            raise ValueError(
                f"language: {lobe.language!r}; this Whisper knows English "
                "only: leave `language` out, or name a multilingual model"
            )
        if lobe.task != "transcribe":
            raise ValueError(
                f"task: {lobe.task!r}; this Whisper knows English only and "
                "can but transcribe"
            )
        return
    if isinstance(lobe.tokenizer, SpecialTokens):
        return  # of an export, which was made with its language
    prefix = lobe.tokenizer.prefix_tokens
    token = lobe.tokenizer.convert_ids_to_tokens(prefix[1])
    language = (lobe.language or "en").lower()
    if token != f"<|{TO_LANGUAGE_CODE.get(language, language)}|>":
        raise ValueError(
            f"language: {lobe.language!r}; the tokenizer of {source} has no "
            f"token for it (in its place is {token}); write another language"
        )


def _check_splitting(tokenizer, source):
    """Warns of a tokenizer that splits words otherwise than the model does.

    Transcripts are then not what the model would write, and to learn from
    them harms. (The first merge gets lost easily, as merges.txt has a header.)
    """
    missing = never_written(tokenizer)
    if missing:
        logger.warning(
            f"source: the tokenizer of {source} lacks the merges of "
            f"{len(missing)} tokens, such as {missing[0]!r}, so it splits "
            "words otherwise than the model has learned; to train with it, "
            "copy tokenizer.json from where the model was published"
        )
