"""WavLM's attention once heads, or all of it, are gone.

Its first layer computes a bias from relative positions for all heads of all
layers, and each head reads a slice of the hidden states to gate that bias. So
layers above need the dense bias whatever the first one lost, and a layer must
know which of the dense heads it kept.

Shapes: B utterances, T frames, d model width, D dense heads, H kept heads,
k head width.
"""

import torch
from torch.nn import functional as F
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from sb_prune.cut.modules.attention import UnequalHeads, attend_with_weights
from sb_prune.cut.surgery import Absent


class FewerBiasedHeads(WavLMAttention):
    """`WavLMAttention` that kept some of its heads.

    Surgery gives a cut instance this class and sets `kept_heads`, the
    positions of its heads among the dense ones.
    """

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_bias=None,
        index=0,
        **kwargs,
    ):
        """Same contract as the class it replaces.

        Arguments
        ---------
        hidden_states : torch.Tensor
            (B, T, d)
        attention_mask : torch.Tensor, optional
            (B, T), 1 or True where not padded.
        position_bias : torch.Tensor, optional
            (B D, T, T); by default computed here.
        index : int
            Of the layer.

        Returns
        -------
        output : torch.Tensor
            (B, T, d)
        weights : torch.Tensor
            (B, H, T, T)
        position_bias : torch.Tensor
            (B D, T, T), of all dense heads.
        """
        batch, frames, _ = hidden_states.shape
        if position_bias is None:
            position_bias = dense_bias(self, batch, frames)
        bias = gated_bias(
            self, hidden_states, position_bias, attention_mask, self.kept_heads
        )
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(hidden_states) for project in projections)
        output, weights = self._attend(q, k, v, bias)
        return self.out_proj(output), weights, position_bias

    def _attend(self, q, k, v, bias):
        """(B, T, Hk) and the weights (B, H, T, T)."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x in (q, k, v)
        )
        scores = q * self.scaling @ k.transpose(2, 3) + bias
        weights = scores.softmax(-1)
        dropped = F.dropout(weights, self.dropout, self.training)
        return (dropped @ v).transpose(1, 2).flatten(2), weights


class UnequalBiasedHeads(UnequalHeads, FewerBiasedHeads):
    """`WavLMAttention` whose heads differ in width."""

    kept_heads = slice(None)

    def _attend(self, q, k, v, bias):
        dropout = self.dropout if self.training else 0.0
        return attend_with_weights(
            q, k, v, self.layout, self.scaling, bias, dropout
        )


class AbsentBiasedAttention(Absent):
    """A WavLM attention that was cut: the positions' bias passes by."""

    def forward(
        self, hidden_states, attention_mask=None, position_bias=None, **kwargs
    ):
        """Returns zero, no weights, and the bias it was given."""
        return self.zero(hidden_states), None, position_bias


class BiasOnly(AbsentBiasedAttention):
    """The first layer's attention that was cut: computes the bias only.

    Arguments
    ---------
    stock : WavLMAttention
        The one that was here, with `rel_attn_embed`.
    """

    compute_bias = WavLMAttention.compute_bias
    _relative_positions_bucket = WavLMAttention._relative_positions_bucket

    def __init__(self, stock):
        super().__init__(
            num_buckets=stock.num_buckets, max_distance=stock.max_distance
        )
        self.rel_attn_embed = stock.rel_attn_embed

    def forward(
        self, hidden_states, attention_mask=None, position_bias=None, **kwargs
    ):
        """Returns zero, no weights, and the bias (B D, T, T)."""
        batch, frames, _ = hidden_states.shape
        bias = dense_bias(self, batch, frames)
        return super().forward(hidden_states, position_bias=bias)


def dense_bias(attention, batch, frames):
    """The positions' bias of all dense heads, as `WavLMAttention` passes it.

    Arguments
    ---------
    attention : torch.nn.Module
        The first layer's.
    batch, frames : int
        B, T.

    Returns
    -------
    torch.Tensor
        (B D, T, T)
    """
    bias = attention.compute_bias(frames, frames)
    return bias.expand(batch, -1, -1, -1).reshape(-1, frames, frames)


def gated_bias(
    attention,
    hidden_states,
    position_bias,
    attention_mask=None,
    heads=slice(None),
):
    """What a layer adds to its scores.

    Arguments
    ---------
    attention : WavLMAttention
        Of the layer.
    hidden_states : torch.Tensor
        (B, T, d)
    position_bias : torch.Tensor
        (B D, T, T)
    attention_mask : torch.Tensor, optional
        (B, T), 1 or True where not padded.
    heads : slice or list of int
        Those that were kept; all slice the hidden states as the dense ones.

    Returns
    -------
    torch.Tensor
        (B, H, T, T), -inf where padded.
    """
    batch, frames, _ = hidden_states.shape
    bias = position_bias.view(batch, -1, frames, frames)[:, heads]
    slices = hidden_states.unflatten(-1, (-1, attention.head_dim))
    slices = slices[:, :, heads].transpose(1, 2)
    halves = attention.gru_rel_pos_linear(slices).unflatten(-1, (2, 4)).sum(-1)
    a, b = halves.sigmoid().chunk(2, dim=-1)
    bias = (a * (b * attention.gru_rel_pos_const - 1) + 2) * bias
    if attention_mask is None:
        return bias
    padded = attention_mask.ne(1)[:, None, None]
    return bias.masked_fill(padded, -torch.inf)
