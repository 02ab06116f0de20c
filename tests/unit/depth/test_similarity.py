"""Similarities of layers, against other ways to compute them."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from sb_prune.depth import SimilarBlock
from sb_prune.depth.similarity import (
    cosine_similarity,
    linear_cka,
    mutual_neighbours,
)


@pytest.fixture
def layers():
    """Two views of 50 points, of 6 and of 4 features."""
    generator = np.random.default_rng(0)
    one = generator.normal(size=(50, 6))
    return one, one[:, :4] + 0.5 * generator.normal(size=(50, 4))


def test_cosines_one_by_one():
    one, other = np.random.default_rng(0).normal(size=(2, 20, 5))
    expected = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(one, other)
    ]
    assert cosine_similarity(one, other) == pytest.approx(np.mean(expected))
    assert cosine_similarity(one, -one) == pytest.approx(-1)


def test_cka_by_way_of_the_points(layers):
    """tr(KHLH) / sqrt(tr(KHKH) tr(LHLH)), with the kernels themselves."""
    centre = np.eye(50) - 1 / 50
    kernels = [centre @ (x @ x.T) @ centre for x in layers]
    hsic = [[np.sum(a * b) for a in kernels] for b in kernels]
    expected = hsic[0][1] / np.sqrt(hsic[0][0] * hsic[1][1])
    assert linear_cka(*layers) == pytest.approx(expected)


def test_cka_of_rotated_scaled_and_moved_points(layers):
    one, _ = layers
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    assert linear_cka(one, 3 * one @ rotation + 5) == pytest.approx(1)


def test_neighbours_in_common(layers):
    near = [np.argsort(cdist(x, x), axis=1)[:, 1:6] for x in layers]
    shared = [len({*a} & {*b}) / 5 for a, b in zip(*near)]
    found = mutual_neighbours(*layers, neighbours=5)
    assert found == pytest.approx(np.mean(shared))
    assert 0 < found < 1


@pytest.mark.parametrize("neighbours", [0, 50])
def test_numbers_of_neighbours(layers, neighbours):
    with pytest.raises(ValueError, match="of 50 points; write at least 1"):
        mutual_neighbours(*layers, neighbours=neighbours)


def test_neighbours_of_points_in_one_place():
    """A point is not among its own nearest when many are as near."""
    one = np.zeros((20, 2))
    other = np.random.default_rng(0).normal(size=(20, 2))
    assert mutual_neighbours(one, one, neighbours=3) == 1
    assert 0 <= mutual_neighbours(one, other, neighbours=3) <= 1


def test_states_without_spread_are_no_reason_to_leave_out_layers():
    """In float32, as hidden states are."""
    still = np.zeros((3, 4), dtype=np.float32)
    assert linear_cka(still, still) == cosine_similarity(still, still) == 0
    with pytest.raises(ValueError, match="1 point says nothing"):
        linear_cka(still[:1], still[:1])
    states = [still] * 4
    choose = SimilarBlock(lambda one, other: float("nan"), removed=1)
    with pytest.raises(ValueError, match="gives nan for what enters layers 1"):
        choose(states, None)
