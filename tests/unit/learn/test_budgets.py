"""Plans land just below the budget, whatever the scores."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sb_prune import (
    ExactBudget,
    MACBudget,
    ParameterBudget,
    Pruner,
    conformer_structures,
    front_end_structures,
    joined_structures,
    mac_cost,
    wav2vec2_structures,
)
from sb_prune.architectures.conformer import KINDS
from sb_prune.declare.structure import Declaration, Slices, Structure
from sb_prune.learn.fitting import fit_plan, leaf_prices

UNITS = {
    "parameters": ParameterBudget,
    "MACs": lambda target: MACBudget(target, frames=50),
}
TARGETS = [0.3, 0.5, 0.7, 0.9]
LEAVES = ("ffn_units", "heads", "conv_channels")
UNIT = 2 * 16 + 1  # parameters of a hidden unit


def assert_lands(declaration, plan, group, target):
    kept = plan.kept_counts(declaration)
    unused = group.dense * (1 - target) - float(group.cost.of_kept(kept))
    assert unused >= -1e-6 * group.dense
    prices = leaf_prices(declaration, group, plan)
    assert not prices or unused < min(prices.values())


def random_scores(declaration, seed, spread):
    """Structures differ in their mean; clamped, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    scores = [
        torch.rand(s.units, generator=generator)
        + spread * torch.rand(1, generator=generator)
        for s in declaration.structures
    ]
    return torch.cat(scores).clamp(0.1, 2)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=20, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.0, 1.0, 4.0]))
def test_landing(make_asr, unit, target, seed, spread):
    declaration = conformer_structures(make_asr(layers=3))
    groups = UNITS[unit](target).groups(declaration)
    plan = fit_plan(
        declaration, groups, random_scores(declaration, seed, spread)
    )
    plan.check(declaration)
    assert_lands(declaration, plan, groups[0], target)


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    kinds=st.sets(st.sampled_from(KINDS)).map(lambda k: sorted(k | {*LEAVES})),
    sparsity=st.floats(0.05, 0.4),
    min_keep=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_landing_on_the_way(make_asr, unit, kinds, sparsity, min_keep, seed):
    declaration = conformer_structures(make_asr(layers=3), kinds)
    groups = UNITS[unit](0.4).groups(declaration, min_keep)
    scores = random_scores(declaration, seed, spread=1.0)
    plan = fit_plan(declaration, groups, scores, [sparsity], min_keep)
    assert_lands(declaration, plan, groups[0], sparsity)
    for structure in declaration.structures:
        if structure.is_leaf and plan.is_open(structure, declaration):
            assert plan.keep[structure.name].sum() >= min_keep


def test_cheap_units_make_room_for_expensive_ones(make_asr):
    """Only heads are closed, and one costs more than what is left."""
    declaration = conformer_structures(make_asr(layers=3), LEAVES)
    scores = torch.cat(
        [
            torch.full((s.units,), s.kind != "heads")
            for s in declaration.structures
        ]
    ).double()
    for target in torch.linspace(0.02, 0.2, 19).tolist():
        groups = ParameterBudget(target).groups(declaration)
        plan = fit_plan(declaration, groups, scores)
        assert_lands(declaration, plan, groups[0], target)


def test_groups_with_a_target_each(make_asr):
    declaration = conformer_structures(make_asr())
    targets = {"encoder.layers.0": 0.3, "encoder.layers.1": 0.8}
    groups = ParameterBudget(targets).groups(declaration)
    for seed in range(10):
        scores = random_scores(declaration, seed, spread=1.0)
        plan = fit_plan(declaration, groups, scores)
        for group in groups:
            assert_lands(declaration, plan, group, targets[group.prefix])


def test_the_best_scored_stay(make_asr):
    declaration = conformer_structures(
        make_asr(), ["ffn_units"], only="layers.0.ffn_module1"
    )
    torch.manual_seed(0)
    scores = torch.randperm(32).double()
    groups = ParameterBudget(0.05).groups(declaration)
    kept = fit_plan(declaration, groups, scores).values(declaration).bool()
    assert 0 < kept.sum() < 32
    assert scores[kept].min() > scores[~kept].max()


def test_what_must_stay_keeps_its_best_units(make_asr):
    declaration = conformer_structures(
        make_asr(), ["ffn_units"], only="ffn_module1"
    )
    torch.manual_seed(0)
    worse, better = torch.randperm(32), 100 + torch.randperm(32)
    (group,) = ParameterBudget(0.05).groups(declaration)
    plan = fit_plan(
        declaration,
        [group],
        torch.cat([worse, better]).double(),
        sparsities=[50 * UNIT / group.dense],
        min_keep=3,
    )
    kept = plan.values(declaration).bool()
    assert sorted(worse[kept[:32]].tolist()) == [29, 30, 31]
    assert sorted(better[kept[32:]].tolist()) == list(range(121, 132))


def test_sparsity_0_keeps_everything(make_asr):
    declaration = conformer_structures(make_asr())
    groups = ParameterBudget(0.5).groups(declaration)
    scores = random_scores(declaration, 0, 1.0)
    plan = fit_plan(declaration, groups, scores, sparsities=[0.0])
    assert plan.values(declaration).all()


