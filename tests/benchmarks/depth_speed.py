"""Is an encoder without its last layers as much faster as it is smaller?

    python tests/benchmarks/depth_speed.py [--full]

wav2vec2-base cut to its first 9, 6, 3 and 1 layers of 12, one utterance of
10 s, two threads, the dense model and the cut ones (as exported) timed in
turns; `--full` takes more turns. Efficiency is speed-up times MACs left: 1
where time falls as the MACs do. The top level repeats six layers.
"""

from functools import partial

from common import compare_speed, run
from transformers import Wav2Vec2Config, Wav2Vec2Model

from sb_prune import layer_structures, wav2vec2_structures
from sb_prune.architectures.whole_layers import layer_plan

LAYERS = 12
DEPTHS = (9, 6, 3, 1)


def cut_to(depth, model):
    """What keeps the first layers of a model."""
    declaration = layer_structures(model, wav2vec2_structures)
    keep = [layer < depth for layer in range(LAYERS)]
    return declaration, layer_plan(declaration, keep)


def measure(full):
    """Shares and speed-ups of each depth."""
    cuts = {str(depth): partial(cut_to, depth) for depth in DEPTHS}
    found = compare_speed(lambda: Wav2Vec2Model(Wav2Vec2Config()), cuts, full)
    return {**found["6"], **found}


if __name__ == "__main__":
    run(measure)
