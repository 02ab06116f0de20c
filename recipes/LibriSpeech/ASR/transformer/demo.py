#!/usr/bin/env python3
"""The whole story on synthesised speech: dense, pruned, compared.

To run it (`make demo` does):
> python demo.py results/demo

Two chains run side by side, one CPU thread each: the dense model and then its
pruned version, and the dense model trained for as many epochs as both. A rerun
in the same folder continues.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.checkpoints import Checkpointer

from sb_prune.report import (
    Encoder,
    format_table,
    load_dense_declaration,
    load_encoder,
    macs_per_second,
    plot_curves,
    plot_structure,
    read_log,
    real_time_factors,
    structure_table,
)
from sb_prune.snapshots import read_meta

RECIPE = Path(__file__).resolve().parent
START = time.time()

DENSE_EPOCHS, PRUNE_EPOCHS, FINETUNE_EPOCHS = 12, 6, 6
BATCHES = 94  # of training, in an epoch

# What makes the same path run in seconds
DEBUG_CORPUS = {
    "train_utterances": 24,
    "dev_utterances": 8,
    "test_utterances": 8,
}
DEBUG_MODEL = {
    "d_model": 32,
    "num_encoder_layers": 2,
    "d_ffn": 64,
    "output_neurons": 40,
    "warmup_steps": 2,
    "cooldown_steps": 4,
    "schedule_steps": 4,
}


def say(text):
    """One line of progress."""
    print(f"[{time.time() - START:5.0f} s] {text}", flush=True)


class Chain:
    """Commands that run one after the other in the background.

    Arguments
    ---------
    name : str
        For messages.
    commands : list of (str, list)
        Log file and arguments of train.py.
    """

    def __init__(self, name, commands):
        self.name = name
        self.commands = list(commands)
        self.process = None

    def advance(self):
        """Starts what is due; returns whether anything is still to do."""
        if self.process is not None:
            if self.process.poll() is None:
                return True
            if self.process.returncode:
                raise SystemExit(
                    f"{self.name} failed; the end of {self.log}:\n"
                    + "\n".join(self.log.read_text().splitlines()[-15:])
                )
        if not self.commands:
            return False
        self.log, arguments = self.commands.pop(0)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "train.py", *arguments],
                cwd=RECIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return True

    def stop(self):
        """Ends the running command."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()


def train_commands(folder, seed, debug):
    """Arguments of train.py for the three models."""

    def options(yaml, name, **values):
        values = {
            "seed": seed,
            "data_folder": folder / "corpus",
            "output_folder": folder / name,
            **values,
        }
        if debug:
            known = (RECIPE / "hparams" / yaml).read_text()
            values |= {
                k: v for k, v in DEBUG_MODEL.items() if f"\n{k}:" in known
            }
        flags = [f"--{key}={value}" for key, value in values.items()]
        return folder / f"{name}.log", [
            f"hparams/{yaml}",
            "--device=cpu",
            "--noprogressbar",
            *flags,
        ]

    dense, prune, finetune = epochs(debug)
    return (
        [
            options("demo_train.yaml", "dense", number_of_epochs=dense),
            options(
                "demo_prune.yaml",
                "pruned",
                dense_folder=folder / "dense",
                number_of_epochs=prune + finetune,
                prune_epochs=prune,
            ),
        ],
        [
            options(
                "demo_train.yaml",
                "dense_longer",
                number_of_epochs=dense + prune + finetune,
                total_steps=BATCHES * (dense + prune + finetune),
            )
        ],
    )


def epochs(debug):
    """Epochs of dense training, pruning and fine-tuning."""
    if debug:
        return 2, 1, 1
    return DENSE_EPOCHS, PRUNE_EPOCHS, FINETUNE_EPOCHS


def train(folder, seed, debug):
    """Runs both chains to their end, with a line per epoch."""
    chains = [
        Chain(name, commands)
        for name, commands in zip(
            ("dense and pruned", "dense_longer"),
            train_commands(folder, seed, debug),
        )
    ]
    shown = {}
    try:
        while any([chain.advance() for chain in chains]):
            show_epochs(folder, shown)
            time.sleep(0.5)
    finally:
        for chain in chains:
            chain.stop()
    show_epochs(folder, shown)


def show_epochs(folder, shown):
    """Prints each finished epoch of each run once."""
    for name in ("dense", "pruned", "dense_longer"):
        log = folder / name / "train_log.txt"
        errors = read_log(log).get("valid WER", {}) if log.is_file() else {}
        for epoch in sorted(set(errors) - shown.setdefault(name, set())):
            say(f"{name}: epoch {epoch}, valid WER {errors[epoch]:.2f}%")
            shown[name].add(epoch)


