"""Real speed of a pruned Whisper-base, and of a context shorter than 30 s.

    python tests/benchmarks/whisper_speed.py [--full]

One utterance of 10 s, two threads: the encoder, then 40 tokens, decoded
greedily with a cache. Dense with 30 s of context, dense with that of the
utterance and 2 s, and this cut at random to half of encoder and decoder, all
timed in turns; `--full` takes more turns. `context_speedup` is that of the
context alone, `cut_speedup` that of the cut at the same context; its efficiency
is the speed-up times the MACs left, with those of the logits, which stay.
`encoder` and `decoder` are that cut alone. For each token of one utterance all
weights of the decoder are read once, with the embeddings, and few numbers
multiplied by each: `weights_left` bounds its speed-up, not the MACs. `english`
is the cut one with the tokens that English needs (`sb_prune.vocabulary`).
"""

import torch
from common import random_scores, run, whisper

from sb_prune import ParameterBudget, cut_, mac_cost, whisper_structures
from sb_prune.learn.fitting import fit_plan
from sb_prune.support.measure import measure_speed

SECONDS, MARGIN, TOKENS = 10, 2, 40
VOCABULARY, ENGLISH = 51865, 37_054  # of which the words of cmudict are made
TARGETS = {"encoder": 0.5, "decoder": 0.2}  # embeddings are half of these
KINDS = ["front_end_channels", "ffn_units", "heads", "cross_heads"]


@torch.inference_mode()
def encode(model):
    """States (1, T, d) of noise."""
    frames = 2 * model.config.max_source_positions
    return model.encoder(torch.zeros(1, 80, frames)).last_hidden_state


@torch.inference_mode()
def decode(model, encoded, tokens=TOKENS):
    """Decodes so many tokens, whatever they are."""
    token, cache = torch.ones(1, 1, dtype=torch.long), None
    embeddings = model.decoder.embed_tokens.weight
    for _ in range(tokens):
        found = model.decoder(
            token,
            encoder_hidden_states=encoded,
            use_cache=True,
            **({} if cache is None else {"past_key_values": cache}),
        )
        cache = found.past_key_values
        token = (found.last_hidden_state @ embeddings.T).argmax(-1)


def transcribe(model):
    """Encodes, and decodes."""
    decode(model, encode(model))


def measure(full):
    """Speed-ups, and what is left."""
    torch.set_num_threads(2)
    context = 50 * (SECONDS + MARGIN)
    models = {
        "30 s": whisper(vocabulary=VOCABULARY),
        "dense": whisper(vocabulary=VOCABULARY, context=context),
        "cut": whisper(vocabulary=VOCABULARY, context=context),
        "english": whisper(vocabulary=ENGLISH, context=context),
    }
    frames = 2 * context
    declaration = whisper_structures(
        models["cut"], kinds=KINDS, tokens_per_frame=TOKENS / frames
    )
    groups = ParameterBudget(TARGETS).groups(declaration)
    plan = fit_plan(declaration, groups, random_scores(declaration, 0, 0.0))
    cost = mac_cost(declaration, frames)
    dense = cost.dense() + TOKENS * 512 * VOCABULARY
    kept = float(cost.of_kept(plan.kept_counts(declaration)))
    macs = (kept + TOKENS * 512 * VOCABULARY) / dense
    english_macs = (kept + TOKENS * 512 * ENGLISH) / dense
    before, after = (_count_and_cut(models["cut"], p) for p in (None, plan))
    english = _count_and_cut(models["english"], plan)
    runs = 25 if full else 5
    speed = _taking_turns(transcribe, models, runs)
    speedup = speed["dense"] / speed["cut"]
    english_speedup = speed["dense"] / speed["english"]
    return {
        "context_speedup": round(speed["30 s"] / speed["dense"], 3),
        "cut_speedup": round(speedup, 3),
        "params_reduction": round(1 - after / before, 4),
        "macs_ratio": round(macs, 4),
        "efficiency": round(speedup * macs, 3),
        "english": {
            "speedup": round(english_speedup, 3),
            "params_reduction": round(1 - english / before, 4),
            "macs_ratio": round(english_macs, 4),
            "efficiency": round(english_speedup * english_macs, 3),
        },
        **_of_each_side(models, frames, runs),
    }


def _of_each_side(models, frames, runs):
    """Speed-up and efficiency of encoder and decoder, each alone."""
    pair = {name: models[name] for name in ("dense", "cut")}
    states = encode(models["dense"])
    sides = {
        "encoder": (encode, pair),
        "decoder": (lambda model: decode(model, states), pair),
    }
    found = {}
    for side, (run_side, both) in sides.items():
        speed = _taking_turns(run_side, both, runs)
        weights = [
            sum(p.numel() for p in getattr(m, side).parameters())
            for m in both.values()
        ]
        found[side] = {
            "speedup": round(speed["dense"] / speed["cut"], 3),
            "weights_left": round(weights[1] / weights[0], 3),
        }
    macs = [
        mac_cost(
            whisper_structures(m, kinds=KINDS[:3], sides=["encoder"]), frames
        ).dense()
        for m in pair.values()
    ]
    left = macs[1] / macs[0]
    found["encoder"]["macs_left"] = round(left, 3)
    efficiency = found["encoder"]["speedup"] * left
    found["encoder"]["efficiency"] = round(efficiency, 3)
    return found


def _taking_turns(run_one, models, runs):
    """Name -> seconds for each second of audio."""
    timed = {
        name: lambda wavs, lengths, model=model: run_one(model)
        for name, model in models.items()
    }
    return measure_speed(timed, SECONDS, runs=runs)


def _count_and_cut(model, plan):
    """Parameters of a model, which is cut to a plan before, if there is one."""
    if plan is not None:
        cut_(whisper_structures(model, kinds=KINDS), plan)
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    run(measure)
