"""Word errors, and how sure they are."""

import unicodedata

import numpy
from speechbrain.utils.edit_distance import (
    alignment,
    op_table,
    wer_details_for_batch,
)

DRAWS = 2000  # of utterances, with replacement
BLOCK = 1 << 22  # largest number of drawn rows at a time
INSIDE = "_'\u200c\u200d"  # a word: and what joins letters without a sign


def words_of(text):
    """Words in small letters, without punctuation around them.

    Arguments
    ---------
    text : str
        Accents may stand apart from their letters, and apostrophes be curly:
        both are made one (NFKC).

    Returns
    -------
    list of str

    Example
    -------
    >>> words_of("It’s 10 o'clock.")
    ["it's", '10', "o'clock"]
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    kept = (c if c in INSIDE or _is_of_words(c) else " " for c in text)
    words = (word.strip("'") for word in "".join(kept).split())
    return [word for word in words if word]


def _is_of_words(character):
    """Whether it is a letter, a digit or a sign of a vowel."""
    return unicodedata.category(character)[0] in "LNM"


def normaliser(language=None):
    """How texts are made comparable, word by word.

    Arguments
    ---------
    language : str, optional
        Of a Whisper that wrote one of them, with numbers in digits: English
        ("en") is then compared as OpenAI does, if `whisper-normalizer` is
        installed.

    Returns
    -------
    (callable, str)
        Text -> list of str; and what to call this beside a figure.

    Example
    -------
    >>> words, name = normaliser()
    >>> words("Mr. Brown"), name
    (['mr', 'brown'], 'small letters, without punctuation')
    """
    if language in ("en", "english"):
        try:
            from whisper_normalizer.english import EnglishTextNormalizer
        except ImportError:
            pass
        else:
            normalise = EnglishTextNormalizer()
            return lambda text: normalise(text).split(), "Whisper's, of English"
    return words_of, "small letters, without punctuation"


def word_errors(said, heard):
    """Counts the word errors of an utterance.

    Arguments
    ---------
    said, heard : list of str

    Returns
    -------
    (int, int)
        Errors, and words that were said.

    Example
    -------
    >>> word_errors(["a", "b", "c"], ["a", "c"])
    (1, 3)
    """
    (found,) = wer_details_for_batch([""], [said], [heard])
    return found["num_edits"], found["num_ref_tokens"]


def error_rate(counts, draws=DRAWS):
    """Word error rate, with the 95% interval of a bootstrap over utterances.

    Arguments
    ---------
    counts : array_like
        (utterances, 2): errors and words. `rate_difference` compares those of
        two models.
    draws : int

    Returns
    -------
    (float, float, float)
        The rate, its lower and its upper bound, in %.

    Example
    -------
    >>> error_rate([(1, 10)] * 5)
    (10.0, 10.0, 10.0)
    """
    counts = numpy.asarray(counts, dtype=float)
    return _with_interval(_rate, [counts], draws)


def rate_difference(counts, others, draws=DRAWS):
    """By how much one rate is above another, in pairs of utterances.

    Arguments
    ---------
    counts, others : array_like
        (utterances, 2): of two models, what is counted and of how much, which
        need not be the same for both.
    draws : int

    Returns
    -------
    (float, float, float)
        The difference, its lower and its upper bound (95%), in points.

    Example
    -------
    >>> rate_difference([(3, 10)] * 5, [(1, 5)] * 5)
    (10.0, 10.0, 10.0)
    """
    pair = [numpy.asarray(each, dtype=float) for each in (counts, others)]
    return _with_interval(lambda a, b: _rate(a) - _rate(b), pair, draws)


def _rate(counts):
    """Ratio of the sums of (..., utterances, 2), in %."""
    errors, words = counts.sum(-2).T
    return 100 * errors / numpy.where(words == 0, numpy.nan, words)


def _with_interval(figure, tables, draws):
    """A figure of tables, with the bounds of a bootstrap over their rows."""
    generator = numpy.random.default_rng(0)
    rows, found = len(tables[0]), []
    step = max(1, BLOCK // rows)
    for start in range(0, draws, step):
        size = (min(step, draws - start), rows)
        drawn = generator.integers(rows, size=size)
        found.append(figure(*(table[drawn] for table in tables)))
    low, high = numpy.nanpercentile(numpy.concatenate(found), [2.5, 97.5])
    return float(figure(*tables)), float(low), float(high)


def marked(said, heard):
    """What was heard, and where it is not what was said.

    Arguments
    ---------
    said, heard : list of str

    Returns
    -------
    list of (str, str)
        A kind and a word: "=" that was said, "S" another, "I" one more, "D"
        one that was said, but not heard.

    Example
    -------
    >>> marked(["a", "b", "c"], ["a", "x", "c", "d"])
    [('=', 'a'), ('S', 'x'), ('=', 'c'), ('I', 'd')]
    """
    return [
        (kind, said[i] if j is None else heard[j])
        for kind, i, j in alignment(op_table(said, heard))
    ]
