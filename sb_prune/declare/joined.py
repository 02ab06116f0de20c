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
        time_axis=declarations[0].time_axis,
    )


def _frames_behind(declarations, frames):
    *_, entering = _frames_before(declarations, frames)
    return declarations[-1].output_frames(entering)


def _frames_before(declarations, frames):
    """Frames that enter each part, after those before it.

    Parts of one scope get the same, and so do those of Whisper, whose decoder
    counts the frames of the log-mel, too.
    """
    entering, given = [], frames
    for place, part in enumerate(declarations):
        for other, known in zip(declarations[:place], entering):
            if _read_the_same(part, other):
                given = known
                break
        entering.append(given)
        given = part.output_frames(given)
    return entering


def _read_the_same(part, other):
    is_log_mel = part.time_axis == other.time_axis != 1
    return is_log_mel or not set(part.scope).isdisjoint(other.scope)


def _in_series(declarations, frames):
    """Lists the operations of all parts, each once."""
    found = []
    entering = _frames_before(declarations, frames)
    for declaration, given in zip(declarations, entering):
        known = set(found)
        listed = declaration.operations(given)
        found += [operation for operation in listed if operation not in known]
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
            parts = *structure.masks, *structure.cuts
            inside = {structure.name, *(part.tensor for part in parts)}
            for name, module in removed:
                if any(below(part, module) for part in inside):
                    raise ValueError(
                        f"structures: {structure.name} lies in {name}, which "
                        "another function declares; give their kinds to one "
                        "function"
                    )
