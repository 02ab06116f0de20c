"""Criteria that choose which layers of a stack to remove, before training.

A criterion is called with the hidden states of a labelled sample and returns a
`LayerChoice`. Each criterion is a class that the YAML names:

    criterion: !new:sb_prune.depth.criteria.ConvexityPeak
        neighbours: 10

Legend of the shapes in this file
    L   layers
    n   points: one per utterance, or per labelled segment of an utterance
    d   features
"""

from dataclasses import dataclass, field

import numpy as np

from sb_prune.depth.convexity import graph_convexity
from sb_prune.support.messages import shown
from sb_prune.support.values import Function, Whole, call_named, checked


@dataclass(frozen=True)
class LayerChoice:
    """Which layers a criterion keeps, and the scores that it compared.

    Arguments
    ---------
    keep : list of bool
        (L,) True for a layer that stays.
    scores : list of float
        The scores that were compared; empty if the criterion computes none.
    errors : list of float
        Standard errors of the scores; empty if the criterion computes none.
    """

    keep: list
    scores: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    @property
    def depth(self):
        """Number of layers that stay."""
        return sum(self.keep)


class ConvexityPeak:
    """Keeps the layers up to the one whose output classes are most convex.

    Dorszewski et al., "Convexity-based Pruning of Speech Representation
    Models" (2024, 2408.11858), section 2.4. Of layers with the same score, the
    lowest is the peak. The first score is that of the input of the first
    layer; it is reported but cannot be the peak.

    Arguments
    ---------
    neighbours, max_pairs, seed : int
        Arguments of `graph_convexity`.

    Example
    -------
    >>> generator = np.random.default_rng(0)
    >>> labels = [0, 1] * 20
    >>> mixed, apart = generator.normal(size=(2, 40, 3))
    >>> apart[::2] += 9
    >>> ConvexityPeak(neighbours=5)([mixed, mixed, apart, mixed], labels).keep
    [True, True, False]
    """

    needs_states = needs_labels = True

    @checked
    def __init__(
        self,
        neighbours: Whole(1) = 10,
        max_pairs: Whole(1) = 5000,
        seed: Whole(0) = 0,
    ):
        self.settings = {
            "neighbours": neighbours,
            "max_pairs": max_pairs,
            "seed": seed,
        }

    def __call__(self, states, labels):
        """Scores every layer.

        Arguments
        ---------
        states : list of numpy.ndarray
            L + 1 of (n, d): the input of the first layer, then the output of
            each layer.
        labels : sequence
            (n,) the class of each point.

        Returns
        -------
        LayerChoice
        """
        found = [graph_convexity(s, labels, **self.settings) for s in states]
        scores = [each.score for each in found]
        peak = int(np.argmax(scores[1:]))
        return LayerChoice(
            keep=[layer <= peak for layer in range(len(states) - 1)],
            scores=scores,
            errors=[each.error for each in found],
        )


