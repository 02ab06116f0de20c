"""Declarations are checked when they are made."""

import pytest
import torch

from sb_prune import conformer_structures
from sb_prune.structure import Declaration, Structure


def declare(*structures):
    return Declaration(torch.nn.Identity(), ("",), structures, None)


def test_names_are_unique():
    one = Structure("a", "heads", 2)
    with pytest.raises(ValueError, match="a stands twice"):
        declare(one, one)


def test_parents_come_first():
    child, parent = Structure("b", "x", 2, parent="a"), Structure("a", "x", 1)
    assert declare(parent, child).total_units == 3
    with pytest.raises(ValueError, match="parent a of b is not declared"):
        declare(child, parent)


def test_split_follows_the_order():
    pieces = declare(Structure("a", "x", 2), Structure("b", "x", 1)).split(
        torch.arange(3)
    )
    assert {n: p.tolist() for n, p in pieces.items()} == {"a": [0, 1], "b": [2]}


def test_touched_tensors_are_parameters(make_asr):
    model = make_asr()
    touched = conformer_structures(model).touched_tensors()
    assert len(touched) == len(set(touched)) == 16
    assert set(touched) <= dict(model.named_parameters()).keys()
