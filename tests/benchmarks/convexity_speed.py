"""Graph convexity beside the package of the method's authors.

    python tests/benchmarks/convexity_speed.py [--full]

Points of 768 features in 10 classes that overlap, 10 neighbours, 5,000 pairs
a class; 2,000 points in turns with `nnconvexity` (500 without `--full`), one
thread both. `max_abs_diff` is over all pairs of a smaller set, where nothing is
drawn: scores of classes before either rounds. `seconds` shows how the time
grows with the points, `peak_gigabytes` what the process held at most.
"""

import resource
from statistics import median
from time import perf_counter

import numpy as np
from common import run
from nnconvexity import graph as authors

from sb_prune.depth.convexity import graph_convexity

FEATURES, CLASSES = 768, 10


def draw(n):
    """(n, d) points and their labels."""
    generator = np.random.default_rng(n)
    labels = generator.integers(0, CLASSES, n)
    centres = 0.25 * generator.normal(size=(CLASSES, FEATURES))
    points = centres[labels] + generator.normal(size=(n, FEATURES))
    return points, labels


def seconds(function, *arguments):
    """How long a call takes."""
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def difference(n, pairs=10**6):
    """Between the scores of classes, all pairs; theirs not rounded."""
    points, labels = draw(n)
    stock = authors.__dict__.get("round")
    authors.round = lambda value, digits: value
    try:
        score, classes = authors.compute_graph_convexity(
            points, labels, max_n_paths=pairs
        )
    finally:
        if stock is None:
            del authors.round
    found = graph_convexity(points, labels, max_pairs=pairs)
    differences = [abs(found.score - score / 100)]
    for label, theirs in classes.items():
        differences.append(abs(found.classes[label][0] - theirs / 100))
    return max(differences)


def measure(full):
    """Difference, speed-up, and growth with the number of points."""
    points, labels = draw(2000 if full else 500)
    times = {graph_convexity: [], authors.compute_graph_convexity: []}
    for _ in range(3 if full else 1):
        for function, taken in times.items():
            taken.append(seconds(function, points, labels))
    ours, theirs = (median(taken) for taken in times.values())
    sizes = (2000, 5000, 10000, 20000) if full else (500, 1000)
    growth = {n: round(seconds(graph_convexity, *draw(n)), 1) for n in sizes}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    return {
        "max_abs_diff": difference(300 if full else 100),
        "speedup": round(theirs / ours, 1),
        "speedups": [round(b / a, 1) for a, b in zip(*times.values())],
        "seconds": growth,
        "seconds_at_20000": growth.get(20000),
        "peak_gigabytes": round(peak / 1e6, 2),
    }


if __name__ == "__main__":
    run(measure)
