"""Declarations are checked when they are made."""

from functools import partial

import pytest
import torch
from tiny_whisper import write_tiny_whisper
from transformers import WhisperModel

from sb_prune import (
    conformer_structures,
    front_end_structures,
    joined_structures,
    whisper_structures,
)
from sb_prune.declare.structure import Declaration, Slices, Structure


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


def test_shared_tensors_are_refused():
    """One module would be masked, and cut, twice."""
    root = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    each = torch.arange(2).unsqueeze(1)
    ours = [
        Structure(name, "x", 2, masks=(Slices(f"{name}.weight", 1, each),))
        for name in "01"
    ]
    Declaration(root, ("",), ours, None)
    root[1].weight = root[0].weight
    with pytest.raises(ValueError, match="1.weight and 0.weight are the same"):
        Declaration(root, ("",), ours, None)


def test_shared_layers_are_refused(make_asr):
    model = make_asr()
    conformer_structures(model)
    layers = next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1
    )
    layers[1] = layers[0]
    with pytest.raises(ValueError, match="has one layer in several places"):
        conformer_structures(model)


def test_split_follows_the_order():
    pieces = declare(Structure("a", "x", 2), Structure("b", "x", 1)).split(
        torch.arange(3)
    )
    assert {n: p.tolist() for n, p in pieces.items()} == {"a": [0, 1], "b": [2]}


def part(kinds=None, only=""):
    kinds = kinds or ["layers", "heads"]
    return partial(conformer_structures, kinds=kinds, only=only)


def test_joined_parts_stay_in_order(make_front_end):
    root = make_front_end()
    joined = joined_structures(root, [front_end_structures, part()])
    alone = [front_end_structures(root), part()(root)]
    assert list(joined.by_name) == [*alone[0].by_name, *alone[1].by_name]
    assert joined.scope == alone[0].scope + alone[1].scope
    assert joined.layers == alone[1].layers
    assert joined.blocks == ("CNN.convblock_0", "CNN.convblock_1")


def test_joined_parts_follow_the_frames(make_front_end):
    root = make_front_end()
    joined = joined_structures(root, [front_end_structures, part()])
    assert joined.output_frames(100) == 25
    assert joined.operations(100) == (
        front_end_structures(root).operations(100) + part()(root).operations(25)
    )


def test_joined_parts_count_shared_operations_once(make_asr):
    model = make_asr()
    parts = [part(["heads"]), part(["ffn_units"])]
    assert joined_structures(model, parts).operations(9) == (
        part()(model).operations(9)
    )


@pytest.mark.parametrize(
    "parts",
    [
        [("encoder", "heads"), ("encoder", "ffn_units")],
        [("encoder", "heads"), ("decoder", "ffn_units")],
    ],
)
def test_joined_parts_of_whisper_all_count_its_log_mel(tmp_path, parts):
    write_tiny_whisper(tmp_path)
    model = WhisperModel.from_pretrained(tmp_path)
    joined = joined_structures(
        model,
        [
            partial(whisper_structures, sides=[side], kinds=[kind])
            for side, kind in parts
        ],
    )
    sides = list(dict.fromkeys(side for side, _ in parts))
    whole = whisper_structures(model, sides=sides)
    assert joined.time_axis == 2 and joined.scope == whole.scope
    assert joined.output_frames(300) == whole.output_frames(300)
    assert joined.operations(300) == whole.operations(300)


def test_parts_inside_modules_of_other_names_cannot_be_joined(tmp_path):
    """Whisper's feed-forward modules have no names of their own."""
    write_tiny_whisper(tmp_path)
    model = WhisperModel.from_pretrained(tmp_path)
    whole, units = (
        partial(whisper_structures, kinds=[kind], sides=["encoder"])
        for kind in ("ffn_modules", "ffn_units")
    )
    with pytest.raises(ValueError, match="ffn.units lies in .*, which another"):
        joined_structures(model, [whole, units])


@pytest.mark.parametrize(
    "parts, message",
    [
        ([part(), part()], "encoder.layers.0 is declared twice; name every"),
        (
            [part(["layers"]), part(["heads"])],
            "layers.0.mha_layer.heads lies in encoder.layers.0, which another",
        ),
        (
            [part(["heads"]), part(["attention_modules"])],
            "mha_layer.heads lies in encoder.layers.0.mha_layer, which another",
        ),
        ([], "structures: the list is empty"),
    ],
)
def test_parts_that_cannot_be_joined(make_asr, parts, message):
    with pytest.raises(ValueError, match=message):
        joined_structures(make_asr(), parts)
