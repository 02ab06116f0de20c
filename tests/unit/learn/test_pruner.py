"""The pruner ties the parts together and owns its state."""

from functools import partial

import pytest
import torch

from sb_prune import (
    AugmentedLagrangian,
    HardConcrete,
    LinearSchedule,
    ParameterBudget,
    Pruner,
    conformer_structures,
    taylor_score,
)
from sb_prune.declare.plan import full_plan
from sb_prune.learn.fitting import leaf_prices

FAST = partial(torch.optim.Adam, lr=0.1)


@pytest.fixture
def make_pruner(make_asr):
    def make(budget=0.5, steps=20, kinds=None, **options):
        arguments = [kinds] if kinds else []
        pruner = Pruner(
            conformer_structures(make_asr(), *arguments),
            ParameterBudget(budget),
            LinearSchedule(steps),
            **{"gate_optimizer": FAST, **options},
        )
        pruner.attach_()
        return pruner

    return make


def values(pruner):
    """The gates that the model sees."""
    return torch.cat(
        [pruner._values[s.name] for s in pruner.declaration.structures]
    )


def expected(pruner):
    named = pruner.statistics(full_plan(pruner.declaration))
    return named["target_sparsity"], named["expected_sparsity"]


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("straight", [False, True])
def test_follows_the_schedule_and_lands(
    make_pruner, backward_gates, target, straight
):
    gates = HardConcrete(straight_through=straight)
    pruner = make_pruner(target, steps=300, gates=gates)
    for step in range(301):
        pruner.sample_()
        if step:
            scheduled, found = expected(pruner)
            assert scheduled == pytest.approx(target * step / 300)
            assert abs(found - scheduled) <= 0.02
        backward_gates(pruner.declaration, seed=step)
        pruner.step_()
    plan, (group,) = pruner.plan(), pruner.groups
    unused = pruner.realised_sparsity(plan).item() - target
    cheapest = min(leaf_prices(pruner.declaration, group, plan).values())
    assert 0 <= unused + 1e-9 < cheapest / group.dense
    assert plan.to_dict() == pruner.plan(final=True).to_dict()


def test_lagrangian_approaches_its_target(make_pruner, backward_gates):
    pruner = make_pruner(0.5, steps=1, controller=AugmentedLagrangian(lr=1.0))
    pruner.step_()
    start = expected(pruner)[1]
    for step in range(150):
        pruner.sample_()
        backward_gates(pruner.declaration, seed=step, scale=1e-3)
        pruner.step_()
    assert abs(expected(pruner)[1] - 0.5) < 0.5 * abs(start - 0.5)


def test_all_open_before_the_schedule_starts(make_pruner, backward_gates):
    pruner = make_pruner()
    before = pruner.logits.clone()
    pruner.sample_()
    assert (values(pruner) == 1).all()
    assert not values(pruner).requires_grad
    assert pruner.step_() is False
    assert torch.equal(pruner.logits, before)
    assert pruner.step == 1


def test_samples_depend_on_seed_and_step_only(make_pruner):
    def drawn(seed, step):
        pruner = make_pruner(seed=seed)
        pruner.step = step
        torch.manual_seed(torch.seed())  # whatever the recipe draws
        pruner.sample_()
        return values(pruner).detach()

    first = drawn(seed=1, step=5)
    assert torch.equal(first, drawn(seed=1, step=5))
    assert not torch.equal(first > 0, drawn(seed=1, step=6) > 0)
    assert not torch.equal(first > 0, drawn(seed=2, step=5) > 0)


def test_the_global_generator_is_left_alone(make_pruner, backward_gates):
    pruner = make_pruner()
    before = torch.get_rng_state()
    for step in range(3):
        pruner.sample_()
        backward_gates(pruner.declaration, seed=step)
        pruner.step_()
        pruner.binarise_()
    assert torch.equal(before, torch.get_rng_state())


