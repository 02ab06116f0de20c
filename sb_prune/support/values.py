"""Checks values against what a signature says they may be.

The signature of a function or class that a YAML may name is annotated,

    @checked
    def __init__(self, steps: Whole(1), start: Number(least=0, below=1) = 0.0):

and that is the only place where types and bounds are written. They are enforced
twice. `checked` checks every call from Python. `check_arguments` checks a block
of a YAML, with every `!name:` in it, before any of it is made, so that an error
says where the value stands:

    pruning: schedule: start: 2; write a number, 0 or more and below 1

Functions and classes without these annotations can be named in a YAML as well:
the names of their arguments are checked, and that no text stands where an
ordinary annotation says `bool`, `int` or `float`.
"""

import inspect
import math
import re
from collections.abc import Mapping
from functools import partial, wraps
from numbers import Integral, Real
from os import PathLike
from typing import get_args

from sb_prune.support.disk import reason
from sb_prune.support.messages import instead, shown

# --------------------------------------------------------------------- kinds


class Kind:
    """Describes which values an argument accepts; a subclass says how.

    Attributes
    ----------
    wanted : str
        What to write, in the words of a message.
    """

    wanted = ""

    def fits(self, value):
        """Says whether a value is accepted."""
        raise NotImplementedError

    def check(self, value, path):
        """Raises an error unless a value is accepted.

        Arguments
        ---------
        value : object
        path : str
            Where the value stands in the YAML.

        Raises
        ------
        ValueError
            Naming the path, the value and what to write.
        """
        if not self.fits(value):
            raise ValueError(f"{path}: {shown(value)}; write {self.wanted}")

    def __repr__(self):
        return self.wanted


class Whole(Kind):
    """A whole number.

    Arguments
    ---------
    least : int
        The smallest.

    Example
    -------
    >>> Whole(1).check(0, "min_keep")
    Traceback (most recent call last):
    ValueError: min_keep: 0; write a whole number, 1 or more
    """

    def __init__(self, least):
        self.least = least
        self.wanted = f"a whole number, {least} or more"

    def fits(self, value):
        """Says whether it is one; True and False are not."""
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        return is_whole and value >= self.least


class Number(Kind):
    """A finite number; whole ones are as good.

    Arguments
    ---------
    above, below : float
        Bounds that are not accepted themselves.
    least : float
        A lower bound that is accepted itself.
    example : str
        Appended to what a message says.

    Example
    -------
    >>> Number(above=0, below=1).check("0.5", "target")
    Traceback (most recent call last):
    ValueError: target: '0.5'; write a number between 0 and 1
    """

    def __init__(self, above=-math.inf, below=math.inf, least=None, example=""):
        self.above, self.below, self.least = above, below, least
        self.wanted = f"a number{self._bounds()}{example}"

    def _bounds(self):
        low, high = math.isfinite(self.above), math.isfinite(self.below)
        if self.least is not None:
            at_least = f", {self.least} or more"
            return at_least + (f" and below {self.below}" if high else "")
        if low and high:
            return f" between {self.above} and {self.below}"
        if low:
            return f" above {self.above}"
        return f" below {self.below}" if high else ""

    def fits(self, value):
        """Says whether it is one within the bounds."""
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        in_bounds = self.above < value < self.below
        return in_bounds and (self.least is None or value >= self.least)


class YesNo(Kind):
    """True or False; not 0, 1, 'yes' or 'no', which Python takes for either."""

    wanted = "True or False, without quotes"

    def fits(self, value):
        """Says whether it is one of the two."""
        return isinstance(value, bool)


class Text(Kind):
    """Some text, such as a key.

    Arguments
    ---------
    wanted : str
        What to write, e.g. "a key of `modules`".
    """

    def __init__(self, wanted):
        self.wanted = wanted

    def fits(self, value):
        """Says whether it is text, and not empty."""
        return isinstance(value, str) and value != ""


class Place(Text):
    """A file or folder, as text or as a path; arguments as for `Text`."""

    def fits(self, value):
        """Says whether it is text, or a path."""
        return isinstance(value, PathLike) or super().fits(value)


