"""What every exchangeable part must fulfil. A new one adds one row.

Rows are factories without arguments, or with the target for budgets.
"""

import io

import pytest
import torch

from sb_prune import (
    AugmentedLagrangian,
    ConstantSchedule,
    CubicSchedule,
    ExactBudget,
    HardConcrete,
    LinearSchedule,
    MACBudget,
    ParameterBudget,
    Pruner,
    conformer_structures,
)
from sb_prune.learn.fitting import fit_plan

STRAIGHT = {"straight_through": True}

GATES = {
    "hard concrete": HardConcrete,
    "straight-through": lambda: HardConcrete(**STRAIGHT),
    "narrow": lambda: HardConcrete(temperature=0.3, lower=-0.05, upper=1.2),
}
SCHEDULES = {
    "constant": ConstantSchedule,
    "linear": lambda: LinearSchedule(steps=10),
    "cubic": lambda: CubicSchedule(steps=10),
}
CONTROLLERS = {
    "exact": ExactBudget,
    "lagrangian": AugmentedLagrangian,
}
BUDGETS = {
    "parameters": ParameterBudget,
    "MACs": lambda target: MACBudget(target, frames=50),
}


def rows(table):
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def declaration(make_asr):
    return conformer_structures(make_asr())


@rows(GATES)
def test_gates_lie_between_0_and_1(make):
    sample = make().sample(torch.linspace(-4, 4, 1000), generator(0))
    assert sample.shape == (1000,)
    assert 0 <= sample.min() and sample.max() <= 1
    assert (sample == 0).any() and (sample == 1).any()


@rows(GATES)
def test_gates_are_open_as_often_as_they_say(make):
    gates = make()
    for logit in (-3.0, -0.5, 0.0, 2.0):
        logits = torch.full((200_000,), logit)
        often = (gates.sample(logits, generator(1)) > 0).double().mean()
        stated = gates.keep_probability(logits[:1]).item()
        assert often.item() == pytest.approx(stated, abs=0.005)


@rows(GATES)
def test_gates_start_where_asked(make, declaration):
    gates = make()
    gates.initial = {"default": 0.9, "heads": 0.4}
    logits = gates.initial_logits(declaration)
    pieces = declaration.split(gates.keep_probability(logits))
    for structure in declaration.structures:
        expected = 0.4 if structure.kind == "heads" else 0.9
        assert pieces[structure.name].tolist() == pytest.approx(
            [expected] * structure.units, abs=1e-5
        )


@rows(GATES)
def test_gates_learn(make):
    logits = torch.zeros(1000, requires_grad=True)
    sample = make().sample(logits, generator(2))
    sample.sum().backward()
    assert (logits.grad >= 0).all()
    assert (logits.grad > 0).float().mean() > 0.3


