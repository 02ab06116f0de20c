"""Beam search of SpeechBrain, with numpy alone.

Shapes: B batch, N hypotheses of the whole batch (B x beam), T frames, V tokens
in the vocabulary.
"""

import numpy

NEVER = -1e20  # log-probability of what shall not be


class PrefixScores:
    """How probable CTC finds each hypothesis with each token added to it.

    What `speechbrain.decoders.scorer.CTCScorer` adds to a beam search:
    algorithm 2 of Watanabe et al., "Hybrid CTC/Attention Architecture for
    End-to-End Speech Recognition" (2017). All tokens are scored by a matrix
    product over frames; the recursion over frames is left to those that stay.

    Arguments
    ---------
    scores : numpy.ndarray
        (B, T, V) log-probabilities of CTC. It is changed.
    frames : numpy.ndarray
        (B,) int, of which are no padding.
    beam : int
        Hypotheses of an utterance.
    blank, end : int
        Tokens of the blank and the end.
    weight : float
        Of these scores beside those of the decoder.
    candidates : int, optional
        Score only so many tokens of each hypothesis, those that the decoder
        finds most probable.
    """

    def __init__(
        self, scores, frames, beam, blank, end, weight, candidates=None
    ):
        self.weight = weight
        self._blank, self._end, self._candidates = blank, end, candidates
        padding = numpy.arange(scores.shape[1]) >= frames[:, None]
        scores[padding] = NEVER
        scores[padding, 0] = 0  # as SpeechBrain does, whatever the blank is
        self._scores = scores.astype(numpy.float64)
        self._probabilities = numpy.exp(self._scores)
        self._row = numpy.repeat(numpy.arange(len(scores)), beam)  # of each N
        self._last_frame = frames[self._row] - 1
        # (T, N) log-probability of a hypothesis whose last frame is t: with its
        # last token there, or with a blank
        self._blanks = self._scores[self._row, :, blank].T.cumsum(0)
        self._tokens = numpy.full_like(self._blanks, NEVER)
        self._total = numpy.zeros(len(self._row))
        self._length = 0

    def add(self, scores, last):
        """Adds its scores to those of the decoder.

        Arguments
        ---------
        scores : numpy.ndarray
            (N, V)
        last : numpy.ndarray
            (N,) int, last tokens of the hypotheses.

        Returns
        -------
        numpy.ndarray
            (N, V)
        """
        self._last, everyone = last, numpy.arange(len(last))
        either = numpy.logaddexp(self._tokens, self._blanks)
        first = max(1, self._length)  # frame in which a new token can stand
        before = either[first - 1 : -1]
        largest = before.max(0, initial=NEVER)
        batch = len(self._scores)
        shape = batch, len(last) // batch, len(before)
        shares = numpy.exp(before - largest).T.reshape(shape)
        sums = shares @ self._probabilities[:, first:]
        with numpy.errstate(divide="ignore"):
            found = largest[:, None] + numpy.log(sums).reshape(len(last), -1)
        # a token twice is two only with a blank between
        same = self._scores[self._row, first:, last].T
        found[everyone, last] = numpy.logaddexp.reduce(
            self._blanks[first - 1 : -1] + same, axis=0, initial=NEVER
        )
        if not self._length:
            found = numpy.logaddexp(found, self._scores[self._row, 0])
        found = numpy.maximum(found, NEVER)
        if self._candidates is None:
            scores[:, self._blank] = NEVER
        else:
            count = min(self._candidates, scores.shape[1])
            chosen = numpy.argpartition(-scores, count - 1)[:, :count]
            others = numpy.ones(scores.shape, bool)
            numpy.put_along_axis(others, chosen, False, axis=1)
            found[others] = NEVER
        found[:, self._end] = either[self._last_frame, everyone]
        found[:, self._blank] = NEVER
        self._either, self._found = either, found
        return scores + self.weight * (found - self._total[:, None])

    def keep(self, parents, tokens):
        """Goes on with some hypotheses, to each of which a token is added.

        Arguments
        ---------
        parents : numpy.ndarray
            (N,) int, which hypotheses.
        tokens : numpy.ndarray
            (N,) int
        """
        self._total = self._found[parents, tokens]
        before = self._either[:, parents]
        same = tokens == self._last[parents]
        before[:, same] = self._blanks[:, parents[same]]
        said = self._scores[self._row, :, tokens].T
        silent = self._scores[self._row, :, self._blank].T
        ending = numpy.full_like(before, NEVER)
        paused = numpy.full_like(before, NEVER)
        if not self._length:
            ending[0] = said[0]
        for t in range(max(1, self._length), len(before)):
            ending[t] = numpy.logaddexp(ending[t - 1], before[t - 1]) + said[t]
            paused[t] = numpy.logaddexp(ending[t - 1], paused[t - 1])
            paused[t] += silent[t]
        self._tokens, self._blanks = ending, paused
        self._length += 1


