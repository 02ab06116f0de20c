"""Joins the declarations of several functions into one."""

import itertools
from functools import partial

from sb_prune.declare.structure import Declaration, below


def joined_structures(root, parts):
    """Joins what several functions declare below a module.

    Arguments
    ---------
    root : torch.nn.Module
        Argument of each of the functions.
    parts : list of callable
        Module -> Declaration. In the order in which data flow, as the frames
        at the output of a part enter the next one.

    Returns
    -------
    Declaration

    Raises
    ------
    ValueError
        If there are no functions, a structure is declared twice, or one lies
        in a module that a structure of another part removes.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain.lobes.models.transformer.Conformer import (
    ...     ConformerEncoder,
    ... )
    >>> from sb_prune import conformer_structures
    >>> declaration = joined_structures(
    ...     ConformerEncoder(1, d_model=8, d_ffn=16, nhead=2),
    ...     [
    ...         partial(conformer_structures, kinds=["heads"]),
    ...         partial(conformer_structures, kinds=["conv_channels"]),
    ...     ],
    ... )
    >>> [s.kind for s in declaration.structures]
    ['heads', 'conv_channels']
    """
    declarations = [part(root) for part in parts]
    if not declarations:
        raise ValueError("structures: the list is empty; write a function")
    _check_apart(declarations)

    def all_of(field):
        values = (v for d in declarations for v in getattr(d, field))
        return tuple(dict.fromkeys(values))

    return Declaration(
        root=root,
        scope=all_of("scope"),
        structures=tuple(s for d in declarations for s in d.structures),
        operations=partial(_in_series, declarations),
        layers=all_of("layers"),
        layerdrop=max(d.layerdrop for d in declarations),
        blocks=all_of("blocks"),
        output_frames=partial(_frames_behind, declarations),
        usual_frames=declarations[0].usual_frames,
    )


def _frames_behind(declarations, frames):
    for declaration in declarations:
        frames = declaration.output_frames(frames)
    return frames


def _in_series(declarations, frames):
    """Lists the operations of all parts, each once."""
    found = []
    for declaration in declarations:
        known = set(found)
        listed = declaration.operations(frames)
        found += [operation for operation in listed if operation not in known]
        frames = declaration.output_frames(frames)
    return found


def _check_apart(declarations):
    """Refuses parts that declare a structure twice, or that overlap.

    They overlap if one declares a structure inside a module that another one
    can remove.
    """
    for one, other in itertools.permutations(declarations, 2):
        removed = [(s.name, m) for s in one.structures for m, _ in s.removes]
        for structure in other.structures:
            if structure.name in one.by_name:
                raise ValueError(
                    f"structures: {structure.name} is declared twice; name "
                    "every function, and every kind, once"
                )
            for name, module in removed:
                if below(structure.name, module):
                    raise ValueError(
                        f"structures: {structure.name} lies in {name}, which "
                        "another function declares; give their kinds to one "
                        "function"
                    )
