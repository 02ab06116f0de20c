"""Batches that are joined until they fill a window."""

from types import SimpleNamespace

import pytest
import torch

from sb_prune.recipe.windows import FullWindows, unpadded

UTTERANCES = [torch.ones(5), 2 * torch.ones(3)]
TEXTS = [torch.tensor([1, 2, 3]), torch.tensor([4])]


def windows(longest, share=1.0):
    return FullWindows(SimpleNamespace(longest=longest), share)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.3, 300)])
def test_so_many_batches_are_joined(share, expected):
    torch.manual_seed(0)
    join = windows(16, share)
    found = [join(UTTERANCES, TEXTS) for _ in range(1000)]
    joined = [batch for batch in found if batch is not None]
    assert all(wavs.shape == (1, 16) for wavs, _ in joined)
    assert abs(len(joined) - expected) < 60 * (share > 0) + 1


def test_there_is_no_silence_in_between():
    (window,), (said,) = windows(12)(UTTERANCES, TEXTS)
    assert window.tolist() == [1.0] * 5 + [2.0] * 3 + [1.0] * 4
    assert said.tolist() == [1, 2, 3, 4, 1, 2]


def test_more_than_a_window_is_cut():
    (window,), (said,) = windows(4)(UTTERANCES, TEXTS)
    assert len(window) == 4 and said.tolist() == [1, 2]


def test_nothing_may_be_said():
    (window,), (said,) = windows(16)(UTTERANCES, [TEXTS[0][:0]] * 2)
    assert len(window) == 16 and len(said) == 0


def test_a_share_is_no_percentage():
    with pytest.raises(ValueError, match="share: 15"):
        windows(16, share=15)


def test_rows_lose_their_padding():
    rows = unpadded(torch.arange(6).view(2, 3), torch.tensor([2 / 3, 1.0]))
    assert [row.tolist() for row in rows] == [[0, 1], [3, 4, 5]]