@rows(GATES)
def test_gates_use_the_given_generator_only(make):
    before = torch.get_rng_state()
    logits = torch.zeros(1000)
    first, again, other = (
        make().sample(logits, generator(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@rows(SCHEDULES)
def test_schedules_rise_to_1(make):
    schedule = make()
    steps = range(schedule.steps + 20)
    fractions = [schedule.fraction(step) for step in steps]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert fractions == sorted(fractions)
    assert set(fractions[schedule.steps :]) == {1.0}


class Control:
    """A controller on two groups of three gates with costs of their own."""

    members = torch.arange(6).view(1, 6) // 3 == torch.tensor([[0], [1]])
    prices = torch.tensor([1.0, 2.0, 3.0, 1.0, 5.0, 1.0]).double()
    targets = torch.tensor([0.4, 0.7]).double()

    def __init__(self, controller):
        self.controller = controller
        self.logits = torch.linspace(-1, 1, 6).requires_grad_()

    def sparsity(self, logits):
        kept = self.members * self.prices * logits.sigmoid()
        return 1 - kept.sum(1) / (self.members * self.prices).sum(1)

    def __call__(self):
        return self.controller(
            self.logits, self.sparsity, self.members, self.targets
        )

    def walk(self, steps):
        for _ in range(steps):
            logits, penalty = self()
            self.logits.grad = None
            (logits.square().sum() + penalty).backward()
            with torch.no_grad():
                self.logits -= 0.1 * self.logits.grad
            expected = self.sparsity(self.logits).detach()
            self.controller.step_(expected, self.targets)
        return self()


@rows(CONTROLLERS)
def test_controllers_answer_with_logits_and_a_penalty(make):
    control = Control(make())
    logits, penalty = control()
    assert logits.shape == control.logits.shape
    assert penalty.shape == ()
    (logits.sum() + penalty).backward()
    assert torch.isfinite(control.logits.grad).all()


@rows(CONTROLLERS)
def test_controllers_resume_bit_for_bit(make):
    whole, first, second = (Control(make()) for _ in range(3))
    whole.walk(5)
    first.walk(5)
    with torch.no_grad():
        second.logits.copy_(first.logits)
    second.controller.load_state_dict(stored(first.controller.state_dict()))
    for after, expected in zip(second.walk(5), whole.walk(5)):
        assert torch.equal(after, expected)


@rows(CONTROLLERS)
def test_controllers_may_be_stored_before_their_first_step(make):
    fresh = make()
    fresh.load_state_dict(stored(make().state_dict()))
    Control(fresh).walk(2)


@rows(CONTROLLERS)
def test_controllers_name_numbers_for_the_log(make):
    control = Control(make())
    assert control.controller.multipliers() == {}
    control.walk(2)
    named = control.controller.multipliers()
    assert len(named) >= 2
    assert all(isinstance(value, float) for value in named.values())


@rows(BUDGETS)
@pytest.mark.parametrize("target", [0.0, 1.0, 1.5, -0.1])
def test_budgets_refuse_what_is_no_sparsity(make, target):
    with pytest.raises(ValueError, match=f"target: {target}; .*between 0 and"):
        make(target)


@rows(BUDGETS)
def test_budgets_name_the_group_of_a_bad_target(make):
    with pytest.raises(ValueError, match="target: encoder.layers.1: 2"):
        make({"encoder.layers.0": 0.5, "encoder.layers.1": 2})


@rows(BUDGETS)
def test_budgets_refuse_the_unreachable(make, make_asr):
    heads = conformer_structures(make_asr(), kinds=["heads"])
    with pytest.raises(ValueError, match="target: 0.9 cannot.*at most 0"):
        make(0.9).groups(heads)


@rows(BUDGETS)
def test_budgets_refuse_a_prefix_without_structures(make, declaration):
    with pytest.raises(ValueError, match="no structure lies below 'decoder'"):
        make({"encoder": 0.5, "decoder": 0.5}).groups(declaration)


@rows(BUDGETS)
def test_budgets_refuse_structures_in_no_group(make, declaration):
    with pytest.raises(ValueError, match="layers.1 lies in no group"):
        make({"encoder.layers.0": 0.5}).groups(declaration)


@rows(BUDGETS)
def test_budgets_refuse_structures_in_two_groups(make, declaration):
    with pytest.raises(ValueError, match="must lie in one group"):
        make({"encoder": 0.5, "encoder.layers.0": 0.4}).groups(declaration)


@rows(BUDGETS)
def test_budgets_count_the_dense_model_as_0(make, declaration):
    (group,) = make(0.5).groups(declaration)
    dense = group.cost.expected(torch.ones(declaration.total_units))
    assert group.sparsity(float(dense)) == 0
    assert group.members.all()


@rows(BUDGETS)
def test_budgets_are_kept_per_group(make, declaration):
    targets = {"encoder.layers.0": 0.3, "encoder.layers.1": 0.8}
    groups = make(targets).groups(declaration)
    scores = torch.rand(declaration.total_units, generator=generator(5))
    plan = fit_plan(declaration, groups, scores)
    for group in groups:
        left = float(group.cost.of_kept(plan.kept_counts(declaration)))
        assert 0 <= group.sparsity(left) - targets[group.prefix] < 0.05


def stored(state):
    """A state after a trip through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@rows(CONTROLLERS)
def test_pruner_resumes_bit_for_bit(make, make_asr, backward_gates):
    def pruner():
        made = Pruner(
            conformer_structures(make_asr()),
            ParameterBudget(0.6),
            LinearSchedule(steps=12),
            HardConcrete(),
            make(),
            lambda parameters: torch.optim.Adam(parameters, lr=0.05),
        )
        made.attach_()
        return made

    def walk(pruner, steps):
        for _ in range(steps):
            pruner.sample_()
            backward_gates(pruner.declaration, pruner.step)
            pruner.step_()

    whole, first, second = pruner(), pruner(), pruner()
    walk(whole, 16)
    walk(first, 7)
    second.load_state_dict(stored(first.state_dict()))
    walk(second, 9)
    assert torch.equal(second.logits, whole.logits)
    assert second.plan().to_dict() == whole.plan().to_dict()
    for a, b in zip(second.targets(), whole.targets()):
        assert a == b
