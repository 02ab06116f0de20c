"""Reports what an export kept, what it costs and how fast it is.

    python -m sb_prune.report FOLDER [--seconds 10] [--log TRAIN_LOG]
    python -m sb_prune.report --compare A B --audio DIR --output page.html

Prints tables, and draws `structure.png` and (from the log of the run)
`curves.png` into the export folder. The export is loaded as any user would load
it, and measured on the CPU of this machine. Loading runs whatever its
`hyperparams.yaml` names, as SpeechBrain does with every YAML: report only on
folders from people whom you trust.

With `--compare` several models transcribe the same utterances: exports, other
folders that SpeechBrain loads, and what `python -m sb_prune.deploy` has
written. A page shows what each costs and hears.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from sb_prune.declare.cost import mac_cost, parameter_cost
from sb_prune.declare.tables import GONE, format_table, kept_units
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.export.lineage import (
    declared_alike,
    originals,
    size_table,
    unit_tables,
)
from sb_prune.export.loading import ExportError, load_export, seconds_heard
from sb_prune.report.pictures import draw_curves, draw_structure, read_log
from sb_prune.support.audio import SAMPLE_RATE
from sb_prune.support.disk import whole_file
from sb_prune.support.measure import (
    count_frames,
    count_macs,
    count_parameters,
    measure_speed,
    noise,
)
from sb_prune.support.memory import forget_peak, resident_memory

LENGTHS = (1, 10, 30)  # seconds; the cost of attention grows quadratically
# options of a report on one folder, and of a comparison
OF_ONE = ("seconds", "log")
OF_SEVERAL = (
    "output",
    "audio",
    "labels",
    "data_folder",
    "utterances",
    "threads",
)
DEFAULTS = {"seconds": 10.0, "utterances": 40, "threads": 1}

# ---------------------------------------------------------------- measuring


def cost_table(export, seconds=10):
    """Compares the parameters and MACs of an export with its dense model.

    Arguments
    ---------
    export : Export
        From `load_export`.
    seconds : float
        Length of the audio, on which the MACs per second depend; as much as
        the model hears at once, at most.

    Returns
    -------
    list of list of str
        The header, then the rows. The parts outside of the pruned scope are
        the same in both models and are counted in the export. Decoding is not
        counted, but for a decoder in the scope, as long as the declaration
        says. The last rows give the MACs of the scope for short and long audio.
    """
    dense, last = declared_alike(export.history)[0], export.steps[-1]
    sample_rate = export.hparams.get("sample_rate", SAMPLE_RATE)
    seconds, *lengths = (
        seconds_heard(export.hparams, each, at_once=True)
        for each in (seconds, *LENGTHS)
    )
    wavs = noise(seconds, sample_rate)
    kept = last.plan.kept_counts(last.declaration)
    size = count_parameters(export.hparams["modules"].values())
    done = count_macs(export.encoder, wavs) / seconds
    scope = ", ".join(filter(None, dense.scope)) or export.key
    of_scope = f"MACs per second, {scope}"

    def macs(seconds):
        wavs = noise(seconds, sample_rate)
        frames = _frames(export, export.scope[0], wavs)
        now = float(mac_cost(last.declaration, frames).of_kept(kept))
        return now / seconds, mac_cost(dense, frames).dense() / seconds

    rows = [
        ["cost", "pruned", "dense", "left"],
        *_cost_rows(
            (f"parameters, {scope}", "parameters, whole model"),
            parameter_cost(last.declaration).of_kept(kept),
            parameter_cost(dense).dense(),
            size,
        ),
    ]
    hears = [_frames(export, part, wavs) is not None for part in export.scope]
    names = (of_scope, "MACs per second, from the audio")
    if not hears[0]:  # a decoder alone
        return [*rows, _cost_row(names[1], done, done)]
    if all(hears):
        rows += _cost_rows(names, *macs(seconds), done)
    else:  # the decoder's are in those of the scope alone
        rows += [_cost_row(of_scope, *macs(seconds))]
    return rows + [
        _cost_row(f"{of_scope}, of {length:g} s", *macs(length))
        for length in dict.fromkeys(lengths)
    ]


def _frames(export, module, wavs):
    """Frames at the input of a module that was cut; None if it hears none."""
    axis = export.steps[-1].declaration.time_axis
    return count_frames(export.encoder, module, wavs, axis)


def _cost_rows(names, now, dense, whole):
    """Makes a row for the pruned scope and one for the whole model.

    Arguments
    ---------
    names : (str, str)
        First cells of the two rows.
    now, dense : float
        Cost of the scope in the export and in the dense model.
    whole : float
        Cost of the whole export.
    """
    now = float(now)
    pairs = [(now, dense), (whole, dense + whole - now)]
    return [_cost_row(name, *pair) for name, pair in zip(names, pairs)]


def _cost_row(name, now, dense):
    return [name, f"{now:,.0f}", f"{dense:,.0f}", f"{now / dense:.1%}"]


def measurement_table(folder, export, seconds=10):
    """Measures the speed and memory of an export on this machine.

    Arguments
    ---------
    folder : str
        The export folder, which another process loads to measure its memory.
    export : Export
        From `load_export`.
    seconds : float
        Length of the audio.

    Returns
    -------
    list of list of str
        The header, then the rows.
    """
    sample_rate = export.hparams.get("sample_rate", SAMPLE_RATE)
    speed = measure_speed({"": export.encoder}, seconds, sample_rate)[""]
    memory = measure_memory(folder, seconds) or (GONE, GONE)
    threads = torch.get_num_threads()
    return [
        [f"measured on {seconds:g} s of noise, {threads} thread(s)", "value"],
        ["real-time factor, median of 9 forwards", f"{speed:.4f}"],
        ["peak resident memory of a fresh process (MiB)", memory[0]],
        ["    added by the forward (MiB)", memory[1]],
    ]


def measure_memory(folder, seconds=10):
    """Measures the peak memory of a forward pass, in a fresh process.

    Arguments
    ---------
    folder : str
        An export folder.
    seconds : float
        Length of the audio.

    Returns
    -------
    (int, int) or None
        Peak resident memory in MiB, with libraries, loading and model, and
        how much the forward pass adds to what is loaded; None on systems
        without /proc.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_forward_memory, folder, seconds).result()


