"""Attention with fewer heads, where the stock class cannot run with them."""

import torch
from torch.nn import functional as F


class FewerHeads(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose heads no longer span embed_dim.

    The stock forward insists on heads * head_dim == embed_dim. Surgery gives
    a cut instance this class; weights, keys and hooks stay as they were.

    Shapes: L target, S source length, B batch, E embed_dim, H kept heads,
    k head_dim; in_proj_weight (3Hk, E), out_proj.weight (E, Hk).
    """

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        """Same contract as the class it replaces.

        Arguments
        ---------
        query : torch.Tensor
            (L, B, E), or (B, L, E) if batch_first.
        key : torch.Tensor
            (S, B, E), or (B, S, E) if batch_first.
        value : torch.Tensor
            As key.
        key_padding_mask : torch.Tensor, optional
            (B, S), True (or -inf) where padded.
        need_weights : bool
            Whether to return the attention weights.
        attn_mask : torch.Tensor, optional
            (L, S) or (B * dense heads, L, S) if all heads share it; True (or
            -inf) where attention is not allowed.
        average_attn_weights : bool
            Whether to average the weights over the kept heads.
        is_causal : bool
            A hint that attn_mask is causal; the mask itself is used.

        Returns
        -------
        output : torch.Tensor
            As query.
        weights : torch.Tensor or None
            (B, L, S), or (B, H, L, S) if not averaged.
        """
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)  # (B, H, L or S, k)
        bias = self._bias(attn_mask, key_padding_mask, q)
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5 + bias
        weights = scores.softmax(-1)
        dropped = F.dropout(weights, self.dropout, self.training)
        output = (dropped @ v).transpose(1, 2).flatten(2)  # (B, L, Hk)
        output = self.out_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        return output, weights.mean(1) if average_attn_weights else weights

    def _project(self, *inputs):
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None)
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.chunk(3)
        return (
            F.linear(x, w, b)
            .unflatten(-1, (self.num_heads, self.head_dim))
            .transpose(1, 2)
            for x, w, b in zip(inputs, weights, biases)
        )

    def _bias(self, attn_mask, key_padding_mask, like):
        """Both masks as one additive bias, broadcast to (B, H, L, S)."""
        bias = like.new_zeros(())
        if attn_mask is not None:
            if attn_mask.dim() == 3:  # one mask per utterance and dense head
                batch = like.shape[0]
                attn_mask = attn_mask.unflatten(0, (batch, -1))[:, :1]
            bias = bias + _additive(attn_mask, like)
        if key_padding_mask is not None:
            bias = bias + _additive(key_padding_mask, like)[:, None, None]
        return bias


def _additive(mask, like):
    if mask.dtype != torch.bool:
        return mask.to(like)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(
        mask, -torch.inf
    )
