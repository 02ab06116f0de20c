"""Deployed models against their sources: scores, and transcripts.

    python tests/benchmarks/deploy_parity.py [--full]
        [--models NAME=EXPORT ... --labels CSV --data_folder DIR]

`max_abs_diff` is the largest difference of the states of an onnxruntime graph
from those of the cut model, relative to the largest state: Conformers of every
attention type, wav2vec 2.0, HuBERT and WavLM of every norm mode and attention,
with whole and with unequal heads, half of each gone at random, batches of 1 and
3 in three lengths. With models, each is deployed and transcribes utterances of
the manifest (`--utterances`, 200) as its export does; `token_mismatches` are
those that differ.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path

import onnxruntime
import torch
from common import random_scores
from export_exactness import cases, encode_features, encode_waveform

from sb_prune import ParameterBudget, cut_
from sb_prune.deploy import deploy
from sb_prune.deploy.adapters import traceable
from sb_prune.deploy.graphs import Input, write_graph
from sb_prune.learn.fitting import fit_plan
from sb_prune.report.compare import compare, utterances

TARGET = 0.5
FRAMES, SAMPLES = (20, 57, 130), (4000, 9123, 20001)


class Features(torch.nn.Module):
    """(features, lens) -> states of a Conformer."""

    lengths = FRAMES

    def __init__(self, model):
        super().__init__()
        self.model = model

    def size(self):
        return (self.model.encoder.norm.norm.weight.numel(),)

    def forward(self, source, lens):
        return self.model.encode(source, lens)


class Waveforms(Features):
    """(wavs, lens) -> states of a Hugging Face encoder."""

    lengths = SAMPLES

    def size(self):
        return ()

    def forward(self, source, lens):
        steps = torch.arange(source.shape[1])
        mask = steps < (lens * source.shape[1])[:, None]
        return self.model(source, attention_mask=mask).last_hidden_state


KINDS = {encode_features: Features, encode_waveform: Waveforms}


@torch.no_grad()
def difference(dense, structures, encode, folder):
    """Largest relative difference of a model that is cut at random."""
    model = copy.deepcopy(dense).eval()  # each case cuts one of its own
    declaration = structures(model)
    groups = ParameterBudget(TARGET).groups(declaration)
    plan = fit_plan(declaration, groups, random_scores(declaration, 0))
    cut_(declaration, plan)
    module, path = KINDS[encode](model), folder / "model.onnx"
    size, lengths = module.size(), module.lengths
    inputs = {
        "source": Input(torch.randn(2, lengths[1], *size), (0, 1)),
        "lens": Input(torch.tensor([1.0, 0.6]), (0,)),
    }
    write_graph(traceable(module), inputs, ["states"], path)
    session = onnxruntime.InferenceSession(path)
    torch.manual_seed(0)
    found = 0.0
    for batch in (1, 3):
        for length in lengths:
            source = torch.randn(batch, length, *size)
            lens = torch.linspace(1, 0.6, batch)
            expected = module(source, lens)
            feed = {"source": source.numpy(), "lens": lens.numpy()}
            off = torch.from_numpy(session.run(None, feed)[0]) - expected
            found = max(found, (off.abs().max() / expected.abs().max()).item())
    return found


def families(full):
    """Cases, and the largest difference of all."""
    with tempfile.TemporaryDirectory() as folder:
        found = [
            difference(*case, Path(folder))
            for case in cases(full)
            if case[-1] in KINDS
        ]
    return {"cases": len(found), "max_abs_diff": max(found)}


def transcripts(models, found, count):
    """Name -> utterances, and how many are heard otherwise."""
    result = {}
    for name, export in (model.split("=", 1) for model in models):
        with tempfile.TemporaryDirectory() as folder:
            graphs = f"{folder}/deployed"
            deploy(export, graphs)
            folders = {"export": export, "onnx": graphs}
            rows = compare(folders, found, count).rows
        export, onnx = (row.texts for row in rows)
        differ = sum(a != b for a, b in zip(export, onnx))
        result[name] = {"utterances": len(onnx), "token_mismatches": differ}
    return result


def main():
    """Compares what is asked for, and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="larger shapes")
    parser.add_argument("--models", nargs="+", help="NAME=EXPORT")
    parser.add_argument("--labels", help="CSV with wav and wrd")
    parser.add_argument("--data_folder", help="$data_root in the manifest")
    parser.add_argument("--utterances", type=int, default=200)
    given = parser.parse_args()
    if given.models:
        speech = utterances(None, given.labels, given.data_folder)
        found = transcripts(given.models, speech, given.utterances)
    else:
        torch.set_num_threads(1)
        found = families(given.full)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
