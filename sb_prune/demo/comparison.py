"""The demo of a recipe: trains, prunes, and compares what comes out.

Three runs, each in a folder of its own: `dense`, `pruned` (from `dense`), and
`dense_longer`, a dense model with as many epochs as both together. Then all
three are measured in one process, and the export reads the test files one by
one; report.json and pictures show what came out.
"""

import argparse
import csv
import hashlib
import json
import re
import shutil
import signal
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.metric_stats import ErrorRateStats
from torch.nn.utils.parametrizations import weight_norm

from sb_prune.cut.folding import folded_state
from sb_prune.declare.tables import format_table
from sb_prune.demo.runs import Run, say, train
from sb_prune.export.yaml_nodes import tag_of
from sb_prune.report.command import write_report
from sb_prune.report.measure import (
    count_macs,
    count_parameters,
    measure_speed,
    noise,
)
from sb_prune.run.snapshots import read_meta

SECONDS = 10  # of audio, to measure with
RUNS = ("dense", "dense_longer", "pruned")


class Demo:
    """What differs between the demos of recipes; a subclass fills it in.

    Attributes
    ----------
    script : Path
        Of the recipe; its YAMLs are in `hparams/` beside it.
    dense, pruned, inference : str
        Names of the YAMLs.
    interface : type
        The class of speechbrain.inference that loads the export.
    watched : str
        The figure of the validation set that chooses checkpoints.
    best : dict
        The same, as an argument of `Checkpointer.find_checkpoint`.
    encoder : str
        Path of what is pruned among the objects of the inference YAML.
    test_csv, text : str
        The file of the test set that the recipe writes, and its column.
    audio : str
        What `$data_root` in that file is, within the data folder.
    headings : dict
        The figures of quality -> how tables call them; the first matters.
    debug_model, debug_pruning : dict
        Overrides that make the trainings, and that of `pruned`, tiny.
    """

    interface = EncoderASR
    audio = "."
    debug_model = {}
    debug_pruning = {}

    def yaml(self, name):
        """Path of one of the recipe's YAMLs."""
        return self.script.parent / "hparams" / name

    def yamls(self):
        """Those that decide what the demo gives."""
        return [
            self.yaml(name)
            for name in (self.dense, self.pruned, self.inference)
        ]

    def prepare(self, folder, seed, debug_size):
        """Synthesises speech, and what else is needed before training.

        Arguments
        ---------
        folder : Path
            Of the demo.
        seed : int
        debug_size : bool
            Tiny, for tests.

        Returns
        -------
        dict
            Overrides of the YAMLs.
        """
        raise NotImplementedError

    def figures(self, output):
        """The figures of quality that a run's evaluation left.

        Arguments
        ---------
        output : Path
            Folder of the run.

        Returns
        -------
        dict
            Name, as in `headings` -> per cent.
        """
        raise NotImplementedError

    def score(self, answers):
        """The same figures, of texts.

        Arguments
        ---------
        answers : list of tuple of str
            (utterance, reference, what the model says) of each test file.
        """
        raise NotImplementedError


class ASRDemo(Demo):
    """Demo of a recipe that is judged by its word error rate."""

    watched = "WER"
    best = {"min_key": "WER"}
    test_csv = "test-clean.csv"
    text = "wrd"
    headings = {"wer": "test WER (%)"}

    def figures(self, output):
        """The word error rate in wer_test-clean.txt."""
        text = (output / "wer_test-clean.txt").read_text("utf-8")
        return {"wer": float(re.match(r"%WER (\S+)", text)[1])}

    def score(self, answers):
        """The word error rate."""
        errors = ErrorRateStats()
        for name, reference, heard in answers:
            errors.append([name], [heard.split()], [reference.split()])
        return {"wer": errors.summarize("error_rate")}


