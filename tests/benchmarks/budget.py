"""Where pruning runs land, and how closely they follow their schedule.

    python tests/benchmarks/budget.py [--full]

A small Conformer learns to imitate another, randomly drawn, while it is
pruned over 300 steps. The
landing error is what the budget leaves unused, in units of the cheapest open
leaf: below 1 is as close as a plan can be. The tracking error is the largest
|expected - scheduled| sparsity.
"""

from functools import partial

import torch
from common import conformer, landing_error, run

from sb_prune import (
    AugmentedLagrangian,
    ExactBudget,
    HardConcrete,
    LinearSchedule,
    MACBudget,
    ParameterBudget,
    Pruner,
    conformer_structures,
)
from sb_prune.declare.plan import full_plan

STEPS, AFTER, POINTS = 300, 60, 20
FRAMES = 50
TARGETS = (0.3, 0.5, 0.7, 0.9)


def prune(budget, controller, shape):
    """A pruned run: the pruner and its curve of (scheduled, expected)."""
    model, teacher = conformer(**shape, seed=0), conformer(**shape, seed=1)
    pruner = Pruner(
        conformer_structures(model),
        budget,
        LinearSchedule(STEPS),
        HardConcrete(straight_through=True),
        controller,
        partial(torch.optim.Adam, lr=0.02),
    )
    pruner.attach_()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    curve = []
    for step in range(STEPS + AFTER):
        generator = torch.Generator().manual_seed(step)
        source = torch.randn(2, FRAMES, shape["width"], generator=generator)
        with torch.no_grad():
            wanted = teacher.eval().encode(source)
        pruner.sample_()
        curve.append(position(pruner))
        (model.encode(source) - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step_()
    return pruner, curve


def position(pruner):
    """(scheduled, expected) sparsity of what was just sampled."""
    named = pruner.statistics(full_plan(pruner.declaration))
    if not named["target_sparsity"]:
        return 0.0, 0.0  # gates are held open, whatever their logits
    return named["target_sparsity"], named["expected_sparsity"]


def measure(full):
    """Landing and tracking errors over targets, units and controllers."""
    shape = {"layers": 6 if full else 2, "width": 144 if full else 32}
    shape |= {"hidden": 576 if full else 64, "kernel": 31 if full else 7}
    budgets = [ParameterBudget, partial(MACBudget, frames=FRAMES)]
    landings, curves, worst = [], {}, {}
    for make in (ExactBudget, AugmentedLagrangian):
        errors = []
        for kind in budgets if make is ExactBudget else budgets[:1]:
            for target in TARGETS:
                pruner, curve = prune(kind(target), make(), shape)
                plan, (group,) = pruner.plan(final=True), pruner.groups
                landings.append(landing_error(pruner.declaration, group, plan))
                errors += [abs(s - t) for t, s in curve]
                name = f"{make.__name__} {pruner.budget.unit} {target}"
                every = max(1, len(curve) // POINTS)
                curves[name] = [
                    [round(value, 4) for value in point]
                    for point in curve[::every] + curve[-1:]
                ]
        worst[make] = max(errors)
    return {
        "max_landing_error_units": max(landings),
        "max_tracking_error": worst[ExactBudget],
        "lagrangian_max_tracking_error": worst[AugmentedLagrangian],
        "steps": STEPS,
        "curves": curves,
    }


if __name__ == "__main__":
    run(measure)
