"""Compares the dense and pruned models of a demo.

Every model is loaded as a user would load it: the dense ones by the inference
YAML, the pruned one from its export. Test metrics are those that the runs
wrote; sizes, operations and speed are measured here, in one process.
"""

import csv
import tempfile
from copy import deepcopy

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer
from torch.nn.utils.parametrizations import weight_norm

from sb_prune.cut.folding import folded_state
from sb_prune.declare.tables import format_table
from sb_prune.demo.recipe import read_yaml
from sb_prune.export.yaml_nodes import tag_of
from sb_prune.run.snapshots import read_meta
from sb_prune.support.measure import (
    count_macs,
    count_parameters,
    measure_speed,
    noise,
)

SECONDS = 10  # of audio in a measurement
FORWARDS = 25  # of each model, timed in alternation
DEBUG_FORWARDS = 3
RUNS = ("dense", "dense_longer", "pruned")


def compare(demo, runs, debug_size=False):
    """Measures the three models, their speed in alternation.

    Arguments
    ---------
    demo : Demo
    runs : dict
        Name -> finished Run
    debug_size : bool
        Whether a rough speed is enough.

    Returns
    -------
    dict
        The content of report.json but for the transcripts.
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
        runs=DEBUG_FORWARDS if debug_size else FORWARDS,
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
    """Makes the objects of the inference YAML with a run's best checkpoint."""
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
    """Loads the pruned model with the recipe's interface."""
    return demo.interface.from_hparams(
        source=str(run.folder / "export"), savedir=scratch
    )


def _modules_to_load(hparams):
    """The modules that an inference YAML loads; the tokenizer is none."""
    return {
        name: loaded
        for name, loaded in hparams["pretrainer"].loadables.items()
        if isinstance(loaded, torch.nn.Module)
    }


def _costs(demo, model):
    """Counts the parameters and operations of a loaded model."""
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
    """A checkpoint's state with the weight norm of wav2vec2 folded."""
    normed = ".parametrizations.weight.original0"
    names = [key.removesuffix(normed) for key in saved if key.endswith(normed)]
    module = deepcopy(module)
    for name in names:
        weight_norm(module.get_submodule(name), dim=2)
    module.load_state_dict(saved)
    return folded_state(module)


def transcribe(demo, run, data_folder):
    """Lets the export transcribe the test files, one by one.

    Arguments
    ---------
    demo : Demo
    run : Run
        The finished run `pruned`.
    data_folder : Path
        The recipe's data folder.

    Returns
    -------
    dict
        The metrics of `demo.score`, each with "export_" before its name, and
        `example`, one transcript.
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
    """Formats the comparison as a table, with the example below it.

    Arguments
    ---------
    demo : Demo
    report : dict
        The content of report.json.

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
