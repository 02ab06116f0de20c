#!/usr/bin/env python3
"""Trains, prunes and compares small Conformers on synthesised speech.

Some six minutes on two CPU cores; sb_prune/demo/command.py says how. The same
command continues a demo that was stopped.

To run this demo:
> python demo.py results/demo
"""

from pathlib import Path

from sb_prune.demo.command import demonstrate
from sb_prune.demo.corpus import synthesise_librispeech
from sb_prune.demo.recipe import ASRDemo


class ConformerDemo(ASRDemo):
    """demo_train.yaml against demo_prune.yaml."""

    script = Path(__file__).resolve().with_name("train.py")
    dense = "demo_train.yaml"
    pruned = "demo_prune.yaml"
    inference = "inference_ctc.yaml"
    encoder = "Transformer.encoder"
    debug_model = {
        "d_model": 32,
        "num_encoder_layers": 2,
        "d_ffn": 64,
        "output_neurons": 40,
        "max_batch_length": 12,
        "number_of_epochs": 2,
        "total_steps": 20,
        "warmup_steps": 2,
        "cooldown_steps": 4,
    }
    debug_pruning = {"prune_epochs": 1, "schedule_steps": 3}

    def prepare(self, folder, seed, debug_size):
        """Synthesises the corpus."""
        corpus = folder / "corpus"
        sizes = (24, 8, 8) if debug_size else ()
        synthesise_librispeech(corpus, seed, *sizes)
        return {"data_folder": corpus}


if __name__ == "__main__":
    demonstrate(ConformerDemo(), __doc__.splitlines()[0])
