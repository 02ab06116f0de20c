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
    pairs = zip(scores.argmax(-1), ends, strict=True)
    return [ctc_collapse(row[:end], blank) for row, end in pairs]


def ctc_collapse(tokens, blank):
    """Leaves out repetitions and blanks.

    Arguments
    ---------
    tokens : numpy.ndarray
        (T,) int, one for each frame.
    blank : int

    Returns
    -------
    list of int

    Example
    -------
    >>> ctc_collapse(numpy.array([3, 3, 0, 3, 5]), blank=0)
    [3, 3, 5]
    """
    return [int(t) for t, _ in itertools.groupby(tokens) if t != blank]


def greedy(step, prompts, end, most):
    """The most probable next token, again and again until all have ended.

    As `speechbrain.decoders.S2SGreedySearcher`.

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
        token = step(new).argmax(-1)
        ended |= token == end
        token[ended] = end
        new = token[:, None]
        found = numpy.concatenate([found, new], axis=1)
    return [
        list(itertools.takewhile(lambda token: token != end, row))
        for row in found.tolist()
    ]


def without(step, never, never_first):
    """A step that makes some tokens impossible.

    Arguments
    ---------
    step : callable
        New tokens -> (N, V) logits of the next one.
    never : list of int
        Tokens that are never taken.
    never_first : list of int
        Tokens that are not taken first.

    Returns
    -------
    callable

    Example
    -------
    >>> step = without(lambda new: numpy.zeros((1, 4)), [2], [0])
    >>> step(None).tolist(), step(None).tolist()
    ([[-inf, 0.0, -inf, 0.0]], [[0.0, 0.0, -inf, 0.0]])
    """
    banned = [*never, *never_first]

    def answer(new):
        nonlocal banned
        logits = step(new)
        logits[:, banned] = -numpy.inf
        banned = list(never)
        return logits

    return answer


def log_softmax(scores):
    """Log-probabilities of logits.

    Arguments
    ---------
    scores : numpy.ndarray
        (N, V)

    Returns
    -------
    numpy.ndarray
        (N, V)

    Example
    -------
    >>> numpy.exp(log_softmax(numpy.array([[5.0, 5.0]]))).tolist()
    [[0.5, 0.5]]
    """
    scores = scores - scores.max(-1, keepdims=True)
    return scores - numpy.log(numpy.exp(scores).sum(-1, keepdims=True))
