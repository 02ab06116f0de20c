"""Attention modules for cut heads, where the original class cannot run.

After heads were cut, those that stay no longer span the model width. After dims
inside heads were cut, heads differ in width (see `heads.py`).

Shapes: B batch, L queries, S keys and values, E embed_dim, H kept heads, k
head_dim of the dense model; Q the sum of the widths of all queries (or keys),
V that of all values.
"""

import torch
from speechbrain.nnet.attention import RelPosMHAXL
from torch.nn import functional as F

from sb_prune.cut.modules.heads import (
    HeadLayout,
    additive,
    attend,
    attend_in_heads,
    attend_with_weights,
)


class UnequalHeads:
    """Mixin for attention classes whose heads differ in width.

    Surgery turns a cut attention into an instance of a class with this mixin
    and sets the widths that it changed. Widths that are None are the dense
    ones.
    """

    query_key_widths = None
    value_widths = None

    def after_cut_(self):
        """Makes the layout of the heads; surgery calls this after the cut."""
        device = self.out_proj.weight.device
        # on the meta device these indices would be lost: files do not hold them
        with torch.device("cpu"):
            layout = HeadLayout(*self.widths)
        self.layout = layout if device.type == "meta" else layout.to(device)

    @property
    def widths(self):
        """Widths of all heads: a tuple for query and key, one for value."""
        dense = [self.head_dim] * self.num_heads
        return (
            tuple(self.query_key_widths or dense),
            tuple(self.value_widths or dense),
        )


class UnequalSelfAttention(UnequalHeads):
    """Mixin for self-attention of transformers whose heads differ in width.

    Shapes: B utterances, T frames, d model width, H kept heads.
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


class FewerHeads(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose heads no longer span embed_dim.

    The original forward requires heads * head_dim == embed_dim. Surgery turns
    a cut instance into this class; its weights, state dict keys and hooks stay
    as they were.

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
        """Has the arguments and results of the class that it replaces.

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
            (L, S), or (B * dense heads, L, S) if it is the same for all heads;
            True (or -inf) where attention is not allowed.
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
        q, k, v = self.project(q=query, k=key, v=value)
        bias = _hidden(attn_mask, key_padding_mask, q)
        output, weights = self.attend(q, k, v, bias)
        output = self.out_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        return output, weights.mean(1) if average_attn_weights else weights

    def attend(self, q, k, v, bias):
        """Attends with what was projected, before `out_proj`.

        Arguments
        ---------
        q, k, v : torch.Tensor
            (B, L or S, Hk), head after head.
        bias : torch.Tensor
            Broadcastable to (B, H, L, S), added to the scores.

        Returns
        -------
        output : torch.Tensor
            (B, L, Hk)
        weights : torch.Tensor
            (B, H, L, S)
        """
        dropout = self.dropout if self.training else 0.0
        scale = self.head_dim**-0.5
        return attend_in_heads(q, k, v, self.num_heads, scale, bias, dropout)

    def project(self, **inputs):
        """Makes queries, keys or values, head after head.

        Arguments
        ---------
        **inputs : torch.Tensor
            Of the names q, k and v, or some of them: (B, L or S, E).

        Returns
        -------
        list of torch.Tensor
            (B, L or S, Hk) of each.
        """
        rows, biases = self.rows(), {}
        weights = dict(zip("qkv", self.in_proj_weight.split(rows)))
        if self.in_proj_bias is not None:
            biases = dict(zip("qkv", self.in_proj_bias.split(rows)))
        return [
            F.linear(x, weights[name], biases.get(name))
            for name, x in inputs.items()
        ]

    def rows(self):
        """Numbers of rows of in_proj_weight for q, k and v."""
        return [self.num_heads * self.head_dim] * 3


class UnequalMultiheadAttention(UnequalHeads, FewerHeads):
    """`torch.nn.MultiheadAttention` whose heads differ in width."""

    def attend(self, q, k, v, bias):
        """As there, with Hk the sum of all widths."""
        dropout = self.dropout if self.training else 0.0
        scale = self.head_dim**-0.5
        return attend_with_weights(q, k, v, self.layout, scale, bias, dropout)

    def rows(self):
        query_key, value = (sum(widths) for widths in self.widths)
        return [query_key, query_key, value]


class UnequalRelPosMHAXL(UnequalHeads, RelPosMHAXL):
    """`RelPosMHAXL` whose heads differ in width, for self-attention only.

    The rows of in_proj_weight are ordered by head, [q_h; k_h; v_h] for each,
    and the position biases are vectors (Q,).
    """

    def forward(
        self,
        query,
        key,
        value,
        pos_embs,
        key_padding_mask=None,
        attn_mask=None,
        return_attn_weights=True,
    ):
        """Has the arguments and results of the class that it replaces.

        Arguments
        ---------
        query, key, value : torch.Tensor
            (B, L, E), the same.
        pos_embs : torch.Tensor
            (1, 2 L - 1, E)
        key_padding_mask : torch.Tensor, optional
            (B, L), True where padded.
        attn_mask : torch.Tensor, optional
            (L, L), or (B * dense heads, L, L) if it is the same for all heads;
            True (or -inf) where attention is not allowed.
        return_attn_weights : bool
            Whether to return the weights too.

        Returns
        -------
        output : torch.Tensor
            (B, L, E)
        weights : torch.Tensor
            (B, H, L, L), if asked for.
        """
        q, k, v = self._project(query)
        positions = self.linear_pos(pos_embs)
        hidden = _hidden(attn_mask, key_padding_mask, q)
        with_u = (q + self.pos_bias_u.reshape(-1)) * self.scale
        with_v = (q + self.pos_bias_v.reshape(-1)) * self.scale
        weights, outputs = [], []
        for bucket in self.layout.buckets:
            take = bucket.query_key.take
            content = take(with_u) @ take(k).transpose(-2, -1)
            relative = take(with_v) @ take(positions).transpose(-2, -1)
            scores = content + self.rel_shift(relative) + hidden
            found_weights = F.softmax(scores, dim=-1, dtype=torch.float32)
            # in chunked training a frame may have nothing to attend to
            found_weights = self.dropout_att(found_weights).masked_fill(
                hidden == -torch.inf, 0.0
            )
            weights.append(found_weights)
            outputs.append(found_weights @ bucket.value.take(v))
        output = self.out_proj(self.layout.join_outputs(outputs))
        if not return_attn_weights:
            return output
        return output, self.layout.join_weights(weights)

    def _project(self, x):
        """q and k (B, L, Q), v (B, L, V)."""
        query_key, value = self.widths
        sizes = [size for q, v in zip(query_key, value) for size in (q, q, v)]
        pieces = F.linear(x, self.in_proj_weight).split(sizes, dim=-1)
        q, k, v = (torch.cat(pieces[i::3], dim=-1) for i in range(3))
        if self.vbias is not None:
            v = v + self.value_bias_weight
        return q, k, v


def _hidden(attn_mask, key_padding_mask, like):
    """Combines both masks into one additive bias, (B or 1, 1, L or 1, S)."""
    bias = like.new_zeros((1, 1, 1, 1))
    if attn_mask is not None:
        if attn_mask.dim() == 3:  # (B * dense heads, L, S)
            attn_mask = attn_mask.unflatten(0, (like.shape[0], -1))[:, :1]
        bias = bias + additive(attn_mask, like)
    if key_padding_mask is not None:
        bias = bias + additive(key_padding_mask, like)[:, None, None]
    return bias