class Pattern(Kind):
    """A regular expression.

    Example
    -------
    >>> Pattern().check("layers.(1", "only")
    Traceback (most recent call last):
    ValueError: only: 'layers.(1'; write a regular expression, e.g. layers\\.0
    """

    wanted = r"a regular expression, e.g. layers\.0"

    def fits(self, value):
        """Whether it is one."""
        try:
            re.compile(value)
        except (TypeError, re.error):
            return False
        return isinstance(value, str)


class ListOf(Kind):
    """A list of values of one kind.

    Arguments
    ---------
    kind : Kind
        Of the values.
    least : int
        The smallest number of values.
    example : str
        What a list in YAML looks like.

    Example
    -------
    >>> ListOf(Text("a name"), example="[heads]").check("heads", "kinds")
    Traceback (most recent call last):
    ValueError: kinds: 'heads'; write a list, e.g. [heads]
    """

    def __init__(self, kind, least=0, example=""):
        self.kind = kind
        self.least = least
        self.wanted = f"a list, e.g. {example}"
        if least:
            self.wanted = f"a list of {least} or more, e.g. {example}"

    def fits(self, value):
        """Says whether it is a list, and long enough."""
        return isinstance(value, (list, tuple)) and len(value) >= self.least

    def check(self, value, path):
        """Checks the list, then each value in it."""
        super().check(value, path)
        for entry in value:
            self.kind.check(entry, path)


class OneOrList(ListOf):
    """A value of one kind, or a list of them; arguments as for `ListOf`."""

    def __init__(self, kind, least=0):
        super().__init__(kind, least)
        self.wanted = f"{kind.wanted}, or a list of them"

    def check(self, value, path):
        """Checks the value, or each of several."""
        if self.kind.fits(value):
            self.kind.check(value, path)
        else:
            super().check(value, path)


class OneOrMapping(Kind):
    """A value of one kind, or a mapping from names to such values.

    Arguments
    ---------
    kind : Kind
        Of the values.
    names : str
        What the mapping has one value for, e.g. "module prefix".
    """

    def __init__(self, kind, names):
        self.kind = kind
        self.wanted = f"{kind.wanted}; or a mapping, one for each {names}"

    def fits(self, value):
        """Says whether it is anything but an empty mapping."""
        return not isinstance(value, Mapping) or len(value) > 0

    def check(self, value, path):
        """Checks the value, or each of several."""
        super().check(value, path)
        if not isinstance(value, Mapping):
            self.kind.check(value, path)
            return
        for name, each in value.items():
            self.kind.check(each, f"{path}: {name}")


class ListOrMapping(Kind):
    """A list of names, or a mapping from names to values of one kind.

    Arguments
    ---------
    names : ListOf
    kind : Kind
        Of the values.
    example : str
        What a mapping in YAML looks like.
    """

    def __init__(self, names, kind, example):
        self.names = names
        self.kind = kind
        self.wanted = f"{names.wanted}; or a mapping, e.g. {example}"

    def fits(self, value):
        """Says whether it is one of the two."""
        return isinstance(value, Mapping) or self.names.fits(value)

    def check(self, value, path):
        """Checks the value, then what is in it."""
        super().check(value, path)
        if not isinstance(value, Mapping):
            self.names.check(value, path)
            return
        for name, each in value.items():
            self.kind.check(each, f"{path}: {name}")


class Function(Kind):
    """A function that a YAML names with `!name:` and that sb_prune calls.

    Arguments
    ---------
    example : str
        A function that fits.
    given : int
        Number of arguments with which sb_prune calls it.
    """

    def __init__(self, example, given=1):
        self.given = given
        self.wanted = f"!name: and a function, e.g. !name:{example}"

    def fits(self, value):
        """Says whether it can be called and is no class."""
        return callable(value) and not inspect.isclass(_unwrapped(value))

    def check(self, value, path):
        """Checks it, then the arguments that the YAML has for it."""
        super().check(value, path)
        check_call(value, path, self.given)


