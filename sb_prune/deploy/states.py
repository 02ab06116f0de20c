"""States of Whisper's encoder, from waveforms, as a graph can compute them.

Shapes: B batch, S samples, T frames, M mel channels, d model width.
"""

import torch
from torch.nn import functional as F

from sb_prune.deploy.features import LogMel
from sb_prune.support.audio import SAMPLE_RATE
from sb_prune.support.context import (
    FRAME,
    UTTERANCE,
    frames_of_end,
    samples_heard,
)


class States(torch.nn.Module):
    """From waveforms, or their spectrum, to the states of the encoder.

    Arguments
    ---------
    lobe : sb_prune.lobes.Whisper or SpeechBrain's
    """

    def __init__(self, lobe):
        super().__init__()
        self.log_mel = LogMel(lobe)
        self.encoder = lobe.model.encoder
        heard = getattr(lobe, "context", None), getattr(lobe, "margin", 0.0)
        self.end = frames_of_end(*heard)

    def take_log_mel_(self):
        """Takes out what computes the spectrum, and returns it."""
        log_mel, self.log_mel = self.log_mel, torch.nn.Identity()
        return log_mel

    def forward(self, source):
        """Encodes a batch.

        Arguments
        ---------
        source : torch.Tensor
            (B, S) waveforms, padded to what the encoder hears; or, without
            what computes it, (B, M, 2 T) their log mel spectrum.

        Returns
        -------
        torch.Tensor
            (B, T, d)
        """
        x = F.gelu(self.encoder.conv1(self.log_mel(source)))
        x = F.gelu(self.encoder.conv2(x)).transpose(1, 2)
        places = self.encoder.embed_positions.weight
        frames = torch.arange(x.shape[1], device=x.device)
        left_out = len(places) - x.shape[1]
        is_end = frames >= x.shape[1] - self.end
        x = x + places[torch.where(is_end, frames + left_out, frames)]
        for layer in self.encoder.layers:
            x = layer(x, None)
        return self.encoder.layer_norm(x)


class AlignedStates(torch.nn.Module):
    """States for CTC: one for each 320 samples, without those of the margin.

    Takes the place of a lobe with `aligned: True`, for utterances that it
    hears in one piece.

    Arguments
    ---------
    lobe : sb_prune.lobes.Whisper

    Attributes
    ----------
    longest : int
        Samples that it hears at most.

    Raises
    ------
    ValueError
        If it hears a shortest context, or returns all hidden states.
    """

    def __init__(self, lobe):
        super().__init__()
        if lobe.context == UTTERANCE and lobe.min_context:
            raise ValueError(
                f"min_context: {lobe.min_context}; as an encoder for CTC only "
                "a lobe with min_context: 0 can be deployed"
            )
        if lobe.output_all_hiddens:
            raise ValueError(
                f"{type(lobe).__name__}: output_all_hiddens: True cannot be "
                "deployed"
            )
        self.states = States(lobe)
        self.context = lobe.context
        self.margin = round(lobe.margin * SAMPLE_RATE)
        self.longest = lobe.longest
        if self.context == UTTERANCE:  # with the whole margin behind
            self.longest -= self.margin

    def forward(self, wavs):
        """Encodes waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, S), S at most `longest`.

        Returns
        -------
        torch.Tensor
            (B, T, d)
        """
        samples = wavs.shape[1]
        if self.context == UTTERANCE:
            behind = (-(samples + self.margin)) % FRAME + self.margin
        else:
            behind = samples_heard(0, self.context, 0.0, 0.0) - samples
        frames = (samples + FRAME - 1) // FRAME
        return self.states(F.pad(wavs, (0, behind)))[:, :frames]