def test_plans_are_a_function_of_the_scores(make_asr):
    declaration = conformer_structures(make_asr())
    groups = ParameterBudget(0.5).groups(declaration)
    before = torch.get_rng_state()
    equal = torch.zeros(declaration.total_units)
    plans = [fit_plan(declaration, groups, equal).to_dict() for _ in range(2)]
    assert plans[0] == plans[1]
    assert torch.equal(before, torch.get_rng_state())


def test_min_keep_bounds_what_can_be_reached(make_asr):
    declaration = conformer_structures(make_asr(), LEAVES)
    ParameterBudget(0.7).groups(declaration)
    with pytest.raises(ValueError, match="target: 0.7 cannot be reached"):
        ParameterBudget(0.7).groups(declaration, min_keep=8)


BOTH = [front_end_structures, conformer_structures]
EACH = {"Transformer": 0.5, "CNN": 0.3}  # in the wrong order on purpose


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("target", [0.3, 0.8])
@settings(max_examples=15, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.0, 1.0, 4.0]))
def test_landing_with_a_front_end(make_front_end, unit, target, seed, spread):
    declaration = joined_structures(make_front_end(), BOTH)
    groups = UNITS[unit](target).groups(declaration)
    scores = random_scores(declaration, seed, spread)
    plan = fit_plan(declaration, groups, scores)
    assert_lands(declaration, plan, groups[0], target)


@pytest.mark.parametrize("unit", UNITS)
def test_front_end_and_transformer_with_a_target_each(make_front_end, unit):
    """The Transformer's first Linear shrinks with the front-end."""
    declaration = joined_structures(make_front_end(), BOTH)
    groups = UNITS[unit](EACH).groups(declaration)
    assert [group.prefix for group in groups] == ["CNN", "Transformer"]
    for seed in range(10):
        scores = random_scores(declaration, seed, spread=1.0)
        plan = fit_plan(declaration, groups, scores)
        for group in groups:
            assert_lands(declaration, plan, group, EACH[group.prefix])


def test_expected_sparsity_of_coupled_groups_is_exact(make_front_end):
    declaration = joined_structures(make_front_end(), BOTH)
    budget = ParameterBudget({"Transformer": 0.3, "CNN": 0.8})
    pruner = Pruner(declaration, budget, controller=ExactBudget())
    logits, _ = pruner._control()
    found = pruner.expected_sparsity(logits.detach())
    assert found.tolist() == pytest.approx([0.8, 0.3], abs=1e-6)


def test_a_group_must_reach_its_target_alone(make_front_end):
    """However few channels another group leaves of the first Linear."""
    heads = partial(conformer_structures, kinds=["heads"])
    parts = [front_end_structures, heads]
    declaration = joined_structures(make_front_end(), parts)

    def groups(target):
        targets = {"CNN": 0.1, "Transformer": target}
        return ParameterBudget(targets).groups(declaration)

    fewest = [
        1.0 if s.kind == "heads" else s.units for s in declaration.structures
    ]
    group = groups(0.1)[1]
    left = group.cost.of_kept(torch.tensor(fewest).double())
    most = group.sparsity(float(left))
    assert groups(most - 0.001)
    with pytest.raises(ValueError, match=r"target\[Transformer\]: .* reached"):
        groups(most + 0.001)


def test_groups_that_shrink_with_one_another_are_refused():
    """Each cuts what the other counts."""
    root = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)}
    )
    each = torch.arange(4).unsqueeze(1)
    declaration = Declaration(
        root,
        ("",),
        (
            Structure("a.x", "x", 4, cuts=(Slices("b.weight", 0, each),)),
            Structure("b.x", "x", 4, cuts=(Slices("a.weight", 0, each),)),
        ),
        list,
    )
    with pytest.raises(ValueError, match="target: .* give them one target"):
        ParameterBudget({"a": 0.3, "b": 0.3}).groups(declaration)


@pytest.mark.parametrize("frames", [-100, 0, 0.5, 250.0, True, "250"])
def test_lengths_that_no_utterance_has(make_asr, frames):
    refusal = f"frames: {frames!r}; write a whole number, 1 or more"
    with pytest.raises(ValueError, match=refusal):
        MACBudget(0.5, frames=frames)
    with pytest.raises(ValueError, match=refusal):
        mac_cost(conformer_structures(make_asr()), frames)


def test_an_utterance_too_short_for_the_front_end(make_wav2vec2):
    declaration = wav2vec2_structures(make_wav2vec2(), ["front_end_channels"])
    budget = MACBudget({"feature_extractor": 0.5}, frames=5)
    with pytest.raises(ValueError, match="no MACs to remove.*more frames"):
        budget.groups(declaration)


@pytest.mark.parametrize("target", [0.12, 0.2, 0.3])
def test_room_is_made_where_each_removed_unit_makes_others_cheaper(
    make_wav2vec2, target
):
    """Channels of convolutions in series go, and a head is opened instead."""
    kinds = ["front_end_channels", "heads"]
    declaration = wav2vec2_structures(make_wav2vec2(), kinds)
    (group,) = MACBudget(target, frames=2000).groups(declaration)
    scores = [
        torch.arange(s.units) / 100 + (s.kind != "heads")
        for s in declaration.structures
    ]
    plan = fit_plan(declaration, [group], torch.cat(scores))
    left = float(group.cost.of_kept(plan.kept_counts(declaration)))
    unused = group.dense * (1 - target) - left
    prices = leaf_prices(declaration, group, plan)
    assert 0 <= unused < min(prices.values())
