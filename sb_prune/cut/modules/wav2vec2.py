"""Attention of wav2vec 2.0 and HuBERT whose heads differ in width.

Shapes: B utterances, T frames, d model width, H kept heads.
"""

from transformers.models.hubert.modeling_hubert import HubertAttention
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Attention

from sb_prune.cut.modules.attention import (
    UnequalHeads,
    attend,
    attend_with_weights,
)


class _Unequal(UnequalHeads):
    """What both classes have in common.

    There are two, since transformers recognises attention by its class.
    """

    def forward(
        self,
        hidden_states,
        key_value_states=None,
        attention_mask=None,
        output_attentions=False,
        **kwargs,
    ):
        """Has the arguments and results of the class that it replaces.

        Arguments
        ---------
        hidden_states : torch.Tensor
            (B, T, d)
        key_value_states : None
            Not used, as this is self-attention.
        attention_mask : torch.Tensor, optional
            (B, 1, T, T) or broadcastable: added to the scores, or bool, True
            where attention is allowed.
        output_attentions : bool
            Whether to return the weights; eager attention always does.

        Returns
        -------
        output : torch.Tensor
            (B, T, d)
        weights : torch.Tensor or None
            (B, H, T, T)
        """
        q, k, v = (
            project(hidden_states)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        options = (self.layout, self.scaling, attention_mask, dropout)
        eager = self.config._attn_implementation == "eager"
        if not (eager or output_attentions):
            return self.out_proj(attend(q, k, v, *options)), None
        output, weights = attend_with_weights(q, k, v, *options)
        return self.out_proj(output), weights


class UnequalWav2Vec2Attention(_Unequal, Wav2Vec2Attention):
    """Attention of wav2vec 2.0 whose heads differ in width."""


class UnequalHubertAttention(_Unequal, HubertAttention):
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
