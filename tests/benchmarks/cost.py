"""Analytic cost against the real tensors and the op-level counter.

    python tests/benchmarks/cost.py [--full]

Dense and cut at random plans, every attention type, causal or not.
"""

import copy

import torch
from common import ATTENTIONS, conformer, random_scores, run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sb_prune import (
    ParameterBudget,
    conformer_structures,
    cut_,
    mac_cost,
    parameter_cost,
)
from sb_prune.fitting import fit_plan
from sb_prune.plan import full_plan


def errors(dense, target, frames):
    """Relative errors of parameters and MACs at one plan; target 0: dense."""
    model = copy.deepcopy(dense).eval()
    declaration = conformer_structures(model)
    plan = full_plan(declaration)
    if target:
        groups = ParameterBudget(target).groups(declaration)
        scores = random_scores(declaration, seed=int(100 * target))
        plan = fit_plan(declaration, groups, scores)
    kept = plan.kept_counts(declaration)
    parameters = float(parameter_cost(declaration).of_kept(kept))
    macs = float(mac_cost(declaration, frames).of_kept(kept))
    cut_(declaration, plan)
    counted = sum(p.numel() for p in model.encoder.parameters())
    return (
        abs(parameters / counted - 1),
        abs(macs / counted_macs(model, frames) - 1),
    )


def counted_macs(model, frames):
    """MACs of the encoder, op by op, for one utterance."""
    source = torch.randn(1, frames, model.encoder.norm.norm.weight.numel())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.encode(source)
    return sum(counter.get_flop_counts()["ConformerEncoder"].values()) / 2


def measure(full):
    """Largest relative errors over all cases."""
    shape = {} if full else {"layers": 3, "width": 64, "hidden": 128}
    frames = 250 if full else 50
    found = []
    for attention in ATTENTIONS:
        for causal in (False, True):
            dense = conformer(attention=attention, causal=causal, **shape)
            for target in (0, 0.3, 0.5, 0.7, 0.9):
                found.append(errors(dense, target, frames))
    parameters, macs = zip(*found)
    return {
        "cases": len(found),
        "max_rel_error_params": max(parameters),
        "max_rel_error_macs": max(macs),
    }


if __name__ == "__main__":
    run(measure)
