"""Edits: what was done to a stock module, as data that can be replayed.

A model of sb_prune is a stock module and a list of edits. Each edit describes
one change of its structure in plain data with public names, so that exports,
runs and Hugging Face folders keep the list and never a pickled module.
`rebuild` makes the model again, without memory for what was cut, and a state
dict gives it its weights.
"""

import copy
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Callable

import torch
from torch.nn.utils.parametrize import is_parametrized

from sb_prune.cut.folding import fold_
from sb_prune.cut.surgery import cut_
from sb_prune.declare.plan import Plan
from sb_prune.declare.structure import Declaration, dotted

FORMAT = 3  # of lists of edits on disk
ENTRY = "sb_prune"  # key with them in the config.json of a Hugging Face model


class LaterFormat(ValueError):
    """Says that a later version of sb_prune wrote what is read."""


@dataclass(frozen=True)
class Edit:
    """Base of edits. A subclass defines `change_`.

    Arguments
    ---------
    module : str
        Path, from the root, of the module that is changed; empty: the root.
    """

    module: str = ""

    def apply_(self, root):
        """Changes a model in place.

        Arguments
        ---------
        root : torch.nn.Module
        """
        self.change_(root.get_submodule(self.module))

    def change_(self, module):
        """Changes the module that the edit names, in place."""
        raise NotImplementedError

    def within(self, prefix):
        """The same edit, seen from a root that holds the present one.

        Arguments
        ---------
        prefix : str
            Path from the new root to the present one.

        Returns
        -------
        Edit
        """
        return replace(self, module=dotted(prefix, self.module))


@dataclass(frozen=True)
class Cut(Edit):
    """Cuts a module down to a plan.

    Arguments
    ---------
    module : str
        Path, from the root, of the module that is cut; empty: the root.
    structures : callable
        Module -> Declaration of what could be cut, before this cut.
    plan : dict
        The units that stay, as `Plan.to_dict` writes them.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain.lobes.models.transformer.Conformer import (
    ...     ConformerEncoder,
    ... )
    >>> from sb_prune import conformer_structures
    >>> cut = Cut(
    ...     structures=partial(conformer_structures, kinds=["heads"]),
    ...     plan={"layers.0.mha_layer.heads": "1 of 4: 2"},
    ... )
    >>> encoder = ConformerEncoder(1, d_model=8, d_ffn=16, nhead=4)
    >>> cut.apply_(encoder)
    >>> encoder.layers[0].mha_layer.num_heads
    1
    """

    structures: Callable = None
    plan: dict = None

    def change_(self, module):
        """Cuts the module, in place."""
        cut_(self.structures(module), Plan.from_dict(self.plan))


@dataclass(frozen=True)
class Fold(Edit):
    """Turns parametrized weights (weight norm) into plain ones; see `fold_`."""

    def change_(self, module):
        """Folds every parametrized tensor below the module, in place."""
        fold_(module)


def outline(module):
    """Copies a module without the values of its tensors.

    Arguments
    ---------
    module : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        With its parameters and buffers on the meta device.

    Example
    -------
    >>> outline(torch.nn.Linear(2, 1)).weight.device
    device(type='meta')
    """
    memo = {
        id(parameter): torch.nn.Parameter(
            parameter.to("meta"), requires_grad=parameter.requires_grad
        )
        for parameter in module.parameters()
    }
    memo.update({id(b): b.to("meta") for b in module.buffers()})
    return copy.deepcopy(module, memo)


def folded(edits, root):
    """Adds a `Fold` to the edits of a model, if it has weights to fold.

    Arguments
    ---------
    edits : list of Edit
    root : torch.nn.Module
        The edited model.

    Returns
    -------
    list of Edit
    """
    if any(is_parametrized(module) for module in root.modules()):
        return [*edits, Fold()]
    return list(edits)


def rebuild(factory, edits, format=FORMAT):
    """Builds an edited module without memory for what was cut.

    Arguments
    ---------
    factory : callable
        Makes the stock module. Takes no arguments.
    edits : list of Edit
        What was done to it.
    format : int
        Format of the list.

    Returns
    -------
    torch.nn.Module
        On the meta device; `load_verified` gives it its weights.

    Raises
    ------
    ValueError
        If an edit does not fit what the earlier ones left, or if a later
        version of sb_prune wrote the list.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain.lobes.models.transformer.Conformer import (
    ...     ConformerEncoder,
    ... )
    >>> from sb_prune import conformer_structures
    >>> small = rebuild(
    ...     partial(ConformerEncoder, 1, d_model=8, d_ffn=16, nhead=4),
    ...     [
    ...         Cut(
    ...             structures=partial(conformer_structures, kinds=["heads"]),
    ...             plan={"layers.0.mha_layer.heads": "1 of 4: 2"},
    ...         )
    ...     ],
    ... )
    >>> small.layers[0].mha_layer.in_proj_weight
    Parameter containing:
    tensor(..., device='meta', size=(6, 8), requires_grad=True)
    """
    check_format(format)
    with torch.device("meta"):
        root = factory()
    for number, edit in enumerate(edits, start=1):
        try:
            edit.apply_(root)
        except (AttributeError, ValueError) as error:
            raise ValueError(
                f"edits: number {number} of {len(edits)}, a "
                f"{type(edit).__name__}, does not fit the model that the "
                f"ones before it leave: {error}"
            ) from error
    return root


@dataclass(frozen=True)
class Step:
    """One cut of a model that was pruned one or more times.

    Arguments
    ---------
    declaration : Declaration
        Of the model before this cut, on the meta device.
    plan : Plan
        The units that stayed.
    """

    declaration: Declaration
    plan: Plan


def before_cuts(edits):
    """The edits before the first cut: they make the original dense model.

    Arguments
    ---------
    edits : list of Edit

    Returns
    -------
    list of Edit
        Of a student its `StudentShape`, of other models none.
    """
    return list(takewhile(lambda edit: not isinstance(edit, Cut), edits))


def steps_of(factory, edits):
    """Lists the cuts of a model, each with what it was declared on.

    Arguments
    ---------
    factory : callable
        Makes the stock module. Takes no arguments.
    edits : list of Edit

    Returns
    -------
    list of Step
    """
    steps = []
    for number, edit in enumerate(edits):
        if isinstance(edit, Cut):
            before = rebuild(factory, edits[:number])
            declaration = edit.structures(before.get_submodule(edit.module))
            steps.append(Step(declaration, Plan.from_dict(edit.plan)))
            steps[-1].plan.check(declaration)
    return steps


def check_format(found):
    """Refuses edits that a later version of sb_prune wrote.

    Arguments
    ---------
    found : int
        Format of an export.

    Raises
    ------
    LaterFormat
        If this version cannot read the format.

    Example
    -------
    >>> check_format(4)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sb_prune.cut.edits.LaterFormat: format: 4 was written by a later ...
    """
    if found not in range(1, FORMAT + 1):
        raise LaterFormat(
            f"format: {found} was written by a later sb_prune; this one reads "
            f"1 to {FORMAT}: pip install --upgrade sb_prune"
        )
