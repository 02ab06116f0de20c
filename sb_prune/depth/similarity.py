"""How similar the representations of the same points in two layers are.

The measures of Dorszewski et al., "How Redundant Is the Transformer Stack in
Speech Representation Models?" (2024, 2409.16302).

Shapes: n points, d features.
"""

import numpy as np

from sb_prune.depth.convexity import nearest


def cosine_similarity(one, other):
    """Mean cosine similarity between the two representations of each point.

    Arguments
    ---------
    one, other : numpy.ndarray
        (n, d)

    Returns
    -------
    float
        In [-1, 1].

    Example
    -------
    >>> points = np.random.default_rng(0).normal(size=(9, 3))
    >>> round(cosine_similarity(points, 2 * points), 6)
    1.0
    """
    one, other = (np.asarray(x, dtype=np.float64) for x in (one, other))
    products = np.einsum("nd,nd->n", one, other)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float((products / np.maximum(lengths, 1e-300)).mean())


def linear_cka(one, other):
    """Linear centred kernel alignment.

    Kornblith et al., "Similarity of Neural Network Representations Revisited"
    (ICML 2019), section 3.3. Computed from the (d, d) matrices of the features
    instead of the (n, n) matrices of the points, with the same result.

    Arguments
    ---------
    one, other : numpy.ndarray
        (n, d); the two may have different numbers of features.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If there is one point alone.

    Example
    -------
    >>> points = np.random.default_rng(0).normal(size=(9, 3))
    >>> round(linear_cka(points, 2 * points[:, ::-1] + 1), 6)
    1.0
    """
    if len(one) < 2:
        raise ValueError(f"{len(one)} point says nothing; give at least 2")
    one, other = (np.asarray(x, dtype=np.float64) for x in (one, other))
    one, other = one - one.mean(0), other - other.mean(0)
    between = np.linalg.norm(one.T @ other) ** 2
    within = np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)
    return float(between / max(within, 1e-300))


def mutual_neighbours(one, other, neighbours=10):
    """Mean fraction of a point's nearest neighbours that both layers share.

    Arguments
    ---------
    one, other : numpy.ndarray
        (n, d)
    neighbours : int
        Number of nearest neighbours of each point.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If there are too few points.

    Example
    -------
    >>> points = np.random.default_rng(0).normal(size=(9, 3))
    >>> mutual_neighbours(points, 2 * points + 1, neighbours=3)
    1.0
    """
    if not 1 <= neighbours < len(one):
        raise ValueError(
            f"neighbours: {neighbours} of {len(one)} points; write at least "
            "1, and fewer than there are points"
        )
    pairs = [_neighbour_pairs(points, neighbours) for points in (one, other)]
    both = np.intersect1d(*pairs, assume_unique=True)
    return len(both) / (neighbours * len(one))


def _neighbour_pairs(points, neighbours):
    """(n * neighbours,) int, one number for each (point, neighbour) pair."""
    points = np.asarray(points, dtype=np.float64)
    rows, columns, _ = nearest(points, neighbours + 1)
    dropped = (rows == columns).reshape(len(points), -1)
    # a point with many duplicates may be missing among its own nearest
    dropped[~dropped.any(1), -1] = True
    kept = ~dropped.ravel()
    return rows[kept] * len(points) + columns[kept]
