"""Modules of Whisper for cut models, and its encoder alone."""

import torch
from transformers.models.whisper.modeling_whisper import WhisperAttention

from sb_prune.cut.modules.attention import UnequalSelfAttention
from sb_prune.cut.surgery import Absent


class UnequalWhisperAttention(UnequalSelfAttention, WhisperAttention):
    """Self-attention of Whisper's encoder whose heads differ in width."""


class AbsentCachedAttention(Absent):
    """Takes the place of a removed self-attention of a decoder.

    The decoder learns from the cache of its first layer how many tokens it has
    seen. So this module keeps its place there: it stores a zero for each token.

    Arguments
    ---------
    stock : WhisperAttention
        The removed module. It is not kept.
    """

    def __init__(self, stock):
        super().__init__(extra_outputs=1, layer_idx=stock.layer_idx)

    def forward(self, hidden_states, *args, cache=None, **kwargs):
        """Returns zero, and None in place of attention weights.

        Arguments
        ---------
        hidden_states : torch.Tensor
            (batch, tokens, width)
        cache : transformers.Cache, optional
            Keys and values of earlier tokens; it grows by these.
        *args, **kwargs
            Other arguments of the removed module.

        Returns
        -------
        zero : torch.Tensor
            A scalar.
        weights : None
        """
        if cache is None:  # its name in earlier versions of transformers
            cache = kwargs.get("past_key_values")
        if cache is not None:
            batch, tokens, _ = hidden_states.shape
            zeros = hidden_states.new_zeros((batch, 1, tokens, 1))
            of_self = getattr(cache, "self_attention_cache", cache)
            of_self.update(zeros, zeros, self.layer_idx)
        return super().forward(hidden_states)


def drop_decoder_(model):
    """Removes the decoder before SpeechBrain's lobe does.

    The lobe moves it to the CPU first, which fails on the meta device.

    Arguments
    ---------
    model : torch.nn.Module
        Of Whisper.
    """
    model.decoder = torch.nn.Identity()
