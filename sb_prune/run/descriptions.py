"""Descriptions of values of a YAML, the same in every process.

They are compared when a run goes on, so equal values have equal descriptions,
and values that differ have different ones. No memory address is in them.
"""

import hashlib
import re
from collections.abc import Mapping, Set
from functools import partial
from os import PathLike, fspath
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodType,
    ModuleType,
)

import numpy
import torch

from sb_prune.support.names import public_name

LONGEST = 8  # numbers of an array that are written out
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def described(value, around=()):
    """Describes a value of a YAML, equally in every process and run.

    Arguments
    ---------
    value : object
    around : tuple of object
        The objects that the value is in, so that a circle ends.

    Returns
    -------
    str

    Example
    -------
    >>> from sb_prune import MACBudget
    >>> described(partial(MACBudget, frames=300))
    'sb_prune.MACBudget(frames: 300)'
    >>> described({"encoder": [0.5, "a"]})
    "{'encoder': [0.5, 'a']}"
    """
    if any(value is one for one in around):
        return "..."
    within = partial(described, around=(*around, value))
    if isinstance(value, partial):
        return _partial(value, within)
    if isinstance(value, (type, *_CALLABLES)):
        return _callable(value, within)
    if isinstance(value, (str, bytes)):
        return repr(value)
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        return _array(value, within)
    if isinstance(value, PathLike):
        return repr(fspath(value))
    if isinstance(value, Mapping):
        items = [f"{within(k)}: {within(v)}" for k, v in value.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(within, value))}]"
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(map(within, value)))}}}"
    return _instance(value, within)


_CALLABLES = (FunctionType, BuiltinFunctionType, MethodType)


def _partial(value, within):
    """name(argument, key: argument); without arguments the name alone."""
    given = [within(argument) for argument in value.args]
    given += _named(value.keywords, within)
    name = within(value.func)
    return f"{name}({', '.join(given)})" if given else name


def _named(items, within):
    """Keyword arguments or attributes, whose order does not matter."""
    return [f"{key}: {within(items[key])}" for key in sorted(items)]


def _callable(value, within):
    """Path of a class or function, with the values that it encloses."""
    owner = getattr(value, "__self__", None)
    if isinstance(value, type) or owner is None:
        name = public_name(value)
        is_local = "<" in name and not hasattr(value, "__wrapped__")
        if isinstance(value, type) or not is_local:
            return name
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        held += value.__defaults__ or ()
        return f"{name}({', '.join(map(within, held))})" if held else name
    return f"{within(owner)}.{value.__name__}"


def _array(value, within):
    """Type, shape and numbers; a hash of them if they are many."""
    is_tensor = isinstance(value, torch.Tensor)
    kind = f"{'tensor' if is_tensor else 'array'} {value.dtype}"
    kind = f"{kind} {list(value.shape)}"
    if is_tensor:
        value = value.detach().cpu().to_dense().reshape(-1)
    else:
        value = value.reshape(-1)
    if len(value) <= LONGEST or value.dtype == object:
        return f"{kind} {within(value.tolist())}"
    if is_tensor:
        value = value.contiguous().view(torch.uint8).numpy()
    return f"{kind} {hashlib.sha256(value.tobytes()).hexdigest()}"


def _instance(value, within):
    """Class and attributes of an object, or what it says of itself."""
    attributes = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = getattr(cls, "__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                attributes[name] = getattr(value, name)
    if attributes:
        given = _named(attributes, within)
        return f"{public_name(type(value))}({', '.join(given)})"
    if type(value).__repr__ is object.__repr__:
        return public_name(type(value))
    return ADDRESS.sub("", repr(value))
