"""What benchmarks on a real LibriSpeech share: manifests, words, options."""

import argparse
import csv
import json
import os
import re
import sys
from pathlib import Path

from cells import ROOT, Runs, Table, locked
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler

from sb_prune.support.words import error_rate, rate_difference

RECIPE = ROOT / "recipes/LibriSpeech/ASR/transformer"
sys.path.insert(0, str(RECIPE))

ON_CPU = {  # of every training
    "num_workers": 0,
    "precision": "bf16",
    "ckpt_interval_minutes": 10,
}
WHISPER = (
    "!new:sb_prune.lobes.Whisper",
    "    encoder_only: True",
    "    aligned: True # no frames behind the utterance",
    "    context: utterance",
    "    margin: 0.5",
    "    attn_implementation: eager # the fastest in bf16 on a CPU",
)
KEPT = r"    (source|save_path|output_all_hiddens|freeze):"
EVERY_VALID = 10  # utterances of dev of which one is for validation
PART = 500  # utterances that are scored in one process
FEW_GONE = 0.001  # of `dense_continued`, which is pruned as others are
CONTROLS = ("dense_continued", "dense")  # which others are compared with
SCORE_STEPS = 64  # of measuring, where all goes at once


def manifests(folder, librispeech, splits, fewer=None):
    """Writes csv files of the three splits, and of parts of train and dev.

    Arguments
    ---------
    folder : Path
        Where they go.
    librispeech : str
        A LibriSpeech tree.
    splits : dict
        train, dev and test -> name of a split.
    fewer : dict, optional
        Name -> of so many training utterances one is taken; or a negative
        number: so many in all.

    Returns
    -------
    dict
        Name -> csv files: train, valid and `fewer` have one, dev and test one
        for each `PART` utterances. `valid`, by which checkpoints are chosen,
        is a tenth of dev.
    """
    with locked(folder.with_suffix(".lock")):
        return _manifests(folder, librispeech, splits, fewer or {})


def _manifests(folder, librispeech, splits, fewer):
    from librispeech_prepare import prepare_librispeech

    prepare_librispeech(
        librispeech,
        str(folder),
        tr_splits=[splits["train"]],
        dev_splits=[splits["dev"]],
        te_splits=[splits["test"]],
    )
    files = {"train": [folder / "train.csv"]}
    head, *rows = files["train"][0].read_text("utf-8").splitlines()
    for name, every in fewer.items():
        step = every if every > 0 else len(rows) // -every or 1
        path = folder / f"train-{name}.csv"
        files[name] = [_write(path, head, rows[::step])]
    for name in ("dev", "test"):
        text = (folder / f"{splits[name]}.csv").read_text("utf-8")
        head, *rows = text.splitlines()
        parts = range(0, len(rows), PART)
        files[name] = [
            _write(folder / f"{name}-{n}.csv", head, rows[n : n + PART])
            for n in parts
        ]
        if name == "dev":
            few = rows[::EVERY_VALID]
            files["valid"] = [_write(folder / "valid.csv", head, few)]
    return files


