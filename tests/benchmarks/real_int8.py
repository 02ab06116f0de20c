"""Deployed models on real speech: word errors in float32 and in int8.

    python tests/benchmarks/real_int8.py --models NAME=FOLDER ... \\
        --data_folder DIR --manifest CSV [--audio DIR]

FOLDER is an export (or a folder that from_hparams loads), CSV a manifest of the
recipes with columns `wav` and `wrd`, DIR what `$data_root` stands for. Each
model is deployed in float32, and in 8-bit integers with other weights in 16
bits, calibrated on `--audio` (by default train-clean-5 in DIR). It transcribes
every utterance with both, in turns and one thread: word error rates with 95%
intervals of a bootstrap over utterances, the interval of their difference, file
sizes, and how much faster integers are. How long loading takes, and the peak of
memory after an utterance, are those of a fresh process. Whisper's texts are
normalised as in its paper, others compared in small letters, without
punctuation.

What is finished is kept in real_int8.json: a cell is NAME, the model, or
NAME/MANIFEST/N, what it hears of 500 utterances from the Nth on. A benchmark
that was stopped continues; without models, what is there is printed.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy
import soundfile
from cells import ROOT, Table

from sb_prune.deploy import OnnxASR
from sb_prune.report.models import processes

# What needs torch is imported where it is used: the processes that are measured
# import this file, too.

TABLE = Path(__file__).with_suffix(".json")
KINDS = ("fp32", "int8")
PART = 500  # utterances of a cell


def deploy_both(source, folder, audio, max_kl, static):
    """Deploys a model twice.

    Arguments
    ---------
    source : str
    folder : Path
        Gets `fp32` and `int8`.
    audio : str
        Of the calibration.
    max_kl : float
    static : bool

    Returns
    -------
    dict
        mb, load_s and peak_mib of both, and what the command says of int8.
    """
    from sb_prune.deploy import deploy
    from sb_prune.deploy.folder import Quantization

    shutil.rmtree(folder, ignore_errors=True)
    folders = {kind: folder / kind for kind in KINDS}
    deploy(source, folders["fp32"])
    quantization = Quantization(audio, max_kl, static=static)
    table = deploy(source, folders["int8"], quantization, half=True)
    sizes = {
        kind: sum(f.stat().st_size for f in path.glob("*.onnx*"))
        for kind, path in folders.items()
    }
    fresh = {kind: in_a_process(path) for kind, path in folders.items()}
    return {
        "mb": {k: round(size / 2**20, 1) for k, size in sizes.items()},
        "load_s": {k: round(seconds, 2) for k, (seconds, _) in fresh.items()},
        "peak_mib": {k: memory for k, (_, memory) in fresh.items()},
        "products": [r for r in table if r[0].startswith(("int8", "stays"))],
    }


def in_a_process(folder):
    """(seconds of loading, peak memory in MiB) of a fresh process."""
    noise = numpy.random.default_rng(0).normal(0, 0.1, 7 * 16000)
    with tempfile.TemporaryDirectory() as other:
        path = f"{other}/utterance.wav"
        soundfile.write(path, noise, 16000)
        with processes({"": folder}, threads=1) as running:
            process = running[""]
            process.transcribe(path)
            return process.facts["load_s"], process.memory()


def hear(folder, utterances):
    """Lets both transcribe some utterances, in turns.

    Arguments
    ---------
    folder : Path
        Of `deploy_both`.
    utterances : list of (str, str)
        Path and words.

    Returns
    -------
    dict
        words, fp32 and int8: of each utterance, how many, and the errors, as
        text; seconds of both.
    """
    from sb_prune.deploy.runtime.audio import read_audio

    models = {kind: OnnxASR(folder / kind, threads=1) for kind in KINDS}
    columns = {"words": [], **{kind: [] for kind in KINDS}}
    seconds = dict.fromkeys(KINDS, 0.0)
    for path, said in utterances:
        for kind, asr in models.items():
            wav = read_audio(path, asr.sample_rate)
            start = perf_counter()
            heard = asr.model.long(wav)
            seconds[kind] += perf_counter() - start
            errors, words = word_counts(asr, said, heard)
            columns[kind].append(errors)
        columns["words"].append(words)
    texts = {n: " ".join(map(str, values)) for n, values in columns.items()}
    return {**texts, "seconds": {k: round(s, 1) for k, s in seconds.items()}}


def word_counts(asr, said, heard):
    """(errors, words) of an utterance."""
    from sb_prune.deploy.quantize import words_compared
    from sb_prune.support.words import word_errors

    words_of, _ = words_compared(asr.model)
    return word_errors(words_of(said), words_of(heard))


def summarise(cells):
    """ "NAME, MANIFEST" -> figures, of the utterances that have been heard."""
    from sb_prune.support.words import error_rate, rate_difference

    heard = {}
    for key, cell in sorted(cells.items()):
        name, *part = key.split("/")
        if part:
            heard.setdefault((name, part[0]), []).append(cell)
    found = {}
    for (name, manifest), parts in heard.items():
        words, *errors = (
            numpy.array([int(n) for p in parts for n in p[column].split()])
            for column in ("words", *KINDS)
        )
        floats, integers = (numpy.stack([wrong, words], 1) for wrong in errors)
        rates = {
            "fp32": error_rate(floats),
            "int8": error_rate(integers),
            "lost": rate_difference(integers, floats),
        }
        spent = {k: sum(p["seconds"][k] for p in parts) for k in KINDS}
        found[f"{name}, {manifest}"] = {
            **{n: [round(r, 2) for r in rate] for n, rate in rates.items()},
            "speedup": round(spent["fp32"] / spent["int8"], 2),
            "utterances": len(words),
            **cells[name],
        }
    return found


def as_markdown(summary):
    """The table for docs."""
    lines = [
        "| model, utterances | WER in float32, % | in int8, % | lost, points "
        "| times as fast | MB | loading, s | peak MiB |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for key, row in summary.items():
        cells = [f"{key} ({row['utterances']})"]
        for name in (*KINDS, "lost"):
            rate, low, high = row[name]
            cells.append(f"{rate:.2f} ({low:.2f} to {high:.2f})")
        cells.append(f"{row['speedup']:.2f}")
        for name in ("mb", "load_s", "peak_mib"):
            cells.append(" -> ".join(str(row[name][kind]) for kind in KINDS))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Measures what is missing, and prints all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[], help="NAME=FOLDER")
    parser.add_argument("--data_folder", help="$data_root in the manifest")
    parser.add_argument("--manifest", help="CSV with wav and wrd")
    parser.add_argument("--audio", help="calibration audio")
    parser.add_argument("--max_kl", type=float, default=0.01)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--folder", default=ROOT / "results" / TABLE.stem)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--full", action="store_true", help="of no effect")
    given = parser.parse_args()
    from sb_prune.deploy.manifests import labelled_files

    table = Table(given.table)
    for name, source in (model.split("=", 1) for model in given.models):
        name += "-static" * given.static
        folder = Path(given.folder, name)
        audio = given.audio or f"{given.data_folder}/train-clean-5"
        if name not in table.cells or not folder.is_dir():
            options = (audio, given.max_kl, given.static)
            table.add(name, deploy_both(source, folder, *options))
        files = labelled_files(given.manifest, given.data_folder)
        for first in range(0, len(files), PART):
            key = f"{name}/{Path(given.manifest).stem}/{first}"
            if key not in table.cells:
                table.add(key, hear(folder, files[first : first + PART]))
    summary = summarise(table.cells)
    print(as_markdown(summary), file=sys.stderr)
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
