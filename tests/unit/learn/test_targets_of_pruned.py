"""Targets count from the original dense model, whatever is gone already."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from sb_prune import (
    AugmentedLagrangian,
    CubicSchedule,
    HardConcrete,
    LinearSchedule,
    MACBudget,
    ParameterBudget,
    Pruner,
    ScorePruner,
    conformer_structures,
    cut_,
    front_end_structures,
    joined_structures,
    mac_cost,
    magnitude_score,
    taylor_score,
)
from sb_prune.learn.fitting import fit_plan, leaf_prices

UNITS = {
    "parameters": ParameterBudget,
    "MACs": partial(MACBudget, frames=50),
    "MACs of 10 s": MACBudget,
}
every_unit = pytest.mark.parametrize("unit", UNITS)
ENCODER = ["ffn_units", "heads", "conv_channels"]
declare = partial(conformer_structures, kinds=ENCODER)
declare_both = partial(joined_structures, parts=[front_end_structures, declare])
BOTH = {"CNN": 0.2, "Transformer": 0.4}


def scores(declaration, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(declaration.total_units, generator=generator)


def cut_to(budget, declaration, original, seed=0):
    """Cuts a model of which some may be gone; returns its groups and plan."""
    groups = budget.groups(declaration, original=original)
    plan = fit_plan(declaration, groups, scores(declaration, seed))
    cut_(declaration, plan)
    return groups, plan


def again(make, declare, budget):
    """A model that was cut once.

    Returns
    -------
    SimpleNamespace
        declaration : of the model that was cut
        original : of the dense model
    """
    with torch.device("meta"):
        original = declare(make())
    root = make()
    cut_to(budget, declare(root), original)
    return SimpleNamespace(declaration=declare(root), original=original)


@pytest.fixture
def cut_encoder(make_asr):
    """Function: unit -> an encoder of which 30% are gone."""
    return lambda unit="parameters": again(
        partial(make_asr, layers=3), declare, UNITS[unit](0.3)
    )


@pytest.fixture
def cut_pair(make_front_end):
    """A front-end and an encoder, of which 20% and 40% are gone."""
    return again(make_front_end, declare_both, ParameterBudget(BOTH))


def cost_left(budget, declaration, prefix=""):
    """Cost of what is there, as the tensors and sizes of the model say."""
    return budget.cost(declaration, prefix).dense()


def assert_lands(group, declaration, plan, left, target):
    limit = group.dense * (1 - target)
    assert left <= limit * (1 + 1e-9)
    could_open = [
        price
        for name, price in leaf_prices(declaration, group, plan).items()
        if not plan.keep[name].all()
    ]
    assert limit - left < min(could_open)


# ---------------------------------------------------------------- groups


@every_unit
def test_lands_within_one_unit_of_the_original(cut_encoder, unit):
    cut = cut_encoder(unit)
    root, budget = cut.declaration.root, UNITS[unit](0.5)
    for target, seed in ((0.5, 1), (0.6, 2), (0.65, 3)):
        budget = UNITS[unit](target)
        declaration = declare(root)
        groups, plan = cut_to(budget, declaration, cut.original, seed)
        (group,) = groups
        assert group.dense == cost_left(budget, cut.original)
        left = cost_left(budget, declare(root))
        assert_lands(group, declaration, plan, left, target)


@every_unit
def test_what_is_gone_is_what_the_original_had_more(cut_encoder, unit):
    cut, budget = cut_encoder(unit), UNITS[unit](0.5)
    (group,) = budget.groups(cut.declaration, original=cut.original)
    left = cost_left(budget, cut.declaration)
    assert group.gone == 1 - left / cost_left(budget, cut.original)
    assert 0.3 <= group.gone < 0.32


def test_nothing_is_gone_of_a_dense_model(make_asr):
    declaration = declare(make_asr())
    for unit in UNITS.values():
        (group,) = unit(0.5).groups(declaration)
        assert group.gone == 0
        assert group.scheduled(0.3) == 0.5 * 0.3


def test_each_group_counts_from_its_own_original(cut_pair):
    """The Transformer's first Linear is smaller by the front-end's cut, too."""
    budget = ParameterBudget({"Transformer": 0.6, "CNN": 0.5})
    declaration, root = cut_pair.declaration, cut_pair.declaration.root
    groups, plan = cut_to(budget, declaration, cut_pair.original)
    found = {group.prefix: group for group in groups}
    assert list(found) == ["CNN", "Transformer"]
    for prefix, group in found.items():
        assert BOTH[prefix] <= group.gone < budget.target[prefix]
        left = sum(p.numel() for p in root[prefix].parameters())
        left -= sum(  # what the budget does not count
            p.numel()
            for name, p in root[prefix].named_parameters()
            if prefix == "Transformer"
            and not name.startswith(("encoder", "custom_src_module"))
        )
        assert_lands(group, declaration, plan, left, budget.target[prefix])


def test_a_target_that_is_gone_already(cut_encoder):
    cut = cut_encoder()
    message = (
        r"target: 0.3 is not above what earlier prunings removed already "
        r"\(30..% of the parameters of the dense model are gone\); write more "
        r"\(at most 0.\d+\)"
    )
    with pytest.raises(ValueError, match=message):
        ParameterBudget(0.3).groups(cut.declaration, original=cut.original)
    # of the cut model itself 30% can still go
    assert ParameterBudget(0.3).groups(cut.declaration)


def test_macs_that_are_gone_already(cut_encoder):
    cut = cut_encoder("MACs")
    with pytest.raises(ValueError, match="of the MACs of the dense model"):
        MACBudget(0.2, 50).groups(cut.declaration, original=cut.original)


def test_a_target_of_one_module_that_is_gone_already(cut_pair):
    budget = ParameterBudget({"Transformer": 0.6, "CNN": 0.1})
    with pytest.raises(ValueError, match=r"target\[CNN\]: 0.1 is not above"):
        budget.groups(cut_pair.declaration, original=cut_pair.original)


def test_a_milestone_that_is_gone_already(cut_encoder):
    cut = cut_encoder()
    (group,) = ParameterBudget(0.5).groups(
        cut.declaration, original=cut.original
    )
    group.check_above_gone(0.4, "milestones", "write more")
    with pytest.raises(ValueError, match="^milestones: 0.2 is not .*; leave"):
        group.check_above_gone(0.2, "milestones", "leave it out")


def test_a_target_beyond_what_is_left(cut_encoder):
    cut = cut_encoder()
    with pytest.raises(ValueError, match="target: 0.99 cannot be reached"):
        ParameterBudget(0.99).groups(cut.declaration, original=cut.original)


def test_a_module_that_the_original_lacks(make_asr):
    original, declaration = (declare(make_asr(layers=n)) for n in (1, 2))
    budget = ParameterBudget({f"encoder.layers.{i}": 0.5 for i in (0, 1)})
    message = r"target\[encoder.layers.1\]: the dense model .* has no param"
    with pytest.raises(ValueError, match=message):
        budget.groups(declaration, original=original)


def test_an_original_of_another_scope(make_front_end):
    root = make_front_end()
    with pytest.raises(ValueError, match="original: its scope is"):
        ParameterBudget(0.5).groups(declare_both(root), original=declare(root))


# ---------------------------------------------------------------- pruners


def make_pruner(cut, target=0.5, steps=20, schedule=LinearSchedule, **options):
    pruner = Pruner(
        cut.declaration,
        ParameterBudget(target),
        schedule(steps),
        gate_optimizer=partial(torch.optim.Adam, lr=0.1),
        original=cut.original,
        **options,
    )
    pruner.attach_()
    return pruner


def is_open(pruner):
    return all(
        bool((pruner._values[s.name] == 1).all())
        for s in pruner.declaration.structures
    )


@pytest.mark.parametrize("schedule", [LinearSchedule, CubicSchedule])
def test_meets_the_schedule_at_every_step_and_lands(
    cut_encoder, backward_gates, schedule
):
    cut = cut_encoder()
    gates = HardConcrete(straight_through=True)
    pruner = make_pruner(cut, schedule=schedule, gates=gates)
    (group,) = pruner.groups
    for step in range(25):
        pruner.sample_()
        named = pruner.statistics(pruner.plan())
        fraction = schedule(20).fraction(step)
        scheduled = group.gone + (0.5 - group.gone) * fraction
        assert named["target_sparsity"] == pytest.approx(scheduled)
        assert named["realised_sparsity"] >= scheduled - 1e-9
        if step:
            assert abs(named["expected_sparsity"] - scheduled) <= 2e-5
        backward_gates(pruner.declaration, seed=step)
        assert pruner.step_() == (step > 0)
    assert named["target_sparsity"] == 0.5
    plan = pruner.cut_()
    left = cost_left(pruner.budget, declare(pruner.declaration.root))
    assert_lands(group, pruner.declaration, plan, left, 0.5)


def test_several_targets_are_met_at_every_step(cut_pair, backward_gates):
    targets = {"Transformer": 0.6, "CNN": 0.5}
    pruner = make_pruner(cut_pair, targets, steps=5)
    gone = {group.prefix: group.gone for group in pruner.groups}
    for step in range(7):
        pruner.sample_()
        named = pruner.statistics(pruner.plan())
        for prefix, target in targets.items():
            fraction = min(step / 5, 1)
            scheduled = gone[prefix] + (target - gone[prefix]) * fraction
            now = named[f"target_sparsity[{prefix}]"]
            assert now == pytest.approx(scheduled)
            if step:
                expected = named[f"expected_sparsity[{prefix}]"]
                assert abs(expected - scheduled) <= 1e-3
        backward_gates(pruner.declaration, seed=step)
        pruner.step_()


def test_gates_are_open_at_the_start(cut_encoder, backward_gates):
    pruner = make_pruner(cut_encoder())
    logits = pruner.logits.clone()
    pruner.sample_()
    assert is_open(pruner)
    assert all(kept.all() for kept in pruner.binarise_().keep.values())
    assert is_open(pruner)
    backward_gates(pruner.declaration, seed=0)
    assert pruner.step_() is False
    assert torch.equal(pruner.logits, logits)
    pruner.sample_()
    assert not is_open(pruner)


def test_the_first_score_is_taken_when_the_schedule_rises(
    cut_encoder, backward_gates
):
    schedule = partial(LinearSchedule, start=0.5)
    pruner = make_pruner(
        cut_encoder(), steps=4, schedule=schedule, first_score=taylor_score
    )
    for step in range(4):
        pruner.sample_()
        assert is_open(pruner) == (step < 3)
        backward_gates(pruner.declaration, seed=step)
        pruner.step_()
    assert (pruner.saliency > 0).all()
    assert len(pruner.logits.unique()) > len(pruner.logits) / 2


def test_the_schedule_rises_from_what_is_gone(cut_encoder):
    pruner = make_pruner(cut_encoder(), steps=2)
    gone = pruner.groups[0].gone
    assert pruner.last_rise() == (gone, gone)
    pruner.step_()
    assert pruner.last_rise() == (gone, pytest.approx((gone + 0.5) / 2))
    pruner.step_()
    assert pruner.last_rise()[1] == 0.5


def test_lagrangian_has_no_gap_of_what_is_gone(cut_encoder, backward_gates):
    pruner = make_pruner(
        cut_encoder(), steps=100, controller=AugmentedLagrangian(lr=1.0)
    )
    for step in range(2):
        pruner.sample_()
        backward_gates(pruner.declaration, seed=step, scale=0.0)
        pruner.step_()
    named = pruner.statistics(pruner.plan())
    gap = named["expected_sparsity"] - named["target_sparsity"]
    assert abs(gap) < 0.02  # a gate is open with probability 0.99 at first


def test_scores_choose_from_what_is_gone(cut_encoder, backward_gates):
    cut = cut_encoder()
    pruner = ScorePruner(
        cut.declaration,
        ParameterBudget(0.5),
        LinearSchedule(10),
        magnitude_score,
        every=1,
        original=cut.original,
    )
    pruner.attach_()
    sparsities = []
    for step in range(12):
        pruner.sample_()
        assert is_open(pruner) == (step == 0)
        plan = pruner.plan()
        sparsities.append(pruner.realised_sparsity(plan).item())
        backward_gates(pruner.declaration, seed=step)
        pruner.step_()
    assert sparsities == sorted(sparsities)
    assert sparsities[0] == pruner.groups[0].gone
    assert 0.5 <= sparsities[-1] < 0.51


def test_prices_are_those_of_the_model_that_is_pruned(cut_encoder):
    cut = cut_encoder()
    pruner = make_pruner(cut)
    name = "encoder.layers.0.ffn_module1.units"
    prices = cut.declaration.split(pruner.prices)[name]
    assert (prices == 2 * 16 + 1).all()


def test_macs_are_logged_for_what_is_left(cut_encoder):
    cut = cut_encoder("MACs")
    budget = MACBudget(0.5, frames=50)
    pruner = Pruner(
        cut.declaration, budget, LinearSchedule(5), original=cut.original
    )
    named = pruner.statistics(pruner.plan())
    assert named["MACs"] == mac_cost(cut.declaration, 50).dense()
    assert named["MACs"] < 0.7 * mac_cost(cut.original, 50).dense()
