#!/usr/bin/env python3
"""Trains, prunes and compares small models of spoken language understanding.

About 25 minutes on two CPU cores, on synthesised speech: demo_encoder.yaml of
the recipe ../../LibriSpeech/ASR/CTC makes the encoder that the three models
start from, and sb_prune/demo/command.py says what follows. The same command
continues a demo that was stopped.

To run this demo:
> python demo.py results/demo-slurp
"""

import re
from pathlib import Path

from slurp_metrics import SLUStats
from speechbrain.inference.ASR import EncoderDecoderASR

from sb_prune.demo.command import demonstrate
from sb_prune.demo.encoder import train_encoder
from sb_prune.demo.recipe import Demo
from sb_prune.demo.slurp import synthesise_slurp

CTC = Path(__file__).resolve().parents[2] / "LibriSpeech/ASR/CTC"


class SLUDemo(Demo):
    """demo_finetune.yaml against demo_prune.yaml."""

    script = Path(__file__).resolve().with_name("train_with_wav2vec2.py")
    dense = "demo_finetune.yaml"
    pruned = "demo_prune.yaml"
    inference = "inference.yaml"
    interface = EncoderDecoderASR
    watched = "intent_accuracy"
    best = {"max_key": "intent_accuracy"}
    encoder = "wav2vec2"
    test_csv = "test.csv"
    text = "semantics"
    audio = "audio"
    headings = {
        "intent_accuracy": "intent accuracy (%)",
        "SLU_F1": "SLU-F1 (%)",
    }
    debug_model = {
        "number_of_epochs": 2,
        "total_steps": 20,
        "warmup_steps": 2,
        "cooldown_steps": 4,
        "output_neurons": 60,
        "max_decode_ratio": 0.2,
    }
    debug_pruning = {"prune_epochs": 1, "schedule_steps": 1}

    def yamls(self):
        """demo_encoder.yaml too."""
        return [*super().yamls(), CTC / "hparams/demo_encoder.yaml"]

    def prepare(self, folder, seed, debug_size):
        """Synthesises the commands and trains the encoder."""
        common = train_encoder(CTC, folder, seed, debug_size)
        common["data_folder"] = folder / "slurp"
        sizes = (24, 8, 8) if debug_size else ()
        synthesise_slurp(common["data_folder"], seed, *sizes)
        return common

    def figures(self, output):
        """Those of the last line of train_log.txt, which is the test's."""
        log = (output / "train_log.txt").read_text("utf-8")
        test = log.splitlines()[-1]
        return {
            name: float(re.search(rf"test {name}: ([^,\s]+)", test)[1])
            for name in self.headings
        }

    def score(self, answers):
        """The authors' metrics."""
        stats = SLUStats()
        names, references, texts = zip(*answers)
        stats.append(names, texts, references)
        figures = stats.summarize()
        return {name: figures[name] for name in self.headings}


if __name__ == "__main__":
    demonstrate(SLUDemo(), __doc__.splitlines()[0])
