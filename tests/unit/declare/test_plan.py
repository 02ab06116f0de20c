"""Plans: readable, checked, and the same after a trip through YAML."""

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sb_prune import Plan, conformer_structures
from sb_prune.declare.plan import full_plan


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["encoder.layers.0", "a.heads", "b.units"]),
        st.lists(st.booleans(), min_size=1, max_size=40),
    )
)
def test_round_trip(kept):
    plan = Plan({name: torch.tensor(units) for name, units in kept.items()})
    table = yaml.safe_load(yaml.safe_dump(plan.to_dict()))
    again = Plan.from_dict(table)
    assert {n: k.tolist() for n, k in again.keep.items()} == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "all",
        "3 of 4",
        "3 of 4: 0-1",  # count and ranges disagree
        "1 of 4: 4",
        "2 of 4: 3-2",
        "1 of 4: -1",
        "2 of x: 0-1",
        "2 of 4: 0;1",
        None,
    ],
)
def test_bad_strings(text):
    with pytest.raises(ValueError, match="plan: cannot read a.heads: .*write"):
        Plan.from_dict({"a.heads": text})


def test_plan_of_another_architecture(make_asr):
    small, large = (
        conformer_structures(make_asr(layers=layers)) for layers in (2, 3)
    )
    with pytest.raises(ValueError, match="another architecture.*layers.2"):
        full_plan(small).check(large)


def test_plan_of_another_width(make_asr):
    declaration = conformer_structures(make_asr(), kinds=["heads"])
    plan = full_plan(declaration)
    name = declaration.structures[0].name
    plan.keep[name] = torch.ones(5).bool()
    with pytest.raises(ValueError, match="has 5 units in the plan and 4 in"):
        plan.check(declaration)


def test_empty_leaf_in_an_open_module(make_asr):
    declaration = conformer_structures(make_asr())
    plan = full_plan(declaration)
    name = "encoder.layers.1.mha_layer"
    plan.keep[f"{name}.heads"][:] = False
    with pytest.raises(ValueError, match=f"{name}.heads keeps no unit"):
        plan.check(declaration)
    plan.keep[name][:] = False
    plan.check(declaration)


def test_nothing_counts_below_a_closed_module(make_asr):
    declaration = conformer_structures(make_asr())
    plan = full_plan(declaration)
    plan.keep["encoder.layers.0"][:] = False
    for structure, count in zip(
        declaration.structures, plan.kept_counts(declaration).tolist()
    ):
        gone = structure.name.startswith("encoder.layers.0")
        assert count == (0 if gone else structure.units)
