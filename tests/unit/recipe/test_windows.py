"""Batches that are joined until they fill a window."""

import pytest
import torch

from sb_prune.recipe.windows import FullWindows

WAVS, LENS = torch.ones(2, 5), torch.tensor([1.0, 0.6])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.3, 300)])
def test_so_many_batches_are_joined(share, expected):
    torch.manual_seed(0)
    windows = FullWindows(share, seconds=4, sample_rate=4)
    shapes = [windows(WAVS, LENS).shape for _ in range(1000)]
    joined = shapes.count((1, 16))
    assert shapes.count((2, 5)) == 1000 - joined
    assert abs(joined - expected) < 60 * (share > 0) + 1


def test_there_is_no_silence_in_between():
    wavs = torch.stack([torch.ones(5), torch.tensor([2.0, 2, 2, 0, 0])])
    (window,) = FullWindows(1.0, seconds=3, sample_rate=4)(wavs, LENS)
    assert window.tolist() == [1.0] * 5 + [2.0] * 3 + [1.0] * 4


def test_more_than_a_window_is_cut():
    (window,) = FullWindows(1.0, seconds=1, sample_rate=4)(WAVS, LENS)
    assert len(window) == 4


def test_a_share_is_no_percentage():
    with pytest.raises(ValueError, match="share: 15"):
        FullWindows(15)
