"""WavLM's attention after some of its heads, or all of it, were cut.

The first layer of WavLM computes a bias from relative positions for the heads
of all layers, and every head gates this bias by its own slice of the hidden
states. So the other layers need the bias of all dense heads, whatever was cut
in the first layer, and each layer must know which dense heads it has kept.

Shapes: B utterances, T frames, d model width, D dense heads, H kept heads,
k head width.
"""

import torch
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from sb_prune.cut.modules.attention import UnequalHeads
from sb_prune.cut.modules.heads import attend_in_heads, attend_with_weights
from sb_prune.cut.surgery import Absent


class FewerBiasedHeads(WavLMAttention):
    """`WavLMAttention` with some of its heads cut.

    Surgery turns a cut instance into this class and sets `kept_heads`, the
    positions of the kept heads among the dense ones.
    """

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_bias=None,
        index=0,
        **kwargs,
    ):
        """Has the arguments and results of the class that it replaces.

        Arguments
        ---------
        hidden_states : torch.Tensor
            (B, T, d)
        attention_mask : torch.Tensor, optional
            (B, T), 1 or True where not padded.
        position_bias : torch.Tensor, optional
            (B D, T, T); computed here if it is not given.
        index : int
            Number of the layer.

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
        dropout = self.dropout if self.training else 0.0
        return attend_in_heads(
            q, k, v, self.num_heads, self.scaling, bias, dropout
        )


class UnequalBiasedHeads(UnequalHeads, FewerBiasedHeads):
    """`WavLMAttention` whose heads differ in width."""

    kept_heads = None  # all of them

    def _attend(self, q, k, v, bias):
        dropout = self.dropout if self.training else 0.0
        return attend_with_weights(
            q, k, v, self.layout, self.scaling, bias, dropout
        )


class AbsentBiasedAttention(Absent):
    """Takes the place of a removed WavLM attention and passes the bias on."""

    def forward(
        self, hidden_states, attention_mask=None, position_bias=None, **kwargs
    ):
        """Returns zero, no weights, and the bias it was given."""
        return self.zero(hidden_states), None, position_bias


class BiasOnly(AbsentBiasedAttention):
    """Takes the place of the first layer's removed attention.

    It still computes the position bias, which the other layers need.

    Arguments
    ---------
    stock : WavLMAttention
        The removed attention, with `rel_attn_embed`.
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
    """Computes the position bias of all dense heads, as WavLM passes it on.

    Arguments
    ---------
    attention : torch.nn.Module
        Attention of the first layer.
    batch, frames : int
        B and T.

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
    heads=None,
):
    """Computes the bias that a layer adds to its attention scores.

    Arguments
    ---------
    attention : WavLMAttention
        Attention of the layer.
    hidden_states : torch.Tensor
        (B, T, d)
    position_bias : torch.Tensor
        (B D, T, T)
    attention_mask : torch.Tensor, optional
        (B, T), 1 or True where not padded.
    heads : list of int, optional
        The kept heads, as positions among the dense ones; by default all.

    Returns
    -------
    torch.Tensor
        (B, H, T, T), -inf where padded.
    """
    batch, frames, _ = hidden_states.shape
    heads = slice(None) if heads is None else heads
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
