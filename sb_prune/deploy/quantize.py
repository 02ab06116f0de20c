"""Chooses what of a deployed model runs in 8-bit integers.

If all matrix products together stay below a limit, all become integer ones.
Otherwise each is tried alone: how far do the scores of the model move on
calibration audio, by the KL divergence from those in float32? Then those that
move the scores least become integer ones; how many may, is found by bisection.
The limit is of that divergence, or of the word error rate.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy

from sb_prune.deploy.integers import Graph
from sb_prune.deploy.runtime.search import log_softmax
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.support.words import normaliser, word_errors

MAX_KL = 0.01  # nats


@dataclass(frozen=True)
class Choice:
    """What became integers, and what that costs.

    Arguments
    ---------
    integers, floats : list of str
        Matrix products, those that move the scores least first.
    alone : dict
        Name -> KL divergence in nats when it alone is in integers; empty if
        all are.
    cost : float
        Of all together, in the unit of the limit.
    is_allowed : bool
        False if even without integers the cost is above the limit, as weights
        in 16 bits may be.
    """

    integers: list
    floats: list
    alone: dict
    cost: float
    is_allowed: bool = True


class Quantizer:
    """Tries matrix products of a deployed model in integers.

    Arguments
    ---------
    asr : OnnxASR
        Its graphs are replaced by those that are tried.
    folder : Path
        Where its files are.
    wavs : list of numpy.ndarray
        (samples,) calibration audio, each as long as the model can hear.
    labelled : list of (numpy.ndarray, str), optional
        (samples,) audio and its transcript.
    half : bool
        Whether weights that stay floats have 16 bits.
    static : bool
        Whether activations have the scales of the calibration audio, in place
        of new ones in each call. Every other utterance then gives the scales,
        and the rest says what they cost.

    Attributes
    ----------
    words_before : float
        Word error rate, in %, before anything is in integers; 0 if nothing is
        labelled.

    Raises
    ------
    DeployError
        If there is no audio, or a graph is larger than 2 GB.
    """

    def __init__(
        self, asr, folder, wavs, labelled=(), half=False, static=False
    ):
        if not wavs:
            raise DeployError("--quantize: there is no calibration audio")
        # within the scales that it gave itself, nothing is clipped
        scoring = (wavs[1::2] or wavs) if static else wavs
        self._model = asr.model
        self._graphs = {
            name: Graph(folder / name, half) for name in self._model.graphs
        }
        self._taken = dict.fromkeys(self._graphs)  # nothing is tried yet
        self._labelled = labelled
        self._heard = [self._transcribed(wav) for wav in scoring]
        self._scores = self._scores_now(self._heard)
        self.words_before = word_error_rate(self._model, labelled)
        if static:
            self._calibrate_([self._transcribed(wav) for wav in wavs[::2]])

    def _transcribed(self, wav):
        wavs, one = wav[None], numpy.ones(1, numpy.float32)
        return wavs, one, self._model.tokens(wavs, one)

    def choose(self, max_kl=MAX_KL, max_wer_loss=None):
        """Finds products that a limit allows; by bisection, how many.

        Arguments
        ---------
        max_kl : float
            KL divergence in nats at most, a mean over frames or tokens; of a
            model with both, each mean counts.
        max_wer_loss : float, optional
            In place of that, points of the word error rate on what is
            labelled.

        Returns
        -------
        Choice
        """
        cost, most = self._divergence, max_kl
        if max_wer_loss is not None:
            cost, most = self._lost_words(), max_wer_loss
        keys = [
            (file, name)
            for file, graph in self._graphs.items()
            for name in graph.products()
        ]
        alone, fits, found = {}, len(keys), cost(keys)
        if not found <= most:
            over, fits = fits, 0
            found = cost(())  # weights of 16 bits cost something, too
            if not found <= most:
                names = [_shown(*key) for key in keys]
                return Choice([], names, {}, found, is_allowed=False)
            alone = {key: self._divergence([key]) for key in keys}
            keys = sorted(keys, key=alone.get)
            while over - fits > 1:
                middle = (fits + over) // 2
                costs = cost(keys[:middle])
                if costs <= most:
                    fits, found = middle, costs
                else:
                    over = middle
        names = [_shown(*key) for key in keys]
        return Choice(
            names[:fits],
            names[fits:],
            {_shown(*key): value for key, value in alone.items()},
            found,
        )

    def write(self, folder, integers):
        """Writes graphs, some of whose products are in integers.

        Arguments
        ---------
        folder : Path
        integers : list of str
            As `Choice` has them.
        """
        for file, graph in self._graphs.items():
            named = {n for n in graph.products() if _shown(file, n) in integers}
            graph.write(named, folder / file)

    def _calibrate_(self, heard):
        """Finds the ranges that all activations have on some audio."""
        for file, graph in self._graphs.items():
            before = self._model.sessions[file]
            with _naming_the_option():
                watched, names = graph.watched()
            self._model.load_(file, watched)
            session = self._model.sessions[file]
            watch = _Watch(session, names, graph.ranges)
            self._model.sessions[file] = watch
            self._scores_now(heard)
            self._model.sessions[file] = before

    def _divergence(self, keys):
        """KL divergence, in nats, with these products in integers."""
        self._take_(keys)
        pairs = zip(self._scores, self._scores_now(self._heard))
        return max(kl_divergence(*pair) for pair in pairs)

    def _scores_now(self, heard):
        """Those of the decoder and of CTC apart, or of one alone."""
        found = [self._model.scores_along(*each) for each in heard]
        return [numpy.concatenate(each) for each in zip(*found)]

    def _lost_words(self):
        """Function: products -> points of word error rate that they cost."""

        def cost(keys):
            self._take_(keys)
            found = word_error_rate(self._model, self._labelled)
            return found - self.words_before

        return cost

    def _take_(self, keys):
        """Loads graphs with these products in integers."""
        for file, graph in self._graphs.items():
            named = frozenset(name for other, name in keys if other == file)
            if self._taken[file] != named:
                with _naming_the_option():
                    converted = graph.with_integers(named)
                self._model.load_(file, converted)
                self._taken[file] = named


@contextmanager
def _naming_the_option():
    try:
        yield
    except ValueError as error:
        raise DeployError(f"--quantize: {error}") from error


class _Watch:
    """A session that keeps the ranges of its last outputs to itself."""

    def __init__(self, session, names, ranges):
        self._session, self._names, self._ranges = session, names, ranges
        self.get_inputs = session.get_inputs

    def run(self, outputs, feed):
        found = self._session.run(outputs, feed)
        own = len(found) - len(self._names)
        for name, array in zip(self._names, found[own:]):
            if array.size:
                low, high = self._ranges.get(name, (numpy.inf, -numpy.inf))
                low, high = min(low, array.min()), max(high, array.max())
                self._ranges[name] = (float(low), float(high))
        return found[:own]


def _shown(file, name):
    return f"{file.removesuffix('.onnx')}: {name}"


def words_compared(model):
    """The `normaliser` for what a deployed model writes."""
    return normaliser(getattr(model, "language", None))


def word_error_rate(model, labelled):
    """Word error rate of a deployed model, as it is now.

    Arguments
    ---------
    model : sb_prune.deploy.runtime.kinds.Kind
    labelled : list of (numpy.ndarray, str)
        (samples,) audio and its transcript.

    Returns
    -------
    float
        In %; 0 if nothing is labelled.

    Raises
    ------
    DeployError
        If no transcript has a word.
    """
    if not labelled:
        return 0.0
    words_of, _ = words_compared(model)
    counts = [
        word_errors(words_of(words), words_of(model.long(wav)))
        for wav, words in labelled
    ]
    errors, count = numpy.sum(counts, axis=0)
    if not count:
        raise DeployError("--labels: no transcript has a word")
    return 100 * errors / count


def kl_divergence(scores, others):
    """KL divergence of distributions from others.

    Arguments
    ---------
    scores, others : numpy.ndarray
        (N, V) logits or log-probabilities.

    Returns
    -------
    float
        In nats, a mean over N.

    Example
    -------
    >>> even = numpy.zeros((1, 2))
    >>> round(kl_divergence(even, numpy.log([[0.25, 0.75]])), 4)
    0.1438
    """
    both = (scores.astype(numpy.float64), others.astype(numpy.float64))
    ours, theirs = map(log_softmax, both)
    apart = numpy.where(ours > -numpy.inf, ours - theirs, 0)
    return float((numpy.exp(ours) * apart).sum(-1).mean())
