"""Real speed of a HuBERT Base whose heads became unequal.

    python tests/benchmarks/fine_grained_speed.py [--full]

72% of all parameters gone at random, dims inside heads among them: `slices`
cuts channels (in multiples of 64), heads, their dims and FFN units, `all_kinds`
whole modules and layers too, as the preset does; `coarse` is `slices` without
dims. One utterance of 10 s, two threads, the dense model and the cut ones (as
exported) timed in turns; `--full` takes more turns. Efficiency is speed-up
times MACs left. The top level repeats `all_kinds`.

`loop_over_buckets` is one attention of unequal heads (768 dims, 500 frames,
one thread): time of a loop over heads, over that of
`sb_prune.cut.modules.heads`.
"""

from statistics import median
from time import perf_counter

import torch
from common import compare_speed, random_cut, run
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel

from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.architectures.wav2vec2 import KINDS
from sb_prune.cut.modules.heads import HeadLayout, attend

SLICES = ("front_end_channels", "heads", "ffn_units")
APART = {"feature_extractor": 0.61, "encoder": 0.73}
CUTS = {  # of target, kinds, multiple of the channels
    "slices": random_cut(APART, [*SLICES, *INSIDE_HEADS], 64),
    "all_kinds": random_cut(APART, [*KINDS, *INSIDE_HEADS], 64),
    "coarse": random_cut(APART, [*SLICES], 64),
}
FRAMES, HEADS, WIDTH = 500, 12, 64


def loop(query, key, value, widths, scale):
    """`attend`, head by head."""
    pieces = (x.split(w, -1) for x, w in zip((query, key, value), widths))
    heads = [
        F.scaled_dot_product_attention(*(x[:, None] for x in head), scale=scale)
        for head in zip(*pieces)
    ]
    return torch.cat(heads, dim=-1).squeeze(1)


@torch.no_grad()
def loop_over_buckets(turns):
    """Time of the loop, divided by that of the buckets."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(8, WIDTH + 1, (2, HEADS), generator=generator)
    query_key, value = (tuple(widths) for widths in drawn.tolist())
    q, k = torch.randn(2, 1, FRAMES, sum(query_key), generator=generator)
    v = torch.randn(1, FRAMES, sum(value), generator=generator)
    scale = WIDTH**-0.5
    layout = HeadLayout(query_key, value)
    ways = {
        "loop": lambda: loop(q, k, v, (query_key, query_key, value), scale),
        "buckets": lambda: attend(q, k, v, layout, scale),
    }
    assert torch.allclose(*(way() for way in ways.values()), atol=1e-5)
    times = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            start = perf_counter()
            way()
            times[name].append(perf_counter() - start)
    return round(median(times["loop"]) / median(times["buckets"]), 3)


def measure(full):
    """Shares and speed-ups of each plan, and the loop beside the buckets."""
    found = compare_speed(lambda: HubertModel(HubertConfig()), CUTS, full)
    ratio = loop_over_buckets(400 if full else 50)
    return {**found["all_kinds"], **found, "loop_over_buckets": ratio}


if __name__ == "__main__":
    run(measure)
