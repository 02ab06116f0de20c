#!/usr/bin/env python3
"""Trains, prunes and compares small wav2vec 2.0 encoders with CTC.

About 25 minutes on two CPU cores, on synthesised speech: demo_encoder.yaml
makes the encoder that the three models start from, and
sb_prune/demo/command.py says what follows. The same command continues a
demo that was stopped.

To run this demo:
> python demo.py results/demo-wav2vec2
"""

from pathlib import Path

from sb_prune.demo.command import demonstrate
from sb_prune.demo.encoder import train_encoder
from sb_prune.demo.recipe import ASRDemo


class CTCDemo(ASRDemo):
    """demo_finetune.yaml against demo_prune.yaml."""

    script = Path(__file__).resolve().with_name("train_with_wav2vec.py")
    dense = "demo_finetune.yaml"
    pruned = "demo_prune.yaml"
    inference = "inference_ctc.yaml"
    encoder = "wav2vec2"
    debug_model = {
        "number_of_epochs": 2,
        "freeze_wav2vec_steps": 0,
        "total_steps": 20,
        "warmup_steps": 2,
        "cooldown_steps": 4,
        "token_type": "unigram",
        "output_neurons": 40,
    }
    debug_pruning = {"prune_epochs": 1, "schedule_steps": 3}

    def yamls(self):
        """demo_encoder.yaml too."""
        return [*super().yamls(), self.yaml("demo_encoder.yaml")]

    def prepare(self, folder, seed, debug_size):
        """Synthesises the corpus and trains the encoder on it."""
        return train_encoder(self.script.parent, folder, seed, debug_size)


if __name__ == "__main__":
    demonstrate(CTCDemo(), __doc__.splitlines()[0])
