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
normalised as in its paper, others compared as they are. Finished models are
kept in real_int8.json; without models, what is there is printed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy
import soundfile
from cells import Table

from sb_prune.deploy import OnnxASR
from sb_prune.report.models import processes

# What needs torch is imported where it is used: the processes that are measured
# import this file, too.

TABLE = Path(__file__).with_suffix(".json")
KINDS = ("fp32", "int8")


def word_counts(asr, said, heard):
    """(errors, words) of an utterance."""
    from whisper_normalizer.english import EnglishTextNormalizer

    from sb_prune.support.words import word_errors

    if asr.model.settings["kind"] == "whisper":
        said, heard = (EnglishTextNormalizer()(text) for text in (said, heard))
    return word_errors(said.split(), heard.split())


def interval(counts):
    """95% interval of a rate over utterances, in %."""
    from sb_prune.support.words import error_rate

    _, low, high = error_rate(counts)
    return [round(low, 2), round(high, 2)]


def in_a_process(folder, wav):
    """(seconds of loading, peak memory in MiB) of a fresh process."""
    with tempfile.TemporaryDirectory() as other:
        path = f"{other}/utterance.wav"
        soundfile.write(path, wav, 16000)
        with processes({"": folder}, threads=1) as running:
            process = running[""]
            process.transcribe(path)
            return process.facts["load_s"], process.memory()


def measure(source, audio, labelled, max_kl, static):
    """Word error rates, sizes and speed of one model."""
    from sb_prune.deploy import deploy
    from sb_prune.deploy.folder import Quantization

    with tempfile.TemporaryDirectory() as folder:
        folders = {kind: Path(folder, kind) for kind in KINDS}
        deploy(source, folders["fp32"])
        quantization = Quantization(audio, max_kl, static=static)
        table = deploy(source, folders["int8"], quantization, half=True)
        fresh = {k: in_a_process(f, labelled[0][0]) for k, f in folders.items()}
        models = {k: OnnxASR(f, threads=1) for k, f in folders.items()}
        counts = {kind: [] for kind in KINDS}
        seconds = dict.fromkeys(KINDS, 0.0)
        for wav, said in labelled:
            for kind, asr in models.items():
                start = perf_counter()
                heard = asr.model.long(wav)
                seconds[kind] += perf_counter() - start
                counts[kind].append(word_counts(asr, said, heard))
        counts = {kind: numpy.array(c) for kind, c in counts.items()}
        sizes = {
            kind: sum(f.stat().st_size for f in path.glob("*.onnx*"))
            for kind, path in folders.items()
        }
    words = counts["fp32"][:, 1]
    lost = numpy.stack([counts["int8"][:, 0] - counts["fp32"][:, 0], words], 1)
    rates = {k: 100 * c[:, 0].sum() / words.sum() for k, c in counts.items()}
    rows = [row for row in table if row[0].startswith(("int8", "stays"))]
    return {
        **{f"wer_{kind}": round(float(r), 2) for kind, r in rates.items()},
        **{f"interval_{kind}": interval(c) for kind, c in counts.items()},
        "interval_lost": interval(lost),
        "speedup": round(seconds["fp32"] / seconds["int8"], 2),
        "mb": {k: round(size / 2**20, 1) for k, size in sizes.items()},
        "load_s": {k: round(seconds, 2) for k, (seconds, _) in fresh.items()},
        "peak_mib": {k: memory for k, (_, memory) in fresh.items()},
        "utterances": len(labelled),
        "int8": rows,
    }


def summarise(cells):
    """Model and manifest -> figures; they are printed as they are."""
    return cells


def as_markdown(summary):
    """The table for docs."""
    lines = [
        "| model, utterances | WER in float32, % | in int8, % | lost, points "
        "| times as fast | MB | loading, s | peak MiB |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for key, row in summary.items():
        cells = [f"{key} ({row['utterances']})"]
        for kind in KINDS:
            low, high = row[f"interval_{kind}"]
            cells.append(f"{row[f'wer_{kind}']:.2f} ({low:.2f} to {high:.2f})")
        lost = row["wer_int8"] - row["wer_fp32"]
        low, high = row["interval_lost"]
        cells.append(f"{lost:.2f} ({low:.2f} to {high:.2f})")
        cells.append(f"{row['speedup']:.2f}")
        for name in ("mb", "load_s", "peak_mib"):
            cells.append(" -> ".join(str(row[name][kind]) for kind in KINDS))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Measures the models that are missing, and prints all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[], help="NAME=FOLDER")
    parser.add_argument("--data_folder", help="$data_root in the manifest")
    parser.add_argument("--manifest", help="CSV with wav and wrd")
    parser.add_argument("--audio", help="calibration audio")
    parser.add_argument("--max_kl", type=float, default=0.01)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--full", action="store_true", help="of no effect")
    given = parser.parse_args()
    from sb_prune.deploy.manifests import labelled_audio

    table = Table(given.table)
    for name, folder in (model.split("=", 1) for model in given.models):
        key = f"{name}/{Path(given.manifest).stem}"
        key += "/static" * given.static
        if key not in table.cells:
            audio = given.audio or f"{given.data_folder}/train-clean-5"
            labelled = labelled_audio(given.manifest, given.data_folder, 16000)
            options = (given.max_kl, given.static)
            found = measure(folder, audio, labelled, *options)
            table.add(key, found)
    summary = summarise(table.cells)
    print(as_markdown(summary), file=sys.stderr)
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
