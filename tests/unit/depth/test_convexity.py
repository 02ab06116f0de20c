"""Graph convexity against the package of the method's authors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnconvexity import graph as authors
from scipy.sparse import csr_array

from sb_prune.depth import convexity
from sb_prune.depth.convexity import (
    graph_convexity,
    neighbour_graph,
    path_scores,
    sample_pairs,
)

CLASSES = 4


def random_points(generator):
    points = generator.normal(size=(90, 6))
    return points, generator.integers(0, CLASSES, len(points))


def clustered_points(generator):
    """Clusters that touch."""
    classes = generator.integers(0, CLASSES, 90)
    centres = 1.5 * generator.normal(size=(CLASSES, 6))
    return centres[classes] + generator.normal(size=(90, 6)), classes


def disconnected_points(generator):
    """Islands; each class has points on two of them."""
    island = np.arange(90) % 3
    points = generator.normal(size=(90, 6)) + 1000 * island[:, None]
    return points, (island + generator.integers(0, 2, 90)) % 3


def duplicated_points(generator):
    """Every third point stands two or three times, with one label."""
    points, classes = clustered_points(generator)
    twice = np.concatenate([np.arange(90), np.arange(0, 90, 3), [3, 6]])
    return points[twice], classes[twice]


def one_member_class(generator):
    points, classes = random_points(generator)
    classes[classes == CLASSES - 1] = 0
    classes[17] = CLASSES - 1
    return points, classes


POINT_SETS = [
    random_points,
    clustered_points,
    disconnected_points,
    duplicated_points,
    one_member_class,
]


def authors_graph(points, neighbours):
    """Weighted igraph, as `compute_graph_convexity` builds it."""
    import pandas

    distances = authors.cdist(points, points, metric="euclidean")
    nearest, _ = authors.get_nearest_neighbors(
        pandas.DataFrame(distances), neighbours, 1
    )
    matrix = nearest.to_numpy().astype(float)
    return authors.Graph.Weighted_Adjacency(np.maximum(matrix, matrix.T))


@pytest.mark.parametrize("neighbours", [3, 10])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("draw", POINT_SETS)
def test_equal_to_the_authors_pair_by_pair(draw, seed, neighbours):
    """Each pair's score, before any rounding."""
    points, classes = draw(np.random.default_rng(seed))
    graph = neighbour_graph(points, neighbours)
    theirs = authors_graph(points, neighbours)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        pairs = sample_pairs(members, 200, np.random.default_rng(seed))
        expected = []
        for one, other in pairs:
            path = theirs.get_shortest_paths(
                one, to=other, weights=theirs.es["weight"], output="vpath"
            )[0]
            inside = authors.is_path_in_concept(path, members)
            expected.append(inside if path else 0)
        found = path_scores(graph, pairs, classes)
        assert found == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("draw", POINT_SETS[:4])
def test_equal_to_the_authors_in_whole(draw):
    """All pairs, so that nothing is drawn; their result has two decimals."""
    points, classes = draw(np.random.default_rng(5))
    score, of_class = authors.compute_graph_convexity(points, classes)
    found = graph_convexity(points, classes, max_pairs=10**6)
    assert round(100 * found.score, 2) == pytest.approx(score, abs=0.011)
    for label, expected in of_class.items():
        share, _ = found.classes[label]
        assert round(100 * share, 2) == pytest.approx(expected, abs=0.011)


def test_neighbours_of_far_points():
    """Distances by way of squares alone would lose their digits."""
    halves = np.random.default_rng(0).normal(size=(2, 40, 4))
    near = [neighbour_graph(half, 5).toarray() for half in halves]
    halves[1] += 1e7
    found = neighbour_graph(np.concatenate(halves), 5).toarray()
    assert found[:40, :40] == pytest.approx(near[0], abs=1e-6)
    assert found[40:, 40:] == pytest.approx(near[1], abs=1e-6)
    assert not found[:40, 40:].any()


def test_points_that_are_the_same_are_said(monkeypatch):
    """As the authors' package has it, no path joins them."""
    said = []
    monkeypatch.setattr(convexity.logger, "warning_once", said.append)
    points = np.random.default_rng(0).normal(size=(6, 2))
    graph_convexity(points, [0, 1] * 3, neighbours=2)
    assert not said
    twice = graph_convexity(np.repeat(points, 2, 0), np.arange(12) // 2, 1)
    assert twice.score == 0.0
    assert "some points are the same" in said[0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_neither_isometry_nor_scaling_matters(seed, scale):
    generator = np.random.default_rng(seed)
    points, classes = clustered_points(generator)
    rotation, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    moved = scale * (points @ rotation + generator.normal(size=6))
    one = graph_convexity(points, classes, neighbours=5)
    other = graph_convexity(moved, classes, neighbours=5)
    assert other.score == pytest.approx(one.score, abs=1e-12)


def test_separate_clusters_are_convex():
    generator = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), 30)
    points = generator.normal(size=(90, 5)) + 100 * classes[:, None]
    found = graph_convexity(points, classes)
    assert (found.score, found.error) == (1.0, 0.0)
    assert found.classes == {0: (1.0, 0.0), 1: (1.0, 0.0), 2: (1.0, 0.0)}