def demonstrate(demo, description):
    """Runs a demo from the command line; the same line continues it.

    Arguments
    ---------
    demo : Demo
    description : str
        First line of the help.
    """
    given = _read_command_line(description)
    folder = Path(given.folder).resolve()
    torch.set_num_threads(1)
    # so that the runs end with the demo
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _claim_folder(folder, given, demo.yamls())
    say("speech: synthesising")
    try:
        common = demo.prepare(folder, given.seed, given.debug_size)
    except (ImportError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    common["seed"] = given.seed
    runs = plan_runs(demo, folder, common, given.debug_size)
    train([[runs["dense"], runs["pruned"]], [runs["dense_longer"]]])
    say("comparison: measuring the three models")
    report = compare(demo, runs)
    report["seed"] = given.seed
    say("comparison: the export reads the test files")
    report.update(transcribe(demo, runs["pruned"], common["data_folder"]))
    say("report: the pruned model")
    export = runs["pruned"].folder / "export"
    text = write_report(export, SECONDS)
    (folder / "report.log").write_text(text + "\n", encoding="utf-8")
    for picture in ("structure.png", "curves.png"):
        shutil.copy(export / picture, folder)
    path = folder / "report.json"
    path.write_text(json.dumps(report, indent=4) + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{as_text(demo, report)}\n")
    say(f"done: {path}, structure.png, curves.png")


def _read_command_line(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", help="where everything goes")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument(
        "--debug_size", action="store_true", help="tiny, for tests"
    )
    return parser.parse_args()


def _claim_folder(folder, given, yamls):
    """Refuses a folder that holds anything but this very demo."""
    digest = hashlib.sha256()
    for path in yamls:
        digest.update(path.read_bytes())
    wanted = {
        "seed": given.seed,
        "debug_size": given.debug_size,
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


def plan_runs(demo, folder, common, debug_size=False):
    """The three runs.

    Arguments
    ---------
    demo : Demo
    folder : Path
        Where theirs go.
    common : dict
        Overrides of all YAMLs.
    debug_size : bool
        Tiny, for tests.

    Returns
    -------
    dict
        Name -> Run
    """
    if debug_size:
        common = {**common, **demo.debug_model}
    once = {**read_yaml(demo.yaml(demo.dense)), **common}
    epochs = once["number_of_epochs"]
    pruning = {**common, **(demo.debug_pruning if debug_size else {})}
    pruning["dense_folder"] = folder / "dense"
    second = {**read_yaml(demo.yaml(demo.pruned)), **pruning}[
        "number_of_epochs"
    ]
    both = epochs + second
    longer = {
        **common,
        "number_of_epochs": both,
        "total_steps": once["total_steps"] * both // epochs,
    }

    def run(name, yaml, epochs, options):
        return Run(
            folder / name, demo.script, yaml, epochs, demo.watched, options
        )

    return {
        "dense": run("dense", demo.dense, epochs, common),
        "pruned": run("pruned", demo.pruned, second, pruning),
        "dense_longer": run("dense_longer", demo.dense, both, longer),
    }


def read_yaml(path):
    """The nodes of a HyperPyYAML file, nothing made of them.

    Arguments
    ---------
    path : Path

    Returns
    -------
    ruamel.yaml.CommentedMap
    """
    with open(path, encoding="utf-8") as file:
        return ruamel.yaml.YAML().load(file)


def compare(demo, runs):
    """Measures the three models in turns, all as one would load them.

    Arguments
    ---------
    demo : Demo
    runs : dict
        Name -> finished Run

    Returns
    -------
    dict
        What report.json has, but for the transcripts.
    """
    with tempfile.TemporaryDirectory() as scratch:
        models = {
            "dense": _load_dense(demo, runs["dense"]),
            "dense_longer": _load_dense(demo, runs["dense_longer"]),
            "pruned": vars(_load_export(demo, runs["pruned"], scratch).hparams),
        }
    speed = measure_speed(
        {name: m["modules"]["encoder"].eval() for name, m in models.items()},
        SECONDS,
    )
    epochs = {name: run.epochs for name, run in runs.items()}
    # the dense model's own, those of pruning and those of fine-tuning
    epochs["pruned"] += epochs["dense"]
    report = {
        name: {
            **demo.figures(runs[name].folder),
            **_costs(demo, models[name]),
            "rtf": speed[name],
            "epochs": epochs[name],
        }
        for name in RUNS
    }
    cut = read_meta(runs["pruned"].folder / "save" / "cut")
    report["export_max_abs_diff"] = cut["difference"]
    report["export_is_evaluated"] = _is_evaluated(
        demo, models["pruned"], runs["pruned"]
    )
    report["seconds_of_audio"] = SECONDS
    report["threads"] = torch.get_num_threads()
    return report


def _load_dense(demo, run):
    """The objects of the inference YAML, with the best weights of a run."""
    inference = demo.yaml(demo.inference)
    trained = read_yaml(run.folder / "hyperparams.yaml")
    values = {
        key: trained[key]
        for key, node in read_yaml(inference).items()
        if tag_of(node) == "!PLACEHOLDER"
    }
    with open(inference, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, values)
    Checkpointer(
        run.folder / "save", _modules_to_load(hparams)
    ).recover_if_possible(**demo.best)
    return hparams


def _load_export(demo, run, scratch):
    """The pruned model as anyone would load it."""
    return demo.interface.from_hparams(
        source=str(run.folder / "export"), savedir=scratch
    )


def _modules_to_load(hparams):
    """What an inference YAML loads, but for the tokenizer."""
    return {
        name: loaded
        for name, loaded in hparams["pretrainer"].loadables.items()
        if isinstance(loaded, torch.nn.Module)
    }


def _costs(demo, model):
    """Sizes and operations of a loaded model."""
    name, *attributes = demo.encoder.split(".")
    pruned = model[name]
    for attribute in attributes:
        pruned = getattr(pruned, attribute)
    macs = count_macs(model["modules"]["encoder"], noise(SECONDS)) / SECONDS
    return {
        "encoder_params": count_parameters([pruned]),
        "total_params": count_parameters(model["modules"].values()),
        "gmacs_per_second": macs / 1e9,
    }


def _is_evaluated(demo, model, run):
    """Whether the export has the weights that the run's test evaluated."""
    finetuned = Checkpointer(run.folder / "save" / "finetune")
    files = finetuned.find_checkpoint(**demo.best).paramfiles

    def same(name, module):
        saved = torch.load(files[name], map_location="cpu", weights_only=True)
        saved = _folded(saved, module)
        loaded = module.state_dict()
        return saved.keys() == loaded.keys() and all(
            torch.equal(saved[key], loaded[key]) for key in saved
        )

    return all(
        same(name, module)
        for name, module in _modules_to_load(model).items()
        if any(True for _ in module.parameters())
    )


def _folded(saved, module):
    """A state as the export has it, the weight norm of wav2vec2 folded."""
    normed = ".parametrizations.weight.original0"
    names = [key.removesuffix(normed) for key in saved if key.endswith(normed)]
    module = deepcopy(module)
    for name in names:
        weight_norm(module.get_submodule(name), dim=2)
    module.load_state_dict(saved)
    return folded_state(module)


def transcribe(demo, run, data_folder):
    """What the export says to the test files, one by one.

    Arguments
    ---------
    demo : Demo
    run : Run
        `pruned`, finished.
    data_folder : Path
        That the recipe read.

    Returns
    -------
    dict
        `demo.score` with "export_" before each name, and one example.
    """
    data_root = str(data_folder / demo.audio)
    with tempfile.TemporaryDirectory() as scratch:
        model = _load_export(demo, run, scratch)
        with open(run.folder / demo.test_csv, encoding="utf-8") as file:
            answers = [
                (
                    row["ID"],
                    row[demo.text],
                    model.transcribe_file(
                        row["wav"].replace("$data_root", data_root)
                    ),
                )
                for row in csv.DictReader(file)
            ]
    example = dict(zip(("utterance", "reference", "pruned"), answers[0]))
    scores = demo.score(answers).items()
    return {
        **{f"export_{name}": round(value, 2) for name, value in scores},
        "example": example,
    }


def as_text(demo, report):
    """The comparison as a table, and the example.

    Arguments
    ---------
    demo : Demo
    report : dict
        What report.json has.

    Returns
    -------
    str
    """
    rows = [
        [
            "model",
            *demo.headings.values(),
            "encoder parameters",
            "parameters",
            "GMACs per second",
            "real-time factor",
            "epochs",
        ]
    ]
    for name in RUNS:
        each = report[name]
        rows.append(
            [
                name,
                *(f"{each[figure]:.2f}" for figure in demo.headings),
                f"{each['encoder_params']:,}",
                f"{each['total_params']:,}",
                f"{each['gmacs_per_second']:.4f}",
                f"{each['rtf']:.5f}",
                each["epochs"],
            ]
        )
    first, heading = next(iter(demo.headings.items()))
    example = report["example"]
    return "\n".join(
        [
            format_table(rows),
            "",
            f"masked and cut differ by {report['export_max_abs_diff']:.1e}; "
            f"seed {report['seed']}, {report['threads']} thread(s)",
            f"the export, file by file: {heading} "
            f"{report[f'export_{first}']:.2f}",
            f"{example['utterance']}, said:   {example['reference']}",
            f"{example['utterance']}, pruned: {example['pruned']}",
        ]
    )
