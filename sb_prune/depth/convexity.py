"""Graph convexity: how convex the region of each class is in a latent space.

Every point is joined to its nearest neighbours. A class is convex to the degree
that the shortest paths between its points pass through points of the same
class only.

The measure is from Tetkova et al., "On convex decision regions in deep network
representations" (Nature Communications 16, 5419, 2025). Dorszewski et al.,
"Convexity-based Pruning of Speech Representation Models" (2024, 2408.11858)
remove the layers above the one where it is highest.

Legend of the shapes in this file
    n       points
    d       features of a point
    pairs   ordered pairs of points of one class
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)
BLOCK = 1 << 24  # largest number of float64 values in a block of distances
NO_PREDECESSOR = -9999  # what SciPy writes where a point cannot be reached


@dataclass(frozen=True)
class Convexity:
    """Graph convexity over all classes and of each class.

    Arguments
    ---------
    score : float
        Mean over the pairs of all classes, in [0, 1].
    error : float
        Standard error of the score. The pairs of one class share points and
        are not independent, so this is the standard error of a mean over
        clusters, with classes as the clusters. If only one class has pairs, it
        is the standard error over these.
    classes : dict
        Label -> (score, standard error over its pairs); both are NaN for a
        class without pairs.
    """

    score: float
    error: float
    classes: dict


def graph_convexity(points, labels, neighbours=10, max_pairs=5000, seed=0):
    """Measures how convex the classes of labelled points are.

    Points that are the same, as of utterances that the data have twice, lower
    the score (see `neighbour_graph`).

    Arguments
    ---------
    points : numpy.ndarray
        (n, d)
    labels : sequence
        (n,) the class of each point.
    neighbours : int
        Number of nearest neighbours to which each point is joined.
    max_pairs : int
        Number of ordered pairs sampled from each class; a class with fewer
        pairs is used as a whole.
    seed : int
        Seed of the sampling.

    Returns
    -------
    Convexity

    Raises
    ------
    ValueError
        If there is only one class, there are too few points, a value is not
        finite, or every class has a single point.

    Example
    -------
    >>> generator = np.random.default_rng(0)
    >>> points = generator.normal(size=(40, 3))
    >>> points[20:] += 100  # far away
    >>> graph_convexity(points, ["a"] * 20 + ["b"] * 20, neighbours=5).score
    1.0
    """
    names, classes = _coded(labels)
    points = np.asarray(points, dtype=np.float64)
    _check(points, classes, names, neighbours)
    graph = neighbour_graph(points, neighbours)
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(classes == c) for c in range(len(names))]
    pairs = [sample_pairs(m, max_pairs, generator) for m in members]
    scores = path_scores(graph, np.concatenate(pairs), classes)
    of_class = np.split(scores, np.cumsum([len(p) for p in pairs])[:-1])
    if not len(scores):
        raise ValueError(
            "labels: every class has one point; no two to draw a path between"
        )
    return Convexity(
        score=float(scores.mean()),
        error=_error_of_clusters(of_class),
        classes={
            name: (_mean(each), _error(each))
            for name, each in zip(names, of_class)
        },
    )


def _coded(labels):
    """Returns the sorted labels, and for each point the index of its label.

    Labels of different types are sorted by type first.
    """
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    names = sorted(set(labels), key=lambda x: (type(x).__name__, x))
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places[label] for label in labels])


def _check(points, classes, names, neighbours):
    if points.ndim != 2 or len(points) != len(classes):
        raise ValueError(
            f"points: {points.shape} beside {len(classes)} labels; give (n, d) "
            "points and n labels"
        )
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
        raise ValueError(f"points: number {row} has values that are not finite")
    if len(names) < 2:
        raise ValueError(
            f"labels: {names} alone; any one class is convex, give two or more"
        )
    if not 1 <= neighbours < len(points):
        raise ValueError(
            f"neighbours: {neighbours} of {len(points)} points; write at least "
            "1, and fewer than there are points"
        )


# -------------------------------------------------------------------- graph


def neighbour_graph(points, neighbours):
    """Joins each point to its nearest neighbours.

    Two points are joined if either is among the neighbours of the other (the
    graph is symmetrised by maximum). The weight of an edge is the Euclidean
    distance. Points at the same position count as neighbours of each other but
    are not joined: the package of the measure's authors takes a length of 0 for
    no edge, and their figures are to be had here. The log says where there are
    such points.

    Arguments
    ---------
    points : numpy.ndarray
        (n, d), float64.
    neighbours : int
        Number of neighbours of each point.

    Returns
    -------
    scipy.sparse.csr_array
        (n, n), symmetric.
    """
    rows, columns, lengths = nearest(points, neighbours + 1)  # and itself
    joined = lengths > 0
    if (lengths[rows != columns] == 0).any():
        logger.warning_once(
            "convexity: some points are the same, and no path joins them, "
            "which lowers the score; leave out what the data have twice"
        )
    directed = csr_array(
        (lengths[joined], (rows[joined], columns[joined])),
        shape=(len(points), len(points)),
    )
    return directed.maximum(directed.T).tocsr()


def nearest(points, count):
    """Finds the nearest neighbours of each point, the point itself included.

    Of points at the same distance, those with the lower index are taken.

    Arguments
    ---------
    points : numpy.ndarray
        (n, d), float64.
    count : int
        How many points to find for each, at most n.

    Returns
    -------
    rows, columns : numpy.ndarray
        (n * count,) int: the points in order, and the neighbours of each from
        the nearest to the farthest.
    lengths : numpy.ndarray
        (n * count,) Euclidean distances between the two.
    """
    # |a - b|^2 = |a|^2 - 2 ab + |b|^2 is fast, but loses digits where points
    # are far from the origin: so they are centred, and all candidates within
    # the rounding error are compared by their exact distances
    centred = points - points.mean(0)
    squares = np.einsum("nd,nd->n", centred, centred)
    slack = 2e-11 * squares.max(initial=0.0)  # exceeds the rounding error
    found = []
    step = max(1, BLOCK // len(points))
    for start in range(0, len(points), step):
        block = slice(start, start + step)
        near = centred[block] @ centred.T
        near *= -2
        near += squares
        near += squares[block, None]
        last = np.partition(near, count - 1, axis=1)[:, count - 1, None]
        rows, columns = np.nonzero(near <= last + slack)
        del near  # the largest array; the next one is as large
        rows += start
        lengths = _lengths(points, rows, columns)
        order = np.lexsort((columns, lengths, rows))
        rows, columns, lengths = rows[order], columns[order], lengths[order]
        begin = np.searchsorted(rows, rows)  # first entry of the same row
        chosen = np.arange(len(rows)) - begin < count
        found.append((rows[chosen], columns[chosen], lengths[chosen]))
    return tuple(map(np.concatenate, zip(*found)))


def _lengths(points, rows, columns):
    """Distances of pairs of points, computed from their differences."""
    lengths = np.empty(len(rows))
    step = max(1, BLOCK // 4 // points.shape[1])
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        difference = points[rows[block]] - points[columns[block]]
        lengths[block] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return lengths


# -------------------------------------------------------------------- paths


def sample_pairs(members, count, generator):
    """Samples ordered pairs of different points, without replacement.

    Arguments
    ---------
    members : numpy.ndarray
        (m,) int, the points of one class.
    count : int
        Number of pairs; if there are no more than that, all m (m - 1).
    generator : numpy.random.Generator

    Returns
    -------
    numpy.ndarray
        (pairs, 2) int

    Example
    -------
    >>> pairs = sample_pairs(np.array([3, 5]), 9, np.random.default_rng(0))
    >>> pairs.tolist()
    [[3, 5], [5, 3]]
    """
    m = len(members)
    total = m * (m - 1)
    if total <= count:
        drawn = np.arange(total)
    else:
        drawn = generator.choice(total, count, replace=False)
    first, second = np.divmod(drawn, max(m - 1, 1))
    second += second >= first  # no point is paired with itself
    return np.stack([members[first], members[second]], axis=1)


def path_scores(graph, pairs, classes):
    """Scores pairs by the shortest path that joins them.

    The score is the fraction of the points between the two ends that belong to
    the class of the ends.

    Arguments
    ---------
    graph : scipy.sparse.csr_array
        (n, n), symmetric; its values are lengths.
    pairs : numpy.ndarray
        (pairs, 2) int, two points of one class each.
    classes : numpy.ndarray
        (n,) int, the class of each point.

    Returns
    -------
    numpy.ndarray
        (pairs,) in [0, 1]; 1 if an edge joins the two, 0 if no path does.

    Example
    -------
    >>> line = csr_array(np.diag([1.0, 1.0, 1.0], k=1))  # 0 - 1 - 2 - 3
    >>> path_scores(line + line.T, np.array([[0, 3]]), np.array([0, 1, 0, 0]))
    array([0.5])
    """
    scores = np.empty(len(pairs))
    sources, which = np.unique(pairs[:, 0], return_inverse=True)
    step = max(1, BLOCK // 4 // graph.shape[0])
    for start in range(0, len(sources), step):
        block = np.flatnonzero((which >= start) & (which < start + step))
        if not len(block):
            continue
        _, before = dijkstra(
            graph,
            indices=sources[start : start + step],
            return_predecessors=True,
        )
        scores[block] = _walk_back(
            before, which[block] - start, pairs[block], classes
        )
    return scores


def _walk_back(before, rows, pairs, classes):
    """Follows all paths at once, each from its end back to its beginning.

    Arguments
    ---------
    before : numpy.ndarray
        (sources, n) the point before each on the shortest path from a source.
    rows : numpy.ndarray
        (pairs,) row of `before` that belongs to the beginning of each path.
    pairs, classes : numpy.ndarray
        As in `path_scores`.

    Returns
    -------
    numpy.ndarray
        (pairs,) scores.
    """
    begin, end = pairs.T
    inside = np.zeros(len(pairs))
    between = np.zeros(len(pairs))
    here = before[rows, end]
    reached = here != NO_PREDECESSOR
    walking = np.flatnonzero(reached & (here != begin))
    while len(walking):
        at = here[walking]
        inside[walking] += classes[at] == classes[begin[walking]]
        between[walking] += 1
        here[walking] = before[rows[walking], at]
        walking = walking[here[walking] != begin[walking]]
    fractions = np.divide(
        inside, between, where=between > 0, out=np.ones_like(inside)
    )
    return np.where(reached, fractions, 0.0)


# --------------------------------------------------------------- statistics


def _mean(scores):
    return float(scores.mean()) if len(scores) else float("nan")


def _error(scores):
    """Standard error of the mean of some scores."""
    if len(scores) < 2:
        return float("nan")
    return float(scores.std(ddof=1) / np.sqrt(len(scores)))


def _error_of_clusters(of_class):
    """Standard error of the mean over all pairs, with classes as clusters."""
    of_class = [scores for scores in of_class if len(scores)]
    if len(of_class) < 2:
        return _error(of_class[0])
    mean = np.concatenate(of_class).mean()
    total = sum(map(len, of_class))
    parts = np.array([(scores - mean).sum() / total for scores in of_class])
    count = len(of_class)
    return float(np.sqrt(count / (count - 1) * (parts**2).sum()))