def beam_search(
    step,
    keep,
    prompts,
    beam,
    end,
    least,
    most,
    by_length=True,
    threshold=None,
    ctc=None,
):
    """The most probable texts of a few that are followed side by side.

    As `speechbrain.decoders.S2SBeamSearcher`.

    Arguments
    ---------
    step : callable
        (N, L) int64, new tokens -> (N, V) log-probabilities of the next one.
        It remembers the tokens before.
    keep : callable
        (N,) int, which hypotheses the next step goes on with.
    prompts : numpy.ndarray
        (N, L) int64, tokens to begin with; those of an utterance follow each
        other.
    beam : int
        Hypotheses of an utterance.
    end : int
        Token of the end.
    least, most : int
        Tokens at least before the end, and at most.
    by_length : bool
        Compare texts by their log-probability for each token.
    threshold : float, optional
        A text ends only where the log-probability of the end exceeds this
        times that of the most probable token.
    ctc : PrefixScores, optional
        Is added to the scores.

    Returns
    -------
    list of list of int
        Of each utterance, without prompt and end.

    Example
    -------
    >>> first, then = [[0.1, 0.5, 0.4]] * 2, [[0.3, 0.4, 0.3], [0.8, 0.1, 0.1]]
    >>> answers = iter([first, then])
    >>> step = lambda new: numpy.log(next(answers))
    >>> keep = lambda index: None
    >>> beam_search(step, keep, numpy.array([[7], [7]]), 2, 0, 0, 2)
    [[2]]
    """
    batch = len(prompts) // beam
    offsets = beam * numpy.arange(batch)[:, None]
    total = numpy.full(len(prompts), -numpy.inf)
    total[offsets] = 0  # all begin alike, so one of them is enough
    said = numpy.empty((len(prompts), 0), numpy.int64)
    ended = [[] for _ in range(batch)]  # (score, text)
    new = prompts

    def end_(indices):
        for index in indices:
            texts = ended[index // beam]
            if len(texts) < beam:
                texts.append((rated[index], said[index, :-1].tolist()))

    for n in range(most):
        if all(len(texts) == beam for texts in ended):
            break
        scores = step(new)
        if ctc is not None:
            scores = (1 - ctc.weight) * scores
        if n < least:
            scores[:, end] = NEVER
        if threshold is not None:
            likely = scores[:, end] > threshold * scores.max(-1)
            scores[~likely, end] = NEVER
        if ctc is not None:
            scores = ctc.add(scores, new[:, -1])
        sums = total[:, None] + scores
        length = n + 1 if by_length else 1
        sums = (sums / length).reshape(batch, -1)
        best = _largest(sums, beam)
        rated = numpy.take_along_axis(sums, best, axis=1).ravel()
        total = rated * length
        parents = (best // scores.shape[1] + offsets).ravel()
        tokens = (best % scores.shape[1]).ravel()
        keep(parents)
        if ctc is not None:
            ctc.keep(parents, tokens)
        new = tokens[:, None]
        said = numpy.concatenate([said[parents], new], axis=1)
        end_(numpy.flatnonzero(tokens == end))
        total[tokens == end] = -numpy.inf
    if said.shape[1]:
        end_(range(len(said)))  # what has not ended does so here
    best = [max(texts, key=lambda t: t[0], default=(0, [])) for texts in ended]
    return [text for _, text in best]


def _largest(scores, count):
    """(rows, count) places of the largest scores, the largest first."""
    found = numpy.argpartition(-scores, count - 1, axis=1)[:, :count]
    sorted_ = numpy.take_along_axis(scores, found, axis=1)
    order = numpy.argsort(-sorted_, axis=1, kind="stable")
    return numpy.take_along_axis(found, order, axis=1)