def test_a_class_around_another_is_less_convex():
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ball = np.random.default_rng(0).normal(size=(80, 2))
    labels = ["ring"] * 40 + ["ball"] * 80
    found = graph_convexity(np.concatenate([ring, ball]), labels)
    assert found.classes["ring"][0] < 0.7 < found.classes["ball"][0]


def test_the_seed_draws():
    points, classes = clustered_points(np.random.default_rng(0))
    one, again, other = (
        graph_convexity(points, classes, max_pairs=50, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_pairs_are_uniform_and_different():
    members = np.array([4, 7, 9, 12])
    pairs = sample_pairs(members, 6, np.random.default_rng(0))
    assert len(set(map(tuple, pairs.tolist()))) == 6
    assert np.isin(pairs, members).all() and (pairs[:, 0] != pairs[:, 1]).all()
    every = sample_pairs(members, 12, np.random.default_rng(0))
    assert len(set(map(tuple, every.tolist()))) == 12


def test_errors_are_those_of_a_mean():
    """Hand-computed: two classes, a line 0 - 1 - 2 - 3 - 4."""
    points = np.arange(5.0)[:, None] ** 1.1
    found = graph_convexity(points, [0, 1, 0, 1, 0], neighbours=1)
    # 0: from end to end 1 of 3 inside, else none; 1: none
    assert found.classes[0][0] == pytest.approx(1 / 9)
    assert found.classes[1] == (0.0, 0.0)
    shares = np.array([0, 1 / 3, 0, 0, 1 / 3, 0])
    assert found.classes[0][1] == pytest.approx(shares.std(ddof=1) / np.sqrt(6))
    mean = 2 / 3 / 8
    parts = [(2 / 3 - 6 * mean) / 8, -2 * mean / 8]
    assert found.score == pytest.approx(mean)
    assert found.error == pytest.approx(np.sqrt(2 * np.square(parts).sum()))


def test_one_member_has_no_score():
    points, classes = one_member_class(np.random.default_rng(0))
    found = graph_convexity(points, classes)
    assert np.isnan(found.classes[CLASSES - 1]).all()
    assert found.score == pytest.approx(
        np.average(
            [found.classes[c][0] for c in range(CLASSES - 1)],
            weights=[
                min((classes == c).sum() * ((classes == c).sum() - 1), 5000)
                for c in range(CLASSES - 1)
            ],
        )
    )


def test_labels_of_any_kind():
    """1 and "1" are two classes; order and type do not matter."""
    points = np.random.default_rng(0).normal(size=(30, 3))
    names = ["a", 1, "1"] * 10
    found = graph_convexity(points, names, neighbours=3, max_pairs=10**6)
    coded = np.array([0, 1, 2] * 10)
    same = graph_convexity(points, coded, neighbours=3, max_pairs=10**6)
    assert found.score == pytest.approx(same.score)
    for name, code in zip(names[:3], range(3)):
        assert found.classes[name] == pytest.approx(same.classes[code])


def test_no_path_scores_nothing():
    graph = csr_array((3, 3))
    found = path_scores(graph, np.array([[0, 1]]), np.array([0, 0, 1]))
    assert found.tolist() == [0.0]


POINTS = np.random.default_rng(0).normal(size=(12, 3))
HALVES = [0, 1] * 6


@pytest.mark.parametrize(
    "points, labels, neighbours, message",
    [
        (POINTS, [0] * 12, 3, r"labels: \[0\] alone"),
        (POINTS, HALVES, 12, "neighbours: 12 of 12 points; write at least"),
        (POINTS, HALVES, 0, "neighbours: 0 of 12 points"),
        (POINTS * np.nan, HALVES, 3, "number 0 has values that are not fin"),
        (POINTS, range(12), 3, "labels: every class has one point"),
        (POINTS, HALVES[:5], 3, r"\(12, 3\) beside 5 labels"),
        (POINTS[:, 0], HALVES, 3, r"\(12,\) beside 12 labels"),
    ],
)
def test_bad_input(points, labels, neighbours, message):
    with pytest.raises(ValueError, match=message):
        graph_convexity(points, labels, neighbours=neighbours)
