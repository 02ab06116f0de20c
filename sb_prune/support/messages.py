"""What messages of errors are made of: values in a few words, names alike."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from numbers import Real

LONGEST = 60  # characters of a value that a message shows


def shown(*values):
    """Returns how a message shows some values: in a few words.

    Arguments
    ---------
    values : object

    Returns
    -------
    str

    Example
    -------
    >>> shown(partial(sorted, key=abs))
    'sorted(key: abs)'
    >>> shown(object())
    'an object of object'
    """
    text = ", ".join(map(_text_of, values))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _text_of(value):
    if isinstance(value, partial):
        given = [f"{k}: {_text_of(v)}" for k, v in value.keywords.items()]
        return f"{_text_of(value.func)}({', '.join(given)})"
    if isinstance(value, Mapping):
        items = [f"{k}: {_text_of(v)}" for k, v in value.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_text_of, value))
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if isinstance(value, (str, Real, type(None))):
        return repr(value)
    name = getattr(value, "__name__", None)
    return name or f"an object of {type(value).__name__}"


def closest(key, known, cutoff=0.6):
    """Returns the known name that is most like a misspelt one.

    Arguments
    ---------
    key : str
    known : list of str
    cutoff : float
        How alike they must be, up to 1.

    Returns
    -------
    str or None

    Example
    -------
    >>> closest("straight_trough", ["temperature", "straight_through"])
    'straight_through'
    """
    return next(iter(get_close_matches(str(key), known, 1, cutoff)), None)


def instead(key, known):
    """Says what to write instead of a misspelt name.

    Arguments
    ---------
    key : str
    known : collection of str

    Returns
    -------
    str

    Example
    -------
    >>> instead("kept", ["least", "most"])
    'write one of least, most'
    """
    meant = closest(key, list(known))
    if meant is not None:
        return f"write {meant}"
    if not known:
        return "leave it out"
    if len(known) == 1:
        return f"write {next(iter(known))}"
    return f"write one of {', '.join(known)}"