class Factory(Kind):
    """A class that a YAML names with `!name:` and that sb_prune instantiates.

    A function that returns an object with the same methods is accepted too.

    Arguments
    ---------
    example : str
        A class that fits.
    methods : list of str
        Methods that its objects must have.
    given : int
        Number of positional arguments that sb_prune passes.
    keys : dict
        Keyword argument that sb_prune passes -> key of the block that holds its
        value.

    Example
    -------
    >>> Factory("torch.optim.SGD", ["step"], given=1).check(dict, "optimizer")
    Traceback (most recent call last):
    ValueError: optimizer: dict; write !name: and a class with step, e.g. !name:torch.optim.SGD
    """  # noqa: E501

    def __init__(self, example, methods, given=0, keys=None):
        self.methods = methods
        self.given = given
        self.keys = keys or {}
        self.wanted = (
            f"!name: and a class with {', '.join(methods)}, e.g. "
            f"!name:{example}"
        )

    def _has_methods(self, value):
        return all(callable(getattr(value, m, None)) for m in self.methods)

    def fits(self, value):
        """Says whether it may make such an object, before it is called."""
        made = _unwrapped(value)
        if inspect.isclass(made):
            return self._has_methods(made)
        return callable(made) and not self._has_methods(made)

    def check(self, value, path):
        """Checks it, then the arguments that the YAML has for it."""
        if not inspect.isclass(value) and self._has_methods(value):
            raise ValueError(
                f"{path}: {shown(value)} is made already; write !name: "
                "instead of !new:"
            )
        super().check(value, path)
        check_call(value, path, self.given, self.keys)

    def make(self, block, key, value, *args, **kwargs):
        """Makes the object.

        Arguments
        ---------
        block, key : str
            Where the class stands in the YAML.
        value : callable
            The class, which `check` has accepted.
        args, kwargs : object
            What sb_prune passes, as announced by `given` and `keys`.

        Returns
        -------
        object

        Raises
        ------
        ValueError
            If the class refuses its arguments, or makes something else.
        """
        path = f"{block}: {key}"
        parameters = _parameters(_taken_apart(value)[0]) or {}
        for name in [name for name in parameters if name in kwargs]:
            where = f"{block}: {self.keys[name]}"
            _check_value(parameters[name], kwargs[name], where)
        try:
            made = value(*args, **kwargs)
        except Exception as error:  # the YAML may name any class
            raise ValueError(
                f"{path}: {shown(value)} cannot be made ({reason(error)}); "
                f"{_hint(value)}"
            ) from error
        if not self._has_methods(made):
            raise ValueError(
                f"{path}: {shown(value)} makes {shown(made)}; write "
                f"{self.wanted}"
            )
        return made


# ------------------------------------------------------------------ checking


def checked(function):
    """Lets a function, or an `__init__`, check its arguments at every call.

    Arguments
    ---------
    function : callable
        With annotations that are a `Kind`.

    Returns
    -------
    callable
        The same function, which raises a ValueError for a wrong value.

    Example
    -------
    >>> @checked
    ... def repeat(text, times: Whole(1) = 2):
    ...     return text * times
    >>> repeat("na", 3)
    'nanana'
    >>> repeat("na", times=-3)
    Traceback (most recent call last):
    ValueError: repeat: times: -3; write a whole number, 1 or more
    """
    parameters = inspect.signature(function).parameters
    is_method = next(iter(parameters), None) == "self"

    @wraps(function)
    def call(*args, **kwargs):
        name = type(args[0]).__name__ if is_method else function.__name__
        named = {**dict(zip(parameters, args)), **kwargs}
        for key in [key for key in parameters if key in named]:
            _check_value(parameters[key], named[key], f"{name}: {key}")
        return function(*args, **kwargs)

    return call


