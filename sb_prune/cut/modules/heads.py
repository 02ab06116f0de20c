"""Attention over heads that no longer span the model width.

After dims inside heads were cut, heads differ in width, and their queries and
keys may be narrower or wider than their values. Heads of about the same width
are padded with zeros and computed together (`attend`), which is faster than one
by one.

Shapes: B batch, L queries, S keys and values, H kept heads, k their width where
it is one; Q the sum of the widths of all queries (or keys), V that of all
values.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
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
