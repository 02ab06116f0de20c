#!/usr/bin/env python3
"""Trains, prunes and compares small models on synthesised speech.

Minutes on two CPU cores. Three runs of train.py, each in a folder of its own:
`dense` (demo_train.yaml), `pruned` (demo_prune.yaml, from `dense`), and
`dense_longer`, a dense model with as many epochs as both together. Then all
three are measured in one process, and the export transcribes the test files;
report.json and pictures show what came out.
The same command continues a demo that was stopped.

To run this demo:
> python demo.py results/demo
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.metric_stats import ErrorRateStats

from sb_prune.demo.corpus import synthesise_librispeech
from sb_prune.loading import tag_of
from sb_prune.measure import (
    count_macs,
    count_parameters,
    measure_speed,
    noise,
)
from sb_prune.pictures import read_log
from sb_prune.report import write_report
from sb_prune.snapshots import read_meta
from sb_prune.table import format_table

RECIPE = Path(__file__).resolve().parent
SECONDS = 10  # of audio, to measure with
STARTED = time.monotonic()

# What makes everything tiny, for tests.
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
    "max_batch_length": 12,
    "number_of_epochs": 2,
    "total_steps": 20,
    "warmup_steps": 2,
    "cooldown_steps": 4,
}
DEBUG_PRUNING = {"prune_epochs": 1, "schedule_steps": 3}


@dataclass(frozen=True)
class Run:
    """One run of train.py.

    Arguments
    ---------
    folder : Path
        Its output folder; the name of the run.
    yaml : str
        In `hparams/`.
    epochs : int
        How many it trains.
    options : dict
        Overrides of the YAML.
    """

    folder: Path
    yaml: str
    epochs: int
    options: dict = field(default_factory=dict)

    @property
    def name(self):
        """Of the folder."""
        return self.folder.name

    @property
    def log(self):
        """Where the output of its process goes."""
        return self.folder.with_suffix(".log")

    @property
    def marker(self):
        """Stands when the run is finished."""
        return self.folder / "finished"

    def start(self):
        """Starts, or continues, the run in a process of its own."""
        options = {**self.options, "output_folder": self.folder}
        with open(self.log, "a", encoding="utf-8") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "train.py",
                    f"hparams/{self.yaml}",
                    "--device=cpu",
                    "--noprogressbar",
                    *(f"--{key}={value}" for key, value in options.items()),
                ],
                cwd=RECIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def progress(self):
        """The last epoch in the run's log, in words."""
        log = self.folder / "train_log.txt"
        errors = read_log(log).get("valid WER", {}) if log.is_file() else {}
        if not errors:
            return "starting"
        epoch = max(errors)
        return f"epoch {epoch} of {self.epochs}, valid WER {errors[epoch]:.2f}"

    def word_error_rate(self):
        """Of the test set, in %."""
        text = (self.folder / "wer_test-clean.txt").read_text("utf-8")
        return float(re.match(r"%WER (\S+)", text)[1])


