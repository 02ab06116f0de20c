"""Weights that are refitted before the cut, in every architecture."""

import pytest
import torch
from rounding import assert_exact
from test_architectures import BUILDS

from sb_prune import LeastSquares, attach_, cut_, detach_
from sb_prune.declare.plan import Plan, full_plan

# torch's own attention, which WavLM uses too, never calls its `out_proj`
NEVER_CALLED = {"WavLM": ".attention.out_proj.weight"}


def half_of_the_units(declaration):
    """Every second unit stays, in every head that holds some."""
    keep = full_plan(declaration).keep
    for structure in declaration.structures:
        if structure.is_leaf:
            kept = keep[structure.name]
            for inside in declaration.by_holder(structure, kept):
                inside[1::2] = False
    return Plan(keep)


def reading(declaration):
    """Names of weights whose columns read units that are cut."""
    return {
        mask.tensor
        for structure in declaration.structures
        for mask in structure.masks
        if structure.is_leaf and mask.dim == 1
    }


def counts(declaration, plan):
    """How many units stay, inside each unit of a holder too."""
    return {
        s.name: plan.kept_inside(s, declaration).tolist()
        for s in declaration.structures
    }


@pytest.mark.parametrize("reselect", [False, True])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_all_that_reads_what_goes_is_refitted(
    make_model, compute, build, reselect
):
    model = build.make(make_model)
    never = NEVER_CALLED.get(build.options.get("family"), "nothing")
    declaration = build.declare(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plan = half_of_the_units(declaration)
    gates = attach_(declaration)
    refit = LeastSquares(utterances=2, reselect=reselect)
    chosen, fitted = refit.refit_(
        declaration,
        plan,
        lambda plan: gates.set_(plan.values(declaration)),
        [lambda n=n: compute(model, n) for n in (1, 2)],
    )
    masked = compute(model).detach()
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(weight)] for weight in fitted}
    wanted = {
        name
        for name in reading(declaration)
        if not name.endswith((".att.out_proj.weight", never))
    }
    assert found == wanted
    changed = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert changed == found
    assert reselect or chosen is plan
    assert counts(declaration, chosen) == counts(declaration, plan)
    detach_(model)
    cut_(declaration, chosen)
    assert_exact(masked, compute(model).detach())