def table_of(path):
    """Rows of a csv file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path, head, rows):
    text = "\n".join([head, *rows]) + "\n"
    if not path.is_file() or path.read_text("utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path


def steps_in_epoch(path, **batches):
    """Optimizer steps that a recipe makes in an epoch.

    Arguments
    ---------
    path : Path
        The csv file of its training data.
    **batches
        Arguments of SpeechBrain's `DynamicBatchSampler`, as the recipe has
        them.

    Returns
    -------
    int
    """
    root = {"data_root": ""}  # nothing is read from there
    data = DynamicItemDataset.from_csv(path, replacements=root)
    data = data.filtered_sorted(sort_key="duration")
    return len(DynamicBatchSampler(data, **batches))


def with_whisper(text, *entries):
    """A YAML of a recipe, with Whisper's encoder in place of its own.

    Arguments
    ---------
    text : str
    *entries : str
        Keys under which a lobe stands. Where it is from, what it returns and
        whether it is frozen stay.

    Returns
    -------
    str
    """

    def write(found):
        stay = [line for line in found[1].splitlines() if re.match(KEPT, line)]
        return "\n".join([f"{entry}: {WHISPER[0]}", *stay, *WHISPER[1:], ""])

    for entry in entries:
        text, count = re.subn(
            rf"(?m)^{entry}: !new:.*\n((?:    .*\n)+)", write, text
        )
        assert count == 1
    return text


def write_with_whisper(path, text, hparams):
    """Writes a YAML, and beside it what its exports are made from.

    Arguments
    ---------
    path : Path
        File to write.
    text : str
        Of the YAML, perhaps with `inference: hparams/inference.yaml`.
    hparams : Path
        Folder of the recipe's `inference.yaml`, in which Whisper's encoder
        takes the place of `wav2vec2`.
    """
    inference = path.with_name(f"{path.stem}-inference.yaml")
    stock = (hparams / "inference.yaml").read_text(encoding="utf-8")
    inference.write_text(with_whisper(stock, "wav2vec2"), encoding="utf-8")
    text = text.replace("hparams/inference.yaml", str(inference))
    path.write_text(text, encoding="utf-8")


def schedule(steps):
    """Options of the learning rate: up, constant, down to 0."""
    return {
        "warmup_steps": min(100, steps // 4),
        "cooldown_steps": steps // 2,
        "total_steps": steps,
    }


def phases(at_once, prune, tune, steps):
    """Options that say how long a method prunes and fine-tunes.

    Arguments
    ---------
    at_once : bool
        Whether all goes after `SCORE_STEPS` of measuring. Such a method
        fine-tunes for as long as the others prune and fine-tune.
    prune, tune : int
        Epochs of the others.
    steps : int
        Of an epoch.

    Returns
    -------
    dict
    """
    if at_once:
        return {
            "number_of_epochs": 1 + prune + tune,
            "prune_epochs": 1,
            "schedule_steps": SCORE_STEPS,
            **schedule((prune + tune) * steps),
        }
    return {
        "number_of_epochs": prune + tune,
        "prune_epochs": prune,
        "schedule_steps": round(0.8 * prune * steps),
        **schedule(tune * steps),
    }


def counts_of(paths):
    """Utterance -> (errors, words), of files of SpeechBrain's.

    Arguments
    ---------
    paths : list of Path
    """
    text = "".join(path.read_text("utf-8") for path in paths)
    pattern = r"^(\S+), %WER \S+ \[ (\d+) / (\d+),"
    found = re.findall(pattern, text, re.M)
    return {name: (int(n), int(words)) for name, n, words in found}


def word_errors(paths):
    """Word error rate of files of SpeechBrain's, and its interval.

    Arguments
    ---------
    paths : list of Path

    Returns
    -------
    dict
        wer, low, high: in %.
    """
    rates = ("wer", "low", "high")
    return {n: v for n, v in paired_errors(paths).items() if n in rates}


def paired_errors(paths):
    """Word error rate, and what methods are compared in pairs by.

    Arguments
    ---------
    paths : list of Path
        Files of SpeechBrain's.

    Returns
    -------
    dict
        wer, low, high: in %; errors and words of each utterance, as text.
    """
    counts = list(counts_of(paths).values())
    return {
        **rounded(error_rate(counts)),
        "errors": " ".join(str(errors) for errors, _ in counts),
        "words": " ".join(str(words) for _, words in counts),
    }


def score(output_of, parts):
    """Scores a model, part by part, so that a stopped one continues.

    Arguments
    ---------
    output_of : callable
        csv file of a part -> folder of the run that scored it.
    parts : list of Path

    Returns
    -------
    dict
        What `paired_errors` and `valid_errors` give.
    """
    outputs = [output_of(part) for part in parts]
    files = [o / f"wer_{p.stem}.txt" for o, p in zip(outputs, parts)]
    return {**paired_errors(files), **valid_errors(outputs[0])}


def rounded(rates):
    """wer, low and high of `error_rate`, to two digits."""
    return {n: round(r, 2) for n, r in zip(("wer", "low", "high"), rates)}


def valid_errors(output):
    """Word errors on the validation utterances after each epoch of a run."""
    log = output / "train_log.txt"
    text = log.read_text("utf-8") if log.is_file() else ""
    rates = [float(r) for r in re.findall(r"valid WER: (\S+)", text)]
    return {"valid_wer": rates} if rates else {}


def shown(rate):
    """A rate and its interval as a cell of Markdown."""
    if rate is None:
        return "-"
    return f"{rate['wer']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})"


def summarise_methods(cells):
    """Figures of cells "METHOD/LEVEL/SEED", and of "METHOD/SEED".

    Arguments
    ---------
    cells : dict
        Key, perhaps with "test:" before it -> what `paired_errors` gives, and
        perhaps valid_wer and macs_gone.

    Returns
    -------
    dict
        method -> level, "0" for none -> seed -> row. A row has dev and test;
        behind, the difference on dev to the dense model that has learned for
        as long if there is one, else to the dense model; behind_best, that to
        the best of the level and seed: wer, low, high, of the same utterances.
        And what else a cell has.
    """
    table, best = {}, {}
    for key, cell in cells.items():
        at = _place(key)[1:]
        if not key.startswith("test:") and at[0] != "0":
            best[at] = min(best.get(at, cell), cell, key=lambda c: c["wer"])
    for key, cell in sorted(cells.items()):
        method, level, seed = _place(key)
        row = table.setdefault(method, {}).setdefault(level, {})
        row = row.setdefault(seed, {})
        split = "test" if key.startswith("test:") else "dev"
        row[split] = {name: cell[name] for name in ("wer", "low", "high")}
        for name in ("valid_wer", "macs_gone"):
            if name in cell:
                row[name] = cell[name]
        if split == "test" or level == "0":
            continue
        dense = [f"{name}/{n}" for name in CONTROLS for n in (seed, "1")]
        for name, other in {
            "behind": next((cells[n] for n in dense if n in cells), None),
            "behind_best": best[level, seed],
        }.items():
            if other is not None and other is not cell:
                row[name] = _difference(cell, other)
    return table


def _place(key):
    """Method, level and seed of a cell."""
    method, *level, seed = key.removeprefix("test:").split("/")
    return method, *(level or ["0"]), seed


def _difference(cell, other):
    """How much more word errors one makes than another, and the interval."""
    counts = (
        [[int(n) for n in each[name].split()] for name in ("errors", "words")]
        for each in (cell, other)
    )
    pair = (list(zip(*columns, strict=True)) for columns in counts)
    return rounded(rate_difference(*pair))


def methods_as_markdown(table):
    """The table for docs, of `summarise_methods`."""
    lines = [
        "| method | to remove | seed | MACs gone | dev WER, % "
        "| above dense, points | above the best, points | test WER, % |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    names = ("dev", "behind", "behind_best", "test")
    for method, rows in table.items():
        for level, seeds in rows.items():
            for seed, row in seeds.items():
                gone = row.get("macs_gone")
                figures = [
                    "-" if gone is None else f"{gone:.1%}",
                    *(shown(row.get(name)) for name in names),
                ]
                what = f"| {method} | {float(level):.0%} | {seed} | "
                lines.append(what + " | ".join(figures) + " |")
    return "\n".join(lines)


def run_real(doc, path, plan_cells, make_cells, summarise, as_markdown, needs):
    """Reads the command line, runs what is missing, prints the table.

    Arguments
    ---------
    doc : str
        Of the script; its first line says what it measures.
    path : Path
        Of the table; its stem names a folder in `results`.
    plan_cells : callable
        Whether --full is given -> keys of cells, the most worth first.
    make_cells : callable
        (folder, options) -> object whose `run(key)` gives the value of a cell;
        `splits` of the options has the names of train, dev and test.
    summarise : callable
        Cells -> dict to print.
    as_markdown : callable
        That dict -> table for docs.
    needs : dict
        Option -> help, of what the user must name to run anything.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, text in needs.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--train", default="train-clean-5", help="a split")
    parser.add_argument("--dev", default="dev-clean", help="a split")
    parser.add_argument("--test", default="test-clean", help="a split")
    parser.add_argument("--full", action="store_true", help="all cells")
    parser.add_argument("--cells", nargs="+", help="these alone")
    parser.add_argument("--folder", default=ROOT / "results" / path.stem)
    parser.add_argument("--table", type=Path, default=path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1, help="of each job")
    given = parser.parse_args()
    Runs.threads = given.threads
    given.splits = {n: getattr(given, n) for n in ("train", "dev", "test")}
    keys = given.cells or plan_cells(given.full)
    table = Table(given.table)
    missing = [key for key in keys if key not in table.cells]
    if missing and not all(getattr(given, name) for name in needs):
        print(
            f"{len(missing)} cells are missing; give "
            f"{' and '.join(f'--{name}' for name in needs)} to run them",
            file=sys.stderr,
        )
    elif missing:
        folder = Path(given.folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        table.fill(keys, make_cells(folder, given).run, given.jobs)
    summary = summarise(table.cells)
    print(as_markdown(summary), file=sys.stderr)
    print(json.dumps(summary), flush=True)
