"""Real speed of a pruned wav2vec2-base, beside the share of MACs left.

    python tests/benchmarks/wav2vec2_speed.py [--full]

72% of all parameters gone, at random positions: `front_end` has half of the
front-end's parameters and the rest from heads and FFN units, `even` cuts all
three alike. One utterance of 10 s, two threads, the dense model and both cut
ones (as exported) timed in turns; `--full` takes more turns. Efficiency is
speed-up times MACs left. The top level repeats `front_end`.
"""

import torch
from common import random_scores, run
from transformers import Wav2Vec2Config, Wav2Vec2Model

from sb_prune import (
    ParameterBudget,
    cut_,
    mac_cost,
    parameter_cost,
    wav2vec2_structures,
)
from sb_prune.fitting import fit_plan
from sb_prune.folding import fold_
from sb_prune.measure import measure_speed

SECONDS = 10
KINDS = ["front_end_channels", "heads", "ffn_units"]
TARGETS = {
    "front_end": {"feature_extractor": 0.5, "encoder": 0.7325},
    "even": 0.72,
}


def cut(target):
    """A cut model, and the shares that are left."""
    model = wav2vec2_base()
    declaration = wav2vec2_structures(model, KINDS)
    groups = ParameterBudget(target).groups(declaration)
    scores = random_scores(declaration, seed=0, spread=0.0)
    plan = fit_plan(declaration, groups, scores)
    kept = plan.kept_counts(declaration)
    left = [
        float(cost.of_kept(kept)) / cost.dense()
        for cost in (
            parameter_cost(declaration),
            mac_cost(declaration, 16000 * SECONDS),
        )
    ]
    cut_(declaration, plan)
    fold_(model)
    return model, left


def wav2vec2_base():
    """Of random weights."""
    torch.manual_seed(0)
    return Wav2Vec2Model(Wav2Vec2Config()).eval()


def encoder(model):
    """What `measure_speed` calls."""
    return lambda wavs, lengths: model(wavs).last_hidden_state


def measure(full):
    """Shares and speed-ups of both plans."""
    torch.set_num_threads(2)
    models, left = {"dense": wav2vec2_base()}, {}
    for name, target in TARGETS.items():
        models[name], left[name] = cut(target)
    speed = measure_speed(
        {name: encoder(model) for name, model in models.items()},
        SECONDS,
        runs=25 if full else 5,
    )
    found = {}
    for name, (parameters, macs) in left.items():
        speedup = speed["dense"] / speed[name]
        found[name] = {
            "params_reduction": round(1 - parameters, 4),
            "macs_ratio": round(macs, 4),
            "speedup": round(speedup, 3),
            "efficiency": round(speedup * macs, 3),
        }
    return {**found["front_end"], **found}


if __name__ == "__main__":
    run(measure)