def test_micro_batches_add_up_in_one_sample(make_pruner, backward_gates):
    together, apart = make_pruner(), make_pruner()
    for pruner in (together, apart):
        pruner.step = 10
        pruner.sample_()
    declaration = together.declaration
    backward_gates(declaration, seed=1, scale=2.0)
    backward_gates(apart.declaration, seed=1)
    seen = values(apart).detach().clone()
    backward_gates(apart.declaration, seed=1)
    assert torch.equal(values(apart), seen)
    assert together.step_() and apart.step_()
    assert torch.allclose(together.logits, apart.logits, atol=1e-6)


def test_loss_scale_is_taken_back(make_pruner, backward_gates):
    plain, scaled = (
        make_pruner(gate_optimizer=partial(torch.optim.SGD, lr=0.1))
        for _ in range(2)
    )
    for pruner, scale in ((plain, 1.0), (scaled, 1024.0)):
        pruner.step = 10
        pruner.sample_()
        backward_gates(pruner.declaration, seed=1, scale=scale)
        pruner.step_(scale)
    assert torch.allclose(plain.logits, scaled.logits, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_gradients_move_nothing(make_pruner, backward_gates, bad):
    pruner = make_pruner()
    pruner.step = 10
    before = pruner.logits.clone()
    pruner.sample_()
    backward_gates(pruner.declaration, seed=1, scale=bad)
    assert pruner.step_() is False
    assert torch.equal(pruner.logits, before)
    assert not pruner.optimizer.state
    pruner.sample_()
    backward_gates(pruner.declaration, seed=1)
    assert pruner.step_() is True


def test_units_that_matter_stay(make_pruner):
    """Gates whose closing costs loss stay; the others go."""
    pruner = make_pruner(0.3, steps=100, kinds=["ffn_units"])
    name = "encoder.layers.0.ffn_module1.units"
    for _ in range(130):
        pruner.sample_()
        sample = pruner._sample
        weight = torch.zeros(pruner.declaration.total_units)
        pruner.declaration.split(weight)[name][:] = 1.0
        if sample.requires_grad:
            (-(sample * weight).sum()).backward()
        pruner.step_()
    plan = pruner.plan(final=True)
    assert plan.keep[name].all()
    assert not plan.keep["encoder.layers.1.ffn_module2.units"].all()


def test_evaluation_sees_the_plan_that_would_be_cut(make_pruner, encode):
    pruner = make_pruner(0.5, steps=10)
    pruner.step = 10
    with torch.no_grad():
        plan = pruner.binarise_()
        masked = encode(pruner.declaration.root)
    assert set(values(pruner).tolist()) == {0.0, 1.0}
    assert pruner.cut_().to_dict() == plan.to_dict()
    with torch.no_grad():
        cut = encode(pruner.declaration.root)
    assert (masked - cut).abs().max() <= 1e-5


def test_groups_keep_their_own_pace(make_pruner, backward_gates):
    targets = {"encoder.layers.0": 0.3, "encoder.layers.1": 0.8}
    pruner = make_pruner(targets, steps=10)
    for step in range(12):
        pruner.sample_()
        backward_gates(pruner.declaration, seed=step)
        pruner.step_()
    pruner.sample_()
    named = pruner.statistics(pruner.binarise_())
    for prefix, target in targets.items():
        assert named[f"expected_sparsity[{prefix}]"] == pytest.approx(
            target, abs=0.02
        )
        assert named[f"realised_sparsity[{prefix}]"] >= target


def test_statistics_name_numbers(make_pruner):
    pruner = make_pruner()
    pruner.step = 10
    named = pruner.statistics(pruner.binarise_())
    assert {"target_sparsity", "parameters", "shift_0"} <= named.keys()
    assert all(isinstance(value, float) for value in named.values())
    assert named["parameters"] == pytest.approx(
        pruner.groups[0].dense * (1 - named["realised_sparsity"])
    )


def test_state_of_another_architecture(make_pruner, make_asr):
    declaration = conformer_structures(make_asr(layers=3))
    larger = Pruner(declaration, ParameterBudget(0.5))
    with pytest.raises(ValueError, match="made for another architecture"):
        larger.load_state_dict(make_pruner().state_dict())


def test_state_of_other_structures_of_the_same_size(make_pruner):
    state = make_pruner().state_dict()
    state["units"] = {f"student.{n}": u for n, u in state["units"].items()}
    with pytest.raises(ValueError, match="made for another architecture"):
        make_pruner().load_state_dict(state)


def test_unreachable_target(make_pruner):
    with pytest.raises(ValueError, match="target: 0.9 cannot be reached"):
        make_pruner(0.9, kinds=["heads"])


def test_open_layers_are_known_without_asking_the_device(make_asr):
    """Nothing can be read back from the meta device."""
    model = make_asr(layers=3).to("meta")
    declaration = conformer_structures(model)
    pruner = Pruner(declaration, ParameterBudget(0.5))
    pruner.attach_()
    names = [*declaration.layers, "encoder.norm"]
    assert pruner.open_modules(names) == [True] * 4
    plan = full_plan(declaration)
    plan.keep["encoder.layers.1"][:] = False
    pruner.binarise_(plan)
    assert pruner.open_modules(names) == [True, False, True, True]
    pruner.sample_()
    assert pruner.open_modules(names)[3]


def made(model, kinds, steps=100, start=0.5, target=0.3, **options):
    """A pruner whose gates are measured first."""
    pruner = Pruner(
        conformer_structures(model, kinds),
        ParameterBudget(target),
        LinearSchedule(steps, start=start),
        first_score=taylor_score,
        **options,
    )
    pruner.attach_()
    return pruner


def measured(pruner, backward_gates, steps):
    for step in range(steps):
        pruner.sample_()
        backward_gates(pruner.declaration, seed=step)
        pruner.step_()
    return pruner


def test_a_cut_before_the_schedule_rises_is_of_the_first_score(
    make_asr, backward_gates
):
    pruner = made(make_asr(), ["ffn_units"])
    measured(pruner, backward_gates, 20)
    assert not pruner.rises()
    plan = pruner.plan(final=True)
    kept = plan.values(pruner.declaration).bool()
    assert not kept.all()
    assert pruner.saliency[kept].min() > pruner.saliency[~kept].max()


@pytest.mark.parametrize("steps", [30, 100, 25_000])
def test_the_lagrangian_begins_where_the_schedule_is(
    make_asr, backward_gates, steps
):
    pruner = made(
        make_asr(), ["ffn_units"], steps, controller=AugmentedLagrangian()
    )
    measured(pruner, backward_gates, 10)
    pruner.step = steps // 2 + 1
    pruner.sample_()
    scheduled, found = expected(pruner)
    limit = max(scheduled, 0.01)
    assert 0 < scheduled < 0.02
    assert 0.9 * limit < found <= limit
    assert len(pruner.logits.unique()) == len(pruner.logits)
    ranks = pruner.logits.detach().argsort()
    assert torch.equal(ranks, pruner.saliency.argsort())


def test_nothing_is_expected_to_be_gone_while_gates_are_open(make_pruner):
    pruner = make_pruner()
    assert expected(pruner) == (0.0, 0.0)


def test_a_single_unit_has_a_first_score(make_asr, backward_gates):
    pruner = made(make_asr(layers=1), ["conv_modules"], target=0.05)
    assert pruner.declaration.total_units == 1
    measured(pruner, backward_gates, 52)
    assert torch.isfinite(pruner.logits).all()


def test_gates_may_have_a_bound_below_the_usual_start(make_asr):
    pruner = made(make_asr(), ["ffn_units"], gates=HardConcrete(bound=2.5))
    assert (pruner.logits == 2.5).all()
    with pytest.raises(ValueError, match="initial: 0.99 lies beyond bound"):
        HardConcrete(bound=2.5, initial=0.99)
