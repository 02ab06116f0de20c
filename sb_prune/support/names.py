"""Names by which a document refers to a class or function."""

import sys


def public_name(thing):
    """Returns the path by which a class or function is referred to.

    For what belongs to sb_prune this is the shortest public path, which does
    not change when a file moves.

    Arguments
    ---------
    thing : callable
        A class or function.

    Returns
    -------
    str

    Example
    -------
    >>> from sb_prune import MACBudget
    >>> public_name(MACBudget)
    'sb_prune.MACBudget'
    >>> from fractions import Fraction
    >>> public_name(Fraction)
    'fractions.Fraction'
    """
    name, module = thing.__qualname__, thing.__module__ or "builtins"
    parts = module.split(".")
    if parts[0] == "sb_prune":
        packages = [".".join(parts[:n]) for n in range(1, len(parts))]
        for package in packages:
            if getattr(sys.modules[package], name, None) is thing:
                return f"{package}.{name}"
    return f"{module}.{name}"
