"""Which format an export has, and whether this version reads it.

1   until version 0.1: names of private modules, no number
2   since version 0.2: public names only, `format: 2` beside every plan
"""

FORMAT = 2
BUILDERS = ("!apply:sb_prune.build_cut", "!apply:sb_prune.export.build_cut")


def check_format(found):
    """Refuses an export of a later version.

    Arguments
    ---------
    found : int
        What stands beside the plan.

    Raises
    ------
    ValueError

    Example
    -------
    >>> check_format(3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: format: 3 was written by a later sb_prune; ...
    """
    if found not in range(1, FORMAT + 1):
        raise ValueError(
            f"format: {found} was written by a later sb_prune; this one reads "
            f"1 to {FORMAT}: pip install --upgrade sb_prune"
        )
