"""Attention for cut heads, where the original class cannot run.

After heads were cut, those that stay no longer span the model width. After dims
inside heads were cut, heads differ in width, and their queries and keys may be
narrower or wider than their values. Heads of about the same width are padded
with zeros and computed together (`attend`), which is faster than one by one.

Shapes: B batch, L queries, S keys and values, E embed_dim, H kept heads, k
head_dim of the dense model; Q the sum of the widths of all queries (or keys),
V that of all values.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from speechbrain.nnet.attention import RelPosMHAXL
from torch.nn import functional as F

WIDTH_STEP = 8  # heads are padded to a multiple of this many dims


@dataclass(frozen=True)
class Dims:
    """The dims of some heads, padded to one width.

    Arguments
    ---------
    places : torch.Tensor
        (heads, width) int, the position of each dim in (Q,) or (V,). Padding
        has the position Q or V, one beyond the last.
    in_order : bool
        Whether these are all positions, one after another.
    """

    places: torch.Tensor
    in_order: bool

    def take(self, x):
        """Selects the dims, with zeros where they are padded.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, Q or V)

        Returns
        -------
        torch.Tensor
            (B, heads, T, width)
        """
        if not self.in_order:
            padded = F.pad(x, (0, 1))
            x = padded.index_select(-1, self.places.flatten())
        return x.unflatten(-1, self.places.shape).transpose(1, 2)


@dataclass(frozen=True)
class Bucket:
    """Heads that are computed together, padded to one width.

    Arguments
    ---------
    heads : list of int
        Positions of these heads among the kept ones.
    query_key, value : Dims
    """

    heads: list
    query_key: Dims
    value: Dims


class HeadLayout(torch.nn.Module):
    """Sorts heads of unequal widths into buckets of about the same width.

    Its index tensors are buffers, so that they follow the model to another
    device and into an exported program. They are not part of the state dict.

    Arguments
    ---------
    query_key, value : sequence of int
        Widths of the kept heads.

    Attributes
    ----------
    order : torch.Tensor
        (V,) int, the position of each value dim in the outputs of all buckets,
        joined (heads x width, one bucket after another).
    head_order : torch.Tensor
        (H,) int, the position of each head among those of all buckets, joined.

    Example
    -------
    >>> layout = HeadLayout((2, 9, 1), (3, 4, 1))
    >>> [bucket.heads for bucket in layout.buckets]
    [[0, 2], [1]]
    >>> layout.buckets[0].value.places.tolist()
    [[0, 1, 2, 8, 8, 8, 8, 8], [7, 8, 8, 8, 8, 8, 8, 8]]
    >>> layout.order.tolist(), layout.head_order.tolist()
    ([0, 1, 2, 16, 17, 18, 19, 8], [0, 2, 1])
    """

    def __init__(self, query_key, value):
        super().__init__()
        by_width = {}
        for head, widths in enumerate(zip(query_key, value)):
            width = -(-max(widths) // WIDTH_STEP) * WIDTH_STEP
            by_width.setdefault(width, []).append(head)
        self._heads = [heads for _, heads in sorted(by_width.items())]
        self._in_order = {}  # name of a buffer -> whether it changes nothing
        places = []
        for i, (width, heads) in enumerate(sorted(by_width.items())):
            rows = _padded_rows(query_key, heads, width)
            self._add(f"query_key_{i}", rows, sum(query_key))
            places.append(_padded_rows(value, heads, width))
            self._add(f"value_{i}", places[i], sum(value))
        places = torch.cat([place.flatten() for place in places])
        # padding has the highest position, so it is sorted to the end and cut
        order = places.argsort(stable=True)[: sum(value)]
        self._add("order", order, len(places))
        heads = torch.tensor(sum(self._heads, []))
        self._add("head_order", heads.argsort(), len(heads))

    def _add(self, name, index, count):
        """Keeps positions among `count`, and whether they are all, in order."""
        self.register_buffer(name, index, persistent=False)
        self._in_order[name] = index.flatten().tolist() == [*range(count)]

    @property
    def buckets(self):
        """List of `Bucket`, those of the narrowest heads first."""
        return [
            Bucket(
                heads, self._dims(f"query_key_{i}"), self._dims(f"value_{i}")
            )
            for i, heads in enumerate(self._heads)
        ]

    def _dims(self, name):
        return Dims(getattr(self, name), self._in_order[name])

    def join_outputs(self, outputs):
        """Joins outputs (B, heads, L, width) of all buckets to (B, L, V)."""
        flat = [output.transpose(1, 2).flatten(2) for output in outputs]
        return self._sorted(flat, "order", -1)

    def join_weights(self, weights):
        """Joins attention weights of all buckets to (B, H, L, S)."""
        return self._sorted(weights, "head_order", 1)

    def _sorted(self, pieces, order, dim):
        joined = torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0]
        if self._in_order[order]:
            return joined
        return joined.index_select(dim, getattr(self, order))


def _padded_rows(widths, heads, width):
    """(heads, width) positions of the dims of some heads, padded at the end."""
    starts = list(accumulate(widths, initial=0))
    rows = torch.full((len(heads), width), starts[-1])
    for row, head in zip(rows, heads):
        row[: widths[head]] = torch.arange(starts[head], starts[head + 1])
    return rows


def attend(query, key, value, layout, scale, bias=None, dropout=0.0):
    """Scaled dot-product attention over heads of unequal widths.

    Arguments
    ---------
    query : torch.Tensor
        (B, L, Q), head after head.
    key : torch.Tensor
        (B, S, Q)
    value : torch.Tensor
        (B, S, V)
    layout : HeadLayout
        How the heads are computed together.
    scale : float
        Factor of the scores.
    bias : torch.Tensor, optional
        (B or 1, H or 1, L or 1, S), added to the scores; or bool, True where
        attention is allowed.
    dropout : float
        Dropout rate of the attention weights.

    Returns
    -------
    torch.Tensor
        (B, L, V)

    Example
    -------
    >>> q, v = torch.rand(1, 5, 7), torch.rand(1, 5, 4)
    >>> attend(q, q, v, HeadLayout((5, 2), (1, 3)), scale=0.5).shape
    torch.Size([1, 5, 4])
    """
    outputs = [
        F.scaled_dot_product_attention(
            bucket.query_key.take(query),
            bucket.query_key.take(key),
            bucket.value.take(value),
            attn_mask=_of_heads(bias, bucket.heads),
            dropout_p=dropout,
            scale=scale,
        )
        for bucket in layout.buckets
    ]
    return layout.join_outputs(outputs)


def attend_with_weights(
    query, key, value, layout, scale, bias=None, dropout=0.0
):
    """Does the same as `attend` and returns the attention weights too.

    Arguments
    ---------
    query, key, value, layout, scale, bias, dropout
        Those of `attend`.

    Returns
    -------
    output : torch.Tensor
        (B, L, V)
    weights : torch.Tensor
        (B, H, L, S), before dropout.
    """
    bias = as_bias(bias, query)
    weights, outputs = [], []
    for bucket in layout.buckets:
        q, k = map(bucket.query_key.take, (query * scale, key))
        scores = q @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + _of_heads(bias, bucket.heads)
        weights.append(scores.softmax(-1))
        dropped = F.dropout(weights[-1], dropout, training=dropout > 0)
        outputs.append(dropped @ bucket.value.take(value))
    return layout.join_outputs(outputs), layout.join_weights(weights)


def attend_in_heads(query, key, value, heads, scale, bias, dropout=0.0):
    """Scaled dot-product attention over heads of one width.

    Arguments
    ---------
    query : torch.Tensor
        (B, L, H k), head after head.
    key, value : torch.Tensor
        (B, S, H k)
    heads : int
        H.
    scale, dropout : float
        As for `attend`.
    bias : torch.Tensor
        Broadcastable to (B, H, L, S), added to the scores.

    Returns
    -------
    output : torch.Tensor
        (B, L, H k)
    weights : torch.Tensor
        (B, H, L, S), before dropout.

    Example
    -------
    >>> x, bias = torch.rand(1, 5, 6), torch.zeros(1, 1, 1, 1)
    >>> output, weights = attend_in_heads(x, x, x, 3, 0.5, bias)
    >>> output.shape, weights.shape
    (torch.Size([1, 5, 6]), torch.Size([1, 3, 5, 5]))
    """
    q, k, v = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2)
        for x in (query * scale, key, value)
    )
    weights = (q @ k.transpose(-2, -1) + bias).softmax(-1)
    dropped = F.dropout(weights, dropout, training=dropout > 0)
    return (dropped @ v).transpose(1, 2).flatten(2), weights


def as_bias(mask, like):
    """Turns a mask of transformers into a bias that is added to the scores.

    Arguments
    ---------
    mask : torch.Tensor or None
        Bool, True where attention is allowed. Any other mask is a bias already
        and returned as it is.
    like : torch.Tensor
        A tensor with the dtype of the scores.

    Returns
    -------
    torch.Tensor or None
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    return additive(~mask, like)


def _of_heads(bias, heads):
    if bias is None or bias.shape[1] == 1:
        return bias
    return bias[:, heads]


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


def additive(mask, like):
    """Turns a mask of torch into a bias that is added to the scores.

    Arguments
    ---------
    mask : torch.Tensor
        Bool, True where attention is not allowed. Any other mask is a bias
        already and only gets the dtype of the scores.
    like : torch.Tensor
        A tensor with the dtype of the scores.

    Returns
    -------
    torch.Tensor
        -inf where attention is not allowed, else 0.
    """
    if mask.dtype != torch.bool:
        return mask.to(like)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(
        mask, -torch.inf
    )