class SimilarBlock:
    """Removes the block of layers whose input and output are most similar.

    Dorszewski et al., "How Redundant Is the Transformer Stack in Speech
    Representation Models?" (2024, 2409.16302). The first layer always stays.

    Arguments
    ---------
    similarity : callable
        Two arrays (n, d) -> float, higher for more similar ones; for example a
        function of `sb_prune.depth.similarity`.
    removed : int
        Number of consecutive layers to remove.

    Example
    -------
    >>> from sb_prune.depth.similarity import linear_cka
    >>> a, b, c = np.random.default_rng(0).normal(size=(3, 20, 4))
    >>> SimilarBlock(linear_cka, removed=1)([a, b, b, c], None).keep
    [True, False, True]
    """

    needs_states, needs_labels = True, False

    @checked
    def __init__(
        self,
        similarity: Function("sb_prune.depth.linear_cka", given=2),
        removed: Whole(1),
    ):
        self.similarity = similarity
        self.removed = removed

    def __call__(self, states, labels):
        """Compares the input of each block of layers with its output.

        Arguments
        ---------
        states : list of numpy.ndarray
            L + 1 of (n, d): the input of the first layer, then the output of
            each layer.
        labels : object
            Ignored.

        Returns
        -------
        LayerChoice
            With a score for each block, except for the one that would contain
            the first layer.
        """
        layers = len(states) - 1
        _check_left(self.removed, layers)
        scores = [
            self._alike(states, start)
            for start in range(1, layers - self.removed + 1)
        ]
        start = 1 + int(np.argmax(scores))
        block = range(start, start + self.removed)
        return LayerChoice([i not in block for i in range(layers)], scores)

    def _alike(self, states, start):
        ends = states[start], states[start + self.removed]
        found = call_named(self.similarity, "similarity", *ends)
        if np.ndim(found):
            raise ValueError(
                f"similarity: {shown(self.similarity)} gives an array of shape "
                f"{np.shape(found)}; write a function that gives one number, "
                "e.g. !name:sb_prune.depth.linear_cka"
            )
        if not np.isfinite(found):
            raise ValueError(
                f"similarity: {shown(self.similarity)} gives {found} for what "
                f"enters layers {start} to {start + self.removed - 1} (the "
                "first is 0) and what leaves them; write another function, or "
                "a larger sample"
            )
        return float(found)


class RandomLayers:
    """Removes layers at random, as a baseline. The first layer always stays.

    Arguments
    ---------
    removed : int
        Number of layers to remove.
    seed : int
        Seed of the choice.

    Example
    -------
    >>> RandomLayers(removed=2, seed=1)([None] * 7, None).keep
    [True, False, True, True, True, False]
    """

    needs_states = needs_labels = False

    @checked
    def __init__(self, removed: Whole(0), seed: Whole(0) = 0):
        self.removed = removed
        self.seed = seed

    def __call__(self, states, labels):
        """Needs only the number of states, L + 1, and ignores the labels."""
        layers = len(states) - 1
        _check_left(self.removed, layers)
        generator = np.random.default_rng(self.seed)
        gone = 1 + generator.permutation(layers - 1)[: self.removed]
        return LayerChoice([i not in gone for i in range(layers)])


class EvenlySpaced:
    """Keeps layers that are as far apart as can be, the first and last too.

    Of one layer, it is the first.

    Distil-Whisper's decoders start so (Gandhi et al., "Distil-Whisper: Robust
    Knowledge Distillation via Large-Scale Pseudo Labelling", 2023, 2311.00430,
    section 4).

    Arguments
    ---------
    kept : int
        Number of layers to keep.

    Example
    -------
    >>> EvenlySpaced(kept=2)([None] * 5, None).keep
    [True, False, False, True]
    """

    needs_states = needs_labels = False

    @checked
    def __init__(self, kept: Whole(1)):
        self.kept = kept

    def __call__(self, states, labels):
        """Needs only the number of states, L + 1, and ignores the labels."""
        layers = len(states) - 1
        if self.kept > layers:
            raise ValueError(f"kept: {self.kept}; there are {layers} layers")
        stay = np.linspace(0, layers - 1, self.kept).round()
        return LayerChoice([i in stay for i in range(layers)])


class LastLayers:
    """Removes the last layers, whatever they compute.

    Arguments
    ---------
    removed : int
        Number of layers to remove.

    Example
    -------
    >>> LastLayers(removed=2)([None] * 5, None).keep
    [True, True, False, False]
    """

    needs_states = needs_labels = False

    @checked
    def __init__(self, removed: Whole(0)):
        self.removed = removed

    def __call__(self, states, labels):
        """Needs only the number of states, L + 1, and ignores the labels."""
        layers = len(states) - 1
        _check_left(self.removed, layers)
        return LayerChoice([i < layers - self.removed for i in range(layers)])


def _check_left(removed, layers):
    if removed >= layers:
        raise ValueError(
            f"removed: {removed} of {layers} layers; keep at least one"
        )
