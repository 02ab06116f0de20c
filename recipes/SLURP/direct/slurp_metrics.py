"""Accuracies and SLU-F1 as the authors of SLURP define them.

Bastianelli et al., "SLURP: A Spoken Language Understanding Resource Package"
(EMNLP 2020), and the evaluation tool published with it. An entity counts as
found when its type is there; how far its words are off adds to the false
positives and to the false negatives. SLU-F1 sums the counts of two such
distances, one in words and one in characters.
"""

import json
from dataclasses import dataclass

from slurp_prepare import parse_semantics

NO_ANSWER = {"scenario": "none", "action": "none", "entities": []}


@dataclass(frozen=True)
class Counts:
    """True positives, false positives and false negatives; can be added.

    Arguments
    ---------
    found, wrong, missed : float
        In that order.

    Example
    -------
    >>> (Counts(1, 0.5, 0.5) + Counts(1, 0, 1)).f1
    0.666...
    """

    found: float = 0
    wrong: float = 0
    missed: float = 0

    def __add__(self, other):
        return Counts(
            self.found + other.found,
            self.wrong + other.wrong,
            self.missed + other.missed,
        )

    @property
    def f1(self):
        """The harmonic mean of precision and recall, 0 where neither is."""
        if not self.found:
            return 0.0
        return 2 * self.found / (2 * self.found + self.wrong + self.missed)


def edit_distance(first, second):
    """Insertions, deletions and substitutions between two sequences.

    Arguments
    ---------
    first, second : sequence
        Of words, or of characters.

    Returns
    -------
    int

    Example
    -------
    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            change = diagonal + (a != b)
            diagonal = row[j]
            row[j] = min(change, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def word_distance(gold, predicted):
    """Word error rate of a filler; above 1 where it is much too long.

    Arguments
    ---------
    gold, predicted : str
        Fillers of entities; `gold` has at least one word.

    Returns
    -------
    float

    Example
    -------
    >>> word_distance("seven am", "seven pm")
    0.5
    """
    words = gold.split()
    return edit_distance(words, predicted.split()) / len(words)


def char_distance(gold, predicted):
    """Edit distance of two fillers by the length of the longer one.

    Arguments
    ---------
    gold, predicted : str
        Fillers of entities, not both empty.

    Returns
    -------
    float
        In [0, 1].

    Example
    -------
    >>> char_distance("seven am", "seven pm")
    0.125
    """
    return edit_distance(gold, predicted) / max(len(gold), len(predicted))


def compare_entities(gold, predicted, distance):
    """Pairs entities of the same type, the nearest first.

    Predictions choose in their order, each the nearest gold entity that is
    left.

    Arguments
    ---------
    gold, predicted : list of dict
        Entities with `type` and `filler`.
    distance : callable
        (gold filler, predicted filler) -> float.

    Returns
    -------
    Counts

    Example
    -------
    >>> gold = [{"type": "time", "filler": "seven am"}]
    >>> predicted = [{"type": "time", "filler": "seven pm"}]
    >>> compare_entities(gold, predicted, word_distance)
    Counts(found=1, wrong=0.5, missed=0.5)
    """
    left = list(gold)
    counts = Counts()
    for entity in predicted:
        rivals = [
            (distance(other["filler"], entity["filler"]), i)
            for i, other in enumerate(left)
            if other["type"] == entity["type"]
        ]
        if rivals:
            off, nearest = min(rivals)
            counts += Counts(1, off, off)
            del left[nearest]
        else:
            counts += Counts(wrong=1)
    return counts + Counts(missed=len(left))


class SLUStats:
    """Collects predictions, for `summarize` and for SLURP's own tool.

    Example
    -------
    >>> stats = SLUStats()
    >>> stats.append(["a.flac"], ["play music"], ["play radio"])
    >>> stats.summarize()["scenario_accuracy"]
    100.0
    """

    def __init__(self):
        self.predicted = {}
        self.gold = {}
        self.malformed = 0

    def append(self, ids, predict, target):
        """Adds a batch.

        Arguments
        ---------
        ids : list of str
            Names of the audio files.
        predict : list of str
            What the decoder wrote. What is no semantics is an answer of
            "none".
        target : list of str
            Semantics.
        """
        for name, text, truth in zip(ids, predict, target):
            try:
                self.predicted[name] = parse_semantics(text)
            except ValueError:
                self.predicted[name] = NO_ANSWER
                self.malformed += 1
            self.gold[name] = parse_semantics(truth)

    def summarize(self):
        """Figures of all batches together.

        Returns
        -------
        dict
            Name -> per cent: accuracy of scenario, action and intent (both);
            F1 of entities by words, by characters and by both (SLU_F1); and
            how many outputs were no semantics.
        """
        pairs = [
            (gold, self.predicted[name]) for name, gold in self.gold.items()
        ]
        word, char = (
            sum(
                (
                    compare_entities(g["entities"], p["entities"], distance)
                    for g, p in pairs
                ),
                start=Counts(),
            )
            for distance in (word_distance, char_distance)
        )
        return {
            "scenario_accuracy": _accuracy(pairs, "scenario"),
            "action_accuracy": _accuracy(pairs, "action"),
            "intent_accuracy": _accuracy(pairs, "scenario", "action"),
            "word_F1": 100 * word.f1,
            "char_F1": 100 * char.f1,
            "SLU_F1": 100 * (word + char).f1,
            "malformed": 100 * self.malformed / len(pairs),
        }

    def write_predictions(self, path):
        """Writes the jsonl file that SLURP's evaluation tool reads.

        Arguments
        ---------
        path : str
            The file to write.
        """
        with open(path, "w", encoding="utf-8") as fout:
            for name, semantics in self.predicted.items():
                fout.write(json.dumps({"file": name, **semantics}) + "\n")


def _accuracy(pairs, *fields):
    """Per cent of the pairs that agree in all fields."""
    right = sum(all(g[f] == p[f] for f in fields) for g, p in pairs)
    return 100 * right / len(pairs)
