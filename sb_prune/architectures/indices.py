"""Indices for `Slices`: which entries of a tensor belong to which unit.

Each row is a unit; rows of fewer entries are padded with -1.
"""

import torch
from torch.nn.utils.rnn import pad_sequence


def consecutive(units, entries=1):
    """Indices for `Slices` of units that lie one after another.

    Example
    -------
    >>> consecutive(2, entries=3)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    # on the CPU also where a model is being made on the meta device
    return torch.arange(units * entries, device="cpu").view(units, entries)


def of_widths(widths, start=0):
    """Indices for `Slices` of units of several widths, one after another.

    Example
    -------
    >>> of_widths([2, 3], start=4)
    tensor([[ 4,  5, -1],
            [ 6,  7,  8]])
    """
    every = torch.arange(start, start + sum(widths), device="cpu")
    rows = every.split(list(widths))
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def each_of(index):
    """Indices for `Slices` of the entries of some units, one by one.

    Example
    -------
    >>> each_of(of_widths([1, 2]))
    tensor([[0],
            [1],
            [2]])
    """
    return index[index >= 0].unsqueeze(1)