@torch.no_grad()
def _forward_memory(folder, seconds):
    export = load_export(folder)
    wavs = noise(seconds, export.hparams.get("sample_rate", SAMPLE_RATE))
    before, loading = resident_memory("VmRSS"), resident_memory("VmHWM")
    forget_peak()
    export.encoder(wavs, torch.ones(1))
    peak = resident_memory("VmHWM")
    return None if peak is None else (max(loading, peak), peak - before)


# ---------------------------------------------------------------- reporting


def write_report(folder, seconds=10, log=None):
    """Draws the pictures of an export into its folder and returns its tables.

    Arguments
    ---------
    folder : str
        An export folder.
    seconds : float
        Length of the audio to measure with; less where Whisper's `context`
        has no room for it.
    log : str, optional
        Log of the run; by default the train_log.txt beside the folder, if
        there is one.

    Returns
    -------
    str
        The tables, as Markdown.

    Raises
    ------
    ExportError
        If the folder is not an export, or if the given log does not exist or
        contains no curves.
    """
    folder = Path(folder)
    export = load_export(folder)
    seconds = seconds_heard(export.hparams, seconds)
    pictures = ["structure.png"]
    if _draw_log(folder, log):
        pictures.append("curves.png")
    last, original = export.steps[-1], originals(export.history)[-1]
    draw_structure(
        folder / "structure.png",
        kept_units(last.declaration, last.plan, original),
    )
    parts = [
        *_unit_parts(export, seconds),
        format_table(cost_table(export, seconds)),
        format_table(measurement_table(folder, export, seconds)),
        f"{folder}: {', '.join(pictures)}",
    ]
    return "\n\n".join(parts)


def _unit_parts(export, seconds):
    """Tables of the kept units; with headings if there are several cuts."""
    tables = unit_tables(export)
    if len(tables) == 1:
        return [format_table(table) for _, table in tables]
    sample_rate = export.hparams.get("sample_rate", SAMPLE_RATE)
    wavs = noise(seconds, sample_rate)
    frames = _frames(export, export.scope[0], wavs)
    parts = ["Size after each cut:", format_table(size_table(export, frames))]
    for heading, table in tables:
        parts += [f"{heading}:", format_table(table)]
    return parts


def _draw_log(folder, log):
    """Draws curves.png and returns whether the log has any curves."""
    path = Path(log) if log else folder.resolve().parent / "train_log.txt"
    if not path.is_file():
        if log:
            raise ExportError(f"--log: {path} does not exist")
        return False
    drawn = draw_curves(folder / "curves.png", read_log(path))
    if log and not drawn:
        raise ExportError(
            f"--log: {path} has no epoch with sparsity or WER; name the "
            "train_log.txt of a pruning run"
        )
    return drawn