def say(text):
    """A line of progress."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def main():
    """Reads the command line and takes the steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where everything goes")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument(
        "--debug_size", action="store_true", help="tiny, for tests"
    )
    given = parser.parse_args()
    folder = Path(given.folder).resolve()
    torch.set_num_threads(1)
    # so that the runs end with the demo
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    claim_folder(folder, given.seed, given.debug_size)
    say("speech: synthesising")
    sizes = DEBUG_CORPUS if given.debug_size else {}
    try:
        synthesise_librispeech(folder / "corpus", given.seed, **sizes)
    except (ImportError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    dense, pruned, longer = plan_runs(folder, given.seed, given.debug_size)
    train([[dense, pruned], [longer]])
    say("comparison: measuring the three models")
    report = compare(dense, pruned, longer)
    report["seed"] = given.seed
    say("comparison: the export transcribes the test files")
    report.update(transcribe(folder, pruned))
    say("report: the pruned model")
    text = write_report(pruned.folder / "export", SECONDS)
    (folder / "report.log").write_text(text + "\n", encoding="utf-8")
    for picture in ("structure.png", "curves.png"):
        shutil.copy(pruned.folder / "export" / picture, folder)
    path = folder / "report.json"
    path.write_text(json.dumps(report, indent=4) + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{as_text(report)}\n")
    say(f"done: {path}, structure.png, curves.png")


# -------------------------------------------------------------------- runs


def claim_folder(folder, seed, debug_size):
    """Refuses a folder that holds anything but this very demo."""
    digest = hashlib.sha256()
    for name in ("demo_train.yaml", "demo_prune.yaml", "inference_ctc.yaml"):
        digest.update((RECIPE / "hparams" / name).read_bytes())
    wanted = {
        "seed": seed,
        "debug_size": debug_size,
        "yaml_sha256": digest.hexdigest(),
    }
    marker = folder / "demo.json"
    if marker.is_file():
        found = json.loads(marker.read_text())
        other = [key for key in wanted if found.get(key) != wanted[key]]
        if other:
            sys.exit(
                f"error: {folder} holds a demo with another {other[0]} "
                f"({found.get(other[0])}, not {wanted[other[0]]}); name "
                "another folder, or delete it"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        sys.exit(
            f"error: {folder} holds something else than a demo; name a folder "
            "that does not exist"
        )
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(wanted, indent=4) + "\n")


def plan_runs(folder, seed, debug_size):
    """The runs `dense`, `pruned` and `dense_longer`."""
    common = {
        "seed": seed,
        "data_folder": folder / "corpus",
        **(DEBUG_MODEL if debug_size else {}),
    }
    train = {**read_yaml(RECIPE / "hparams/demo_train.yaml"), **common}
    prune = {**read_yaml(RECIPE / "hparams/demo_prune.yaml"), **common}
    once = train["number_of_epochs"]
    both = once + prune["number_of_epochs"]
    dense = Run(folder / "dense", "demo_train.yaml", once, common)
    pruned = Run(
        folder / "pruned",
        "demo_prune.yaml",
        prune["number_of_epochs"],
        {
            **common,
            **(DEBUG_PRUNING if debug_size else {}),
            "dense_folder": dense.folder,
        },
    )
    longer = Run(
        folder / "dense_longer",
        "demo_train.yaml",
        both,
        {
            **common,
            "number_of_epochs": both,
            "total_steps": train["total_steps"] * both // once,
        },
    )
    return dense, pruned, longer


def read_yaml(path):
    """The nodes of a HyperPyYAML file, nothing made of them."""
    with open(path, encoding="utf-8") as file:
        return ruamel.yaml.YAML().load(file)


def train(chains):
    """Trains chains of runs side by side, one thread each.

    Arguments
    ---------
    chains : list of list of Run
        The runs of a chain follow one another.
    """
    waiting = [
        [run for run in chain if not run.marker.is_file()] for chain in chains
    ]
    current, shown = {}, {}
    try:
        while any(waiting):
            for chain in filter(None, waiting):
                run = chain[0]
                process = current.setdefault(run.name, None)
                if process is None:
                    current[run.name] = process = run.start()
                status = process.poll()
                if shown.get(run.name) != run.progress():
                    shown[run.name] = run.progress()
                    say(f"{run.name}: {shown[run.name]}")
                if status == 0:
                    run.marker.touch()
                    say(f"{run.name}: test WER {run.word_error_rate():.2f}")
                    del chain[0]
                elif status is not None:
                    fail(run, status)
            time.sleep(0.5)
    finally:
        for process in current.values():
            process.terminate()


def fail(run, status):
    """Ends the demo with the last words of a run."""
    last = run.log.read_text(encoding="utf-8").splitlines()[-20:]
    print(*last, sep="\n", file=sys.stderr)
    sys.exit(f"error: {run.name} failed with status {status}, see {run.log}")


# -------------------------------------------------------------- comparison


def compare(dense, pruned, longer):
    """Measures the three models in turns, all as one would load them."""
    with tempfile.TemporaryDirectory() as scratch:
        models = {
            "dense": load_dense(dense),
            "dense_longer": load_dense(longer),
            "pruned": vars(load_export(pruned, scratch).hparams),
        }
    speed = measure_speed(
        {name: m["modules"]["encoder"].eval() for name, m in models.items()},
        SECONDS,
    )
    epochs = {
        "dense": dense.epochs,
        "dense_longer": longer.epochs,
        # the dense model's own, those of pruning and those of fine-tuning
        "pruned": dense.epochs + pruned.epochs,
    }
    report = {
        run.name: {
            "wer": run.word_error_rate(),
            **figures(models[run.name]),
            "rtf": speed[run.name],
            "epochs": epochs[run.name],
        }
        for run in (dense, longer, pruned)
    }
    cut = read_meta(pruned.folder / "save" / "cut")
    report["export_max_abs_diff"] = cut["difference"]
    report["export_is_evaluated"] = is_evaluated(models["pruned"], pruned)
    report["seconds_of_audio"] = SECONDS
    report["threads"] = torch.get_num_threads()
    return report


def load_dense(run):
    """The objects of the inference YAML, with the best weights of a run."""
    inference = RECIPE / "hparams/inference_ctc.yaml"
    trained = read_yaml(run.folder / "hyperparams.yaml")
    values = {
        key: trained[key]
        for key, node in read_yaml(inference).items()
        if tag_of(node) == "!PLACEHOLDER"
    }
    with open(inference, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, values)
    Checkpointer(
        run.folder / "save",
        {"model": hparams["model"], "normalizer": hparams["normalize"]},
    ).recover_if_possible(min_key="WER")
    return hparams


def load_export(run, scratch):
    """The pruned model as anyone would load it."""
    return EncoderASR.from_hparams(
        source=str(run.folder / "export"), savedir=scratch
    )


def figures(model):
    """Sizes and operations of a loaded model."""
    encoder = model["modules"]["encoder"]
    macs = count_macs(encoder, noise(SECONDS)) / SECONDS
    return {
        "encoder_params": count_parameters([model["Transformer"].encoder]),
        "total_params": count_parameters(model["modules"].values()),
        "gmacs_per_second": macs / 1e9,
    }


def is_evaluated(model, run):
    """Whether the export has the weights that the run's test evaluated."""
    finetuned = Checkpointer(run.folder / "save" / "finetune")
    best = finetuned.find_checkpoint(min_key="WER").paramfiles["model"]
    state = torch.load(best, map_location="cpu", weights_only=True)
    loaded = model["model"].state_dict()
    return state.keys() == loaded.keys() and all(
        torch.equal(state[name], loaded[name]) for name in state
    )


def transcribe(folder, run):
    """Word error rate of the export, file by file, and one example."""
    errors, example = ErrorRateStats(), None
    with tempfile.TemporaryDirectory() as scratch:
        asr = load_export(run, scratch)
        for audio, reference in test_files(folder / "corpus"):
            heard = asr.transcribe_file(str(audio))
            errors.append([audio.stem], [heard.split()], [reference.split()])
            example = example or {
                "utterance": audio.stem,
                "reference": reference,
                "pruned": heard,
            }
    rate = errors.summarize("error_rate")
    return {"export_wer": round(rate, 2), "example": example}


def test_files(corpus):
    """(audio file, transcript) of every test utterance."""
    for path in sorted((corpus / "test-clean").rglob("*.trans.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, reference = line.partition(" ")
            yield path.with_name(f"{name}.flac"), reference


def as_text(report):
    """The comparison as a table, and the example."""
    rows = [
        [
            "model",
            "test WER (%)",
            "encoder parameters",
            "parameters",
            "GMACs per second",
            "real-time factor",
            "epochs",
        ]
    ]
    for name in ("dense", "dense_longer", "pruned"):
        each = report[name]
        rows.append(
            [
                name,
                f"{each['wer']:.2f}",
                f"{each['encoder_params']:,}",
                f"{each['total_params']:,}",
                f"{each['gmacs_per_second']:.4f}",
                f"{each['rtf']:.5f}",
                each["epochs"],
            ]
        )
    example = report["example"]
    return "\n".join(
        [
            format_table(rows),
            "",
            f"masked and cut differ by {report['export_max_abs_diff']:.1e}; "
            f"seed {report['seed']}, {report['threads']} thread(s)",
            f"the export, file by file: WER {report['export_wer']:.2f}",
            f"{example['utterance']}, said:   {example['reference']}",
            f"{example['utterance']}, pruned: {example['pruned']}",
        ]
    )


if __name__ == "__main__":
    main()
