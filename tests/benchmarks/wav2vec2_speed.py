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

from common import compare_speed, random_cut, run
from transformers import Wav2Vec2Config, Wav2Vec2Model

SLICES = ["front_end_channels", "heads", "ffn_units"]
APART = {"feature_extractor": 0.61, "encoder": 0.73}
CUTS = {  # of target, kinds, multiple of the channels
    "all_kinds": random_cut(APART, None, 64),
    "slices": random_cut(APART, SLICES, 64),
    "any_channels": random_cut(APART, SLICES, 1),
    "even": random_cut(0.72, SLICES, 1),
}


def measure(full):
    """Shares and speed-ups of each plan."""
    found = compare_speed(lambda: Wav2Vec2Model(Wav2Vec2Config()), CUTS, full)
    return {**found["all_kinds"], **found}


if __name__ == "__main__":
    run(measure)