def main(arguments=None):
    """Runs the command.

    Arguments
    ---------
    arguments : list of str, optional
        By default those of the command line.
    """
    given = _parsed(arguments)
    try:
        if given.compare:
            write_comparison(given)
        else:
            print(write_report(given.folder, given.seconds, given.log))
    except (ExportError, DeployError, OSError) as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: {error.name} is not installed; pip install it, or all of "
            '".[deploy]"'
        )


def _parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m sb_prune.report",
        description=__doc__.splitlines()[0],
        epilog="Loading runs what the folder's hyperparams.yaml names: report "
        "only on folders from people whom you trust.",
    )
    parser.add_argument("folder", nargs="?", help="an export of sb_prune")
    parser.add_argument(
        "--seconds", type=float, help="audio to measure with (default: 10)"
    )
    parser.add_argument(
        "--log", help="train_log.txt of the run (default: beside the folder)"
    )
    group = parser.add_argument_group("several models side by side")
    group.add_argument(
        "--compare",
        nargs="+",
        metavar="[NAME=]FOLDER",
        help="exports, other folders that SpeechBrain loads, or deployed ones",
    )
    group.add_argument("--output", help="page to write, e.g. compare.html")
    group.add_argument("--audio", help="folder with audio")
    group.add_argument("--labels", help="or a CSV manifest with wav and wrd")
    group.add_argument("--data_folder", help="$data_root in the manifest")
    group.add_argument("--utterances", type=int, help="at most (default: 40)")
    group.add_argument("--threads", type=int, help="of each model (default: 1)")
    given = parser.parse_args(arguments)
    if (given.folder is None) == (given.compare is None):
        parser.error("write one FOLDER, or --compare and several")
    where, others = "with --compare", OF_ONE
    if given.folder is not None:
        where, others = "with one FOLDER", OF_SEVERAL
    for key in others:
        if getattr(given, key) is not None:
            parser.error(f"--{key}: leave it out {where}")
    for key, value in DEFAULTS.items():
        if getattr(given, key) is None:
            setattr(given, key, value)
    if not 0.1 <= given.seconds <= 3600:
        parser.error(f"--seconds: {given.seconds} must be between 0.1 and 3600")
    if given.compare and not given.output:
        parser.error("--compare: write --output PAGE.html, too")
    for key in ("utterances", "threads"):
        if getattr(given, key) < 1:
            parser.error(f"--{key}: {getattr(given, key)} must be at least 1")
    return given


def write_comparison(given):
    """Compares models, prints a table and writes a page.

    Arguments
    ---------
    given : argparse.Namespace
        compare, output, audio, labels, data_folder, utterances, threads.

    Raises
    ------
    DeployError
        If a model cannot be loaded, two have the same name, there is no audio,
        or the page cannot be written.
    """
    from sb_prune.report.compare import compare, table, utterances
    from sb_prune.report.page import render

    folders = _named(given.compare)
    output = Path(given.output)
    if output.is_dir() or not os.access(output.resolve().parent, os.W_OK):
        raise DeployError(
            f"--output: {output} cannot be written; name a file in a folder "
            "that is there and in which you may write"
        )
    found = utterances(given.audio, given.labels, given.data_folder)
    comparison = compare(folders, found, given.utterances, given.threads)
    print(format_table(table(comparison)), flush=True)
    page = render(comparison, f"{len(folders)} models side by side")
    with whole_file(output) as aside:
        aside.write_text(page, encoding="utf-8")


def _named(models):
    """Name -> folder; without a name, what folders do not have in common."""
    pairs = [
        ("", model)
        if Path(model).exists() or "=" not in model
        else model.split("=", 1)
        for model in models
    ]
    parts = [Path(os.path.abspath(folder)).parts for _, folder in pairs]
    while len({p[:1] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[1:] for p in parts]
    while len({p[-1:] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[:-1] for p in parts]
    names = [name or "/".join(part) for (name, _), part in zip(pairs, parts)]
    for name in names:
        if names.count(name) > 1:
            raise DeployError(
                f"--compare: two models are called {name}; write NAME=FOLDER"
            )
    return dict(zip(names, (folder for _, folder in pairs)))
