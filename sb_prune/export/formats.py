"""Formats of exports.

1   up to version 0.1: refers to names in private modules, has no number
2   since version 0.2: refers to public names only, `format: 2` beside each plan
"""

FORMAT = 2
BUILDERS = ("!apply:sb_prune.build_cut", "!apply:sb_prune.export.build_cut")


def check_format(found):
    """Refuses an export that a later version of sb_prune wrote.

    Arguments
    ---------
    found : int
        Format of the export.

    Raises
    ------
    ValueError
        If this version cannot read the format.

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
