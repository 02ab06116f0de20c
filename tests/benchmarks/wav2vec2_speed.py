"""Real speed of a pruned wav2vec2-base, beside the share of MACs left.

    python tests/benchmarks/wav2vec2_speed.py [--full]

72% of all parameters gone, 61% of the front-end's among them, at random:
`all_kinds` cuts whole modules and layers too, as the presets do, `slices` only
heads, FFN units and channels, both channels in multiples of 64; `any_channels`
is `slices` without that, `even` has lost 72% of the front-end too. One
utterance of 10 s, two threads, the dense model and the cut ones (as exported)
timed in turns; `--full` takes more turns. Efficiency is speed-up times MACs
left. The top level repeats `all_kinds`.
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
SLICES = ["front_end_channels", "heads", "ffn_units"]
APART = {"feature_extractor": 0.61, "encoder": 0.73}
PLANS = {  # name -> target, kinds, multiple of the channels
    "all_kinds": (APART, None, 64),
    "slices": (APART, SLICES, 64),
    "any_channels": (APART, SLICES, 1),
    "even": (0.72, SLICES, 1),
}


def cut(target, kinds, multiple):
    """A cut model, and the shares that are left."""
    model = wav2vec2_base()
    declaration = wav2vec2_structures(model, kinds, channel_multiple=multiple)
    groups = ParameterBudget(target).groups(declaration)
    scores = random_scores(declaration, seed=0, spread=float(kinds is None))
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
    """Shares and speed-ups of each plan."""
    torch.set_num_threads(2)
    models, left = {"dense": wav2vec2_base()}, {}
    for name, plan in PLANS.items():
        models[name], left[name] = cut(*plan)
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
    return {**found["all_kinds"], **found}


if __name__ == "__main__":
    run(measure)
