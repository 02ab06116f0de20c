"""Masked by a binary plan against really cut: largest difference.

    python tests/benchmarks/export_exactness.py [--full]

Every attention type, causal or not, over random plans; `--full` has the shape
of Conformer-small and more plans.
"""

import copy

import torch
from common import ATTENTIONS, conformer, random_scores, run

from sb_prune import ParameterBudget, attach_, conformer_structures, cut_
from sb_prune.fitting import fit_plan
from sb_prune.masking import detach_

TARGETS = (0.3, 0.5, 0.7, 0.9)


@torch.no_grad()
def difference(dense, target, seed, frames=100):
    """Largest difference of one random plan at one target."""
    model = copy.deepcopy(dense).eval()
    declaration = conformer_structures(model)
    groups = ParameterBudget(target).groups(declaration)
    plan = fit_plan(declaration, groups, random_scores(declaration, seed))
    source = torch.randn(3, frames, model.encoder.norm.norm.weight.numel())
    lengths = torch.tensor([1.0, 0.8, 0.5])
    attach_(declaration).set_(plan.values(declaration))
    masked = model.encode(source, lengths)
    detach_(model)
    cut_(declaration, plan)
    return (masked - model.encode(source, lengths)).abs().max().item()


def measure(full):
    """Largest difference over all cases."""
    shape = {} if full else {"layers": 3, "width": 64, "hidden": 128}
    found = []
    for attention in ATTENTIONS:
        for causal in (False, True):
            dense = conformer(attention=attention, causal=causal, **shape)
            for target in TARGETS:
                for seed in range(5 if full else 3):
                    found.append(difference(dense, target, seed))
    return {"cases": len(found), "max_abs_diff": max(found)}


if __name__ == "__main__":
    run(measure)
