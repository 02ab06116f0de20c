"""Memory that loading a pruned encoder takes, beside the encoder's own size.

    python tests/benchmarks/load_memory.py [--full]

An exported wav2vec2 encoder is loaded in a fresh process, offline, by the lobe
that takes its place in a recipe. Counted is how far resident memory grows at
its peak after all imports and a first operation of torch, every weight read
once. `--full` has the shape of wav2vec2-base, pruned by 72%.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import random_scores, run
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from sb_prune import ParameterBudget, cut_, wav2vec2_structures
from sb_prune.export.hugging_face import write_config, write_weights
from sb_prune.learn.fitting import fit_plan

SMALL = {"num_hidden_layers": 4, "conv_dim": (128,) * 7}
LOAD = """
import sys
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model
from sb_prune import lobes
from sb_prune.support.memory import forget_peak

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    found = next(line for line in lines if line.startswith(field + ":"))
    return int(found.split()[1]) * 1024

torch.nn.functional.gelu(torch.ones(8))  # torch sets up its kernels
forget_peak()
before = resident("VmRSS")
lobe = lobes.Wav2Vec2(sys.argv[1], sys.argv[1])
with torch.no_grad():
    sum(float(p.sum()) for p in lobe.parameters())
print(resident("VmHWM") - before)
"""


def export(folder, shape):
    """Writes a pruned encoder; returns its size in bytes."""
    torch.manual_seed(0)
    dense = folder / "dense"
    Wav2Vec2Model(Wav2Vec2Config(**shape)).save_pretrained(dense)
    Wav2Vec2FeatureExtractor().save_pretrained(dense)
    lobe = Wav2Vec2(str(dense), str(dense))
    declaration = wav2vec2_structures(lobe.model)
    groups = ParameterBudget(0.72).groups(declaration)
    plan = fit_plan(declaration, groups, random_scores(declaration, seed=0))
    cut_(declaration, plan)
    (folder / "small").mkdir()
    weights = write_weights(folder / "small", lobe)
    kinds = sorted({s.kind for s in declaration.structures})
    cut = {"structures": "wav2vec2_structures", "kinds": kinds}
    edits = [{"cut": {**cut, "plan": plan.to_dict()}}, {"fold": {}}]
    write_config(folder / "small", lobe, edits)
    return (folder / "small" / weights).stat().st_size


def measure(full):
    """Megabytes of the encoder, of the peak, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        size = export(Path(folder), {} if full else SMALL)
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD, Path(folder, "small")],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    peak = int(loaded.stdout.split()[-1])
    return {
        "model_mb": round(size / 1e6, 2),
        "peak_mb": round(peak / 1e6, 2),
        "ratio": round(peak / size, 3),
    }


if __name__ == "__main__":
    run(measure)
