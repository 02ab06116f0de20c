"""Which layers to keep: criteria, and the hidden states they compare."""

from sb_prune.depth.convexity import graph_convexity
from sb_prune.depth.criteria import (
    ConvexityPeak,
    EvenlySpaced,
    LastLayers,
    LayerChoice,
    RandomLayers,
    SimilarBlock,
)
from sb_prune.depth.representations import max_over_time, mean_over_time
from sb_prune.depth.similarity import (
    cosine_similarity,
    linear_cka,
    mutual_neighbours,
)

__all__ = [
    "ConvexityPeak",
    "EvenlySpaced",
    "LastLayers",
    "LayerChoice",
    "RandomLayers",
    "SimilarBlock",
    "cosine_similarity",
    "graph_convexity",
    "linear_cka",
    "max_over_time",
    "mean_over_time",
    "mutual_neighbours",
]