def load_dense(run):
    """The dense model of a run, for inference.

    Arguments
    ---------
    run : Path
        Output folder of train.py.

    Returns
    -------
    Encoder
        From waveforms to log-probabilities.
    """
    inference = RECIPE / "hparams/inference_ctc.yaml"
    with open(run / "hyperparams.yaml") as file:
        trained = load_hyperpyyaml(file)
    wanted = re.findall(r"^(\w+): !PLACEHOLDER", inference.read_text(), re.M)
    with open(inference) as file:
        hparams = load_hyperpyyaml(file, {k: trained[k] for k in wanted})
    Checkpointer(
        run / "save",
        {"model": hparams["model"], "normalizer": hparams["normalize"]},
    ).recover_if_possible(min_key="WER")
    return Encoder(modules=hparams["modules"], hparams=hparams)


def compare(folder, seed, debug):
    """Measures the three models in one process.

    Arguments
    ---------
    folder : Path
        Of the demo.
    seed : int
    debug : bool

    Returns
    -------
    dict
        What report.json holds.
    """
    torch.set_num_threads(1)
    dense, prune, finetune = epochs(debug)
    models = {
        "dense": (load_dense(folder / "dense"), dense),
        "dense_longer": (
            load_dense(folder / "dense_longer"),
            dense + prune + finetune,
        ),
        "pruned": (
            load_encoder(folder / "pruned/export"),
            dense + prune + finetune,
        ),
    }
    speeds = real_time_factors({k: m for k, (m, _) in models.items()})
    meta = read_meta(folder / "pruned/save/cut")
    report = {"seed": seed, "export_max_abs_diff": meta["difference"]}
    for name, (model, count) in models.items():
        encoder = next(
            m for m in model.modules() if type(m).__name__ == "ConformerEncoder"
        )
        report[name] = {
            "wer": word_error_rate(folder / name),
            "encoder_params": _size(encoder),
            "total_params": _size(model),
            "gmacs_per_second": macs_per_second(model) / 1e9,
            "rtf": speeds[name],
            "epochs": count,
        }
    return report


def _size(module):
    return sum(p.numel() for p in module.parameters())


def word_error_rate(run):
    """Test WER of a run in %, from the file that its evaluation wrote."""
    text = (run / "wer_test-clean.txt").read_text()
    return float(re.search(r"%WER ([\d.]+)", text).group(1))


def draw(folder):
    """structure.png and curves.png of the pruned run."""
    declaration, plan = load_dense_declaration(folder / "pruned/export")
    table = structure_table(declaration, plan)
    plot_structure(table, folder / "structure.png")
    log = read_log(folder / "pruned/train_log.txt")
    plot_curves(log, folder / "curves.png")


def transcribe(folder):
    """Lets SpeechBrain's own interface read one test utterance."""
    audio = sorted((folder / "corpus/test-clean").rglob("*.flac"))[0]
    saved = folder / "loaded"
    asr = EncoderASR.from_hparams(
        source=str(folder / "pruned/export"), savedir=str(saved)
    )
    heard = asr.transcribe_file(str(audio))
    shutil.rmtree(saved)
    (transcript,) = audio.parent.glob("*.trans.txt")
    said = dict(
        line.split(" ", 1) for line in transcript.read_text().splitlines()
    )
    say(f"said : {said[audio.stem]}")
    say(f"heard: {heard}")


def main():
    """Reads the command line and runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--debug_size", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    seed, debug = arguments.seed, arguments.debug_size
    folder.mkdir(parents=True, exist_ok=True)

    say("synthesising speech")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "sb_prune.demo.corpus",
            folder / "corpus",
            *(f"--{k}={v}" for k, v in DEBUG_CORPUS.items() if debug),
        ],
        check=True,
    )
    say("training; logs beside the runs in " + str(folder))
    train(folder, seed, debug)
    say("comparing")
    report = compare(folder, seed, debug)
    draw(folder)
    transcribe(folder)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    names = ["dense", "dense_longer", "pruned"]
    keys = list(report["dense"])
    rows = [["", *keys]]
    rows += [[n, *(f"{report[n][k]:.5g}" for k in keys)] for n in names]
    print(format_table(rows))
    say(f"report and pictures in {folder}")


if __name__ == "__main__":
    main()
