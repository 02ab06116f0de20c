"""Fewer heads, where the stock attention cannot run with them."""

import pytest
import torch

from sb_prune.cut.modules.attention import FewerHeads
from sb_prune.cut.modules.heads import HeadLayout, attend, attend_with_weights


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_with_all_heads_it_is_the_stock_class(
    batch_first, bias, boolean, per_head, average
):
    torch.manual_seed(0)
    stock = torch.nn.MultiheadAttention(
        16, 4, bias=bias, batch_first=batch_first
    ).eval()
    ours = FewerHeads(16, 4, bias=bias, batch_first=batch_first).eval()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(3, 7, 16)  # (B, L, E)
    x = x if batch_first else x.transpose(0, 1)
    future = torch.ones(7, 7).triu(1).bool()
    padding = torch.arange(7) >= torch.tensor([[7], [5], [2]])
    if not boolean:
        future, padding = (
            torch.zeros(mask.shape).masked_fill(mask, -torch.inf)
            for mask in (future, padding)
        )
    if per_head:
        future = future.expand(12, 7, 7)
    options = {
        "attn_mask": future,
        "key_padding_mask": padding,
        "average_attn_weights": average,
    }
    for found, expected in zip(
        ours(x, x, x, **options), stock(x, x, x, **options)
    ):
        assert torch.allclose(found, expected, atol=1e-6)


def test_cross_attention_without_weights():
    torch.manual_seed(0)
    stock = torch.nn.MultiheadAttention(16, 4).eval()
    ours = FewerHeads(16, 4).eval()
    ours.load_state_dict(stock.state_dict())
    query, memory = torch.randn(5, 2, 16), torch.randn(7, 2, 16)
    found, weights = ours(query, memory, memory, need_weights=False)
    expected, _ = stock(query, memory, memory, need_weights=False)
    assert weights is None
    assert torch.allclose(found, expected, atol=1e-6)


WIDTHS = ((3, 9, 1, 17, 8), (5, 2, 9, 16, 8))


def one_by_one(q, k, v, widths, scale, bias):
    """Every head alone."""
    outputs, weights = [], []
    pieces = zip(q.split(widths[0], -1), k.split(widths[0], -1))
    for head, ((a, b), c) in enumerate(zip(pieces, v.split(widths[1], -1))):
        scores = a @ b.transpose(1, 2) * scale + bias[:, head]
        weights.append(scores.softmax(-1))
        outputs.append(weights[-1] @ c)
    return torch.cat(outputs, -1), torch.stack(weights, 1)


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_unequal_heads_are_those_computed_one_by_one(boolean, per_head):
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, 38), torch.randn(2, 7, 38)
    v = torch.randn(2, 7, 40)
    allowed = torch.rand(2, 5 if per_head else 1, 6, 7) > 0.3
    allowed[..., 0] = True
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    if not boolean:
        bias = bias + torch.randn(bias.shape)
    given = allowed if boolean else bias
    output, weights = one_by_one(q, k, v, WIDTHS, 0.25, bias.expand(2, 5, 6, 7))
    found = attend(q, k, v, HeadLayout(*WIDTHS), 0.25, given)
    assert torch.allclose(found, output, atol=1e-6)
    found = attend_with_weights(q, k, v, HeadLayout(*WIDTHS), 0.25, given)
    assert torch.allclose(found[0], output, atol=1e-6)
    assert torch.allclose(found[1], weights, atol=1e-6)


@pytest.mark.parametrize(
    "widths",
    [
        ((4,) * 4, (4,) * 4),  # padded
        ((8, 8), (8, 8)),  # nothing is sorted or padded
        ((8, 8), (8, 5)),  # padded at the end alone
        ((8, 8), (5, 8)),
        ((16, 8), (16, 8)),  # two widths, the narrow one first
    ],
)
def test_heads_without_bias(widths):
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 6, sum(widths[0]))
    v = torch.randn(2, 6, sum(widths[1]))
    output, _ = one_by_one(
        q, k, v, widths, 0.5, torch.zeros(1, len(widths[0]), 1, 1)
    )
    found = attend(q, k, v, HeadLayout(*widths), 0.5)
    assert torch.allclose(found, output, atol=1e-6)
