"""Fewer heads, where the stock attention cannot run with them."""

import pytest
import torch

from sb_prune.attention import FewerHeads


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
