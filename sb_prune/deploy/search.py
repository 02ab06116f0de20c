"""Greedy searches of SpeechBrain, with numpy alone.

Shapes: B batch, T frames, V tokens in the vocabulary.
"""

import itertools

import numpy


def ctc_greedy(scores, lengths, blank):
    """The most probable token of each frame, without repetitions and blanks.

    As `speechbrain.decoders.ctc_greedy_decode`.

    Arguments
    ---------
    scores : numpy.ndarray
        (B, T, V)
    lengths : numpy.ndarray
        (B,) relative to T.
    blank : int
        Token of the blank; a negative one counts from the end.

    Returns
    -------
    list of list of int

    Example
    -------
    >>> scores = numpy.array([[[0, 1], [1, 0], [0, 1], [0, 1]]])
    >>> ctc_greedy(scores, numpy.ones(1), blank=0)
    [[1, 1]]
    """
    blank = blank % scores.shape[-1]
    ends = numpy.round(numpy.float32(lengths) * scores.shape[1]).astype(int)
    best = scores.argmax(-1)
    return [
        [int(t) for t, _ in itertools.groupby(row[:end]) if t != blank]
        for row, end in zip(best, ends)
    ]


def greedy(step, prompts, end, most, suppressed=(), never_first=()):
    """The most probable next token, again and again until all have ended.

    As `speechbrain.decoders.S2SWhisperGreedySearcher`.

    Arguments
    ---------
    step : callable
        (B, L) int64, new tokens -> (B, V) logits of the next one. It remembers
        the tokens before.
    prompts : numpy.ndarray
        (B, L) int64, tokens to begin with.
    end : int
        Token of the end.
    most : int
        Tokens at most.
    suppressed : list of int
        Tokens that are never taken.
    never_first : list of int
        Tokens that are not taken first.

    Returns
    -------
    list of list of int
        Without prompt and end.

    Example
    -------
    >>> logits = iter([[[0, 2, 1]], [[3, 1, 2]]])
    >>> prompts = numpy.array([[2]])
    >>> greedy(lambda new: numpy.array(next(logits)), prompts, end=0, most=9)
    [[1]]
    """
    new = prompts
    found = numpy.empty((len(prompts), 0), numpy.int64)
    ended = numpy.zeros(len(prompts), bool)
    while found.shape[1] < most and not ended.all():
        logits = step(new)
        banned = [*suppressed, *(never_first if not found.shape[1] else ())]
        if banned:
            logits[:, banned] = -numpy.inf
        token = logits.argmax(-1)
        ended |= token == end
        token[ended] = end
        new = token[:, None]
        found = numpy.concatenate([found, new], axis=1)
    return [
        list(itertools.takewhile(lambda token: token != end, row))
        for row in found.tolist()
    ]
