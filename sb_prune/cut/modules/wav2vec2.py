"""Attention of wav2vec 2.0 and HuBERT whose heads differ in width.

There are two classes, since transformers recognises attention by its class.
"""

from transformers.models.hubert.modeling_hubert import HubertAttention
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Attention

from sb_prune.cut.modules.attention import UnequalSelfAttention


class UnequalWav2Vec2Attention(UnequalSelfAttention, Wav2Vec2Attention):
    """Attention of wav2vec 2.0 whose heads differ in width."""


class UnequalHubertAttention(UnequalSelfAttention, HubertAttention):
    """Attention of HuBERT whose heads differ in width."""


def unequal(stock):
    """Chooses the class for an attention whose heads differ in width.

    Arguments
    ---------
    stock : torch.nn.Module
        The attention, of transformers' class.

    Returns
    -------
    type
    """
    if isinstance(stock, HubertAttention):
        return UnequalHubertAttention
    return UnequalWav2Vec2Attention