def check_arguments(function, arguments, path, own=(), keys=None):
    """Checks names and values of the arguments that a YAML has for a function.

    Arguments
    ---------
    function : callable
        A class as well.
    arguments : dict
        Name -> value.
    path : str
        Where they stand in the YAML.
    own : list of str
        Positional arguments that sb_prune passes.
    keys : dict, optional
        Keyword argument that it passes -> key of the block with its value.

    Raises
    ------
    ValueError
        Naming the path, the value and what to write.

    Example
    -------
    >>> def encode(x, layers: Whole(1)):
    ...     return x
    >>> check_arguments(encode, {"layer": 3}, "model: encoder", own=["x"])
    Traceback (most recent call last):
    ValueError: model: encoder: layer: encode has no such argument; write layers
    """
    parameters = _parameters(function)
    if parameters is None:  # written in C, without a signature
        return
    keys = keys or {}
    kinds = {p.kind for p in parameters.values()}
    open_names = {
        key: p
        for key, p in parameters.items()
        if key not in own
        and key not in keys
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    for key, value in arguments.items():
        where = f"{path}: {key}"
        if key in keys:
            raise ValueError(
                f"{where}: {shown(value)}; leave it out here: it is the "
                f"block's own key {keys[key]}"
            )
        if key in open_names:
            _check_value(parameters[key], value, where)
        elif inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(
                f"{where}: {shown(function)} has no such argument; "
                f"{instead(key, open_names)}"
            )


def call_named(function, path, *args):
    """Calls a function that a YAML names.

    Arguments
    ---------
    function : callable
    path : str
        Where it stands in the YAML.
    args : object
        Arguments of the call.

    Returns
    -------
    object
        The result of the call.

    Raises
    ------
    ValueError
        If it raises a TypeError or an AttributeError, as functions do that
        take something else.
    """
    try:
        return function(*args)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: {shown(function)} cannot take {shown(*args)} "
            f"({reason(error)}); write another function"
        ) from error


def check_call(value, path, given=0, keys=None):
    """Checks a function or class that a YAML names, with its arguments.

    Arguments
    ---------
    value : callable
        The function or class, or a partial of it.
    path : str
        Where it stands in the YAML.
    given : int
        Number of positional arguments that sb_prune passes.
    keys : dict, optional
        Argument of `check_arguments`.

    Raises
    ------
    ValueError
        If an argument is missing, misspelt or has a wrong value.
    """
    function, args, kwargs = _taken_apart(value)
    parameters = _parameters(function)
    if parameters is None:
        return
    names = list(parameters)[: len(args) + given]
    check_arguments(function, kwargs, path, own=names, keys=keys)
    placeholders = [*args, *[None] * given]
    try:
        inspect.signature(function).bind(
            *placeholders, **dict.fromkeys(keys or ()), **kwargs
        )
    except TypeError as error:
        passed = ", ".join([f"{given} without a name", *(keys or ())])
        raise ValueError(
            f"{path}: {shown(function)}: {error}; sb_prune passes {passed}: "
            "write all others, or name another"
        ) from error


def _check_value(parameter, value, path):
    """Checks one value against its annotation."""
    wanted = parameter.annotation
    if value is parameter.default:
        return
    if isinstance(wanted, Kind):
        wanted.check(value, path)
    elif isinstance(value, str) and _excludes_text(wanted):
        raise ValueError(f"{path}: {value!r}; write {_excludes_text(wanted)}")
    else:
        _check_inside(value, path)


def _excludes_text(annotation):
    """Says what to write instead of text, if an annotation allows no text.

    Returns None for an annotation that does.
    """
    types = get_args(annotation) or [annotation]
    if not all(t in (bool, int, float, type(None)) for t in types):
        return None
    return YesNo.wanted if bool in types else "a number, without quotes"


def _check_inside(value, path):
    """Checks what a value without annotation names with `!name:`."""
    if isinstance(value, partial):
        check_arguments(value.func, value.keywords, path)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_inside(entry, path)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _check_inside(entry, f"{path}: {key}")


def _parameters(function):
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def _unwrapped(value):
    return value.func if isinstance(value, partial) else value


def _taken_apart(value):
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    return value, (), {}


def _hint(value):
    """Says what to write instead of arguments that a class has refused."""
    function, _, arguments = _taken_apart(value)
    for key, text in arguments.items():
        if isinstance(text, str) and _is_number(text):
            return f"write {key}: {text} without quotes"
    return f"write what {shown(function)} takes"


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
