#!/usr/bin/env python3
"""Runs probes of speech encoders, and prints one table.

> python run_probes.py /path/to/encoder /path/to/export --librispeech=/path/to/LibriSpeech --slurp=/path/to/slurp --speech_commands=/path/to/speech_commands_v0.02

Probes whose corpus is not named are left out. What is finished is not run again,
and a run that was stopped continues. Further options (--device, --seed ...) go
to every train.py; other options than before need another --output_folder.

With --demo the corpora are synthesised and the heads small, for minutes on a CPU:
> python run_probes.py /path/to/small_wav2vec2 --demo --device=cpu
"""  # noqa: E501

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from sb_prune.declare.tables import format_table
from sb_prune.support.hashes import file_hash

HERE = Path(__file__).resolve().parent
CORPUS = {
    "pr": "librispeech",
    "asr": "librispeech",
    "ks": "speech_commands",
    "ic": "slurp",
    "sid": "librispeech",
}
TITLES = {
    "pr": "PER",
    "asr": "WER",
    "ks": "KS acc.",
    "ic": "IC acc.",
    "sid": "SID acc.",
}
# What makes minutes of it on two cores, with --demo.
DEMO = {"num_workers": 0, "max_batch_length": 12}
DEMO_OF = {
    "pr": {"number_of_epochs": 2, "lr": 0.003},
    "asr": {
        "number_of_epochs": 3,
        "lr": 0.001,
        "lstm_size": 64,
        "projection_size": 128,
    },
    "ks": {"number_of_epochs": 10},
    "ic": {"number_of_epochs": 10},
    "sid": {"number_of_epochs": 1},
}


def run_probe(probe, encoder, folder, options, more=()):
    """Runs, or continues, one probe of one encoder unless it is finished.

    Arguments
    ---------
    probe : str
        Name of a YAML.
    encoder : str
        Hugging Face name or folder, or an export.
    folder : pathlib.Path
        The output folder.
    options : dict
        Overrides of the YAML.
    more : list of str
        Further options for train.py.

    Returns
    -------
    dict
        What `score.json` says.

    Raises
    ------
    SystemExit
        If the probe fails; its last words are printed. Or if the folder holds
        a probe of another encoder, or with other options.
    """
    score, log = folder / "score.json", folder.with_suffix(".log")
    flags = {**options, "wav2vec2_hub": encoder, "output_folder": folder}
    for option in more:  # a key must not be there twice
        flags.pop(option.removeprefix("--").partition("=")[0], None)
    folder.mkdir(parents=True, exist_ok=True)
    note_what_is_probed(folder / "probed.json", encoder, flags, more)
    if not score.is_file():
        command = [sys.executable, "train.py", f"hparams/{probe}.yaml"]
        command += [f"--{key}={value}" for key, value in flags.items()]
        command += more
        with open(log, "a", encoding="utf-8") as output:
            status = subprocess.run(
                command, cwd=HERE, stdout=output, stderr=output
            ).returncode
        if status:
            last = log.read_text(encoding="utf-8").splitlines()[-20:]
            print(*last, sep="\n", file=sys.stderr)
            sys.exit(f"error: {probe} of {encoder} failed, see {log}")
    return json.loads(score.read_text())


def note_what_is_probed(path, encoder, flags, more):
    """Writes what a probe is made of, or compares with what stands there.

    Arguments
    ---------
    path : pathlib.Path
        A file in the folder of the probe.
    encoder : str
        Its weights are compared too, if it is a folder.
    flags : dict
        Options of train.py.
    more : list of str
        Further ones.

    Raises
    ------
    SystemExit
        If it was made of something else.
    """
    weights = sorted(Path(encoder).glob("*.safetensors"))
    weights += sorted(Path(encoder).glob("*.bin"))
    others = [o for o in more if not re.match(r"--(device|num_workers)\b", o)]
    made_of = {
        "options": {key: str(value) for key, value in flags.items()},
        "further options": others,
        "weights": {file.name: file_hash(file) for file in weights},
    }
    begun = any(path.parent.glob("save/CKPT*"))
    begun = begun or path.with_name("score.json").is_file()
    if not (begun and path.is_file()):  # else what failed is tried again
        path.write_text(json.dumps(made_of, indent=1) + "\n")
    before = json.loads(path.read_text())
    for name, value in made_of.items():
        if before[name] != value:
            sys.exit(
                f"error: {path.parent} is a probe with other {name}: "
                f"{before[name]}, not {value}; write another --output_folder, "
                "or delete that one"
            )


def synthesise(folder):
    """The corpora of --demo.

    Arguments
    ---------
    folder : pathlib.Path
        What is finished there is left as it is.

    Returns
    -------
    dict
        Name of a corpus -> its folder.
    """
    from sb_prune.demo.corpus import synthesise_librispeech
    from sb_prune.demo.slurp import synthesise_slurp
    from sb_prune.demo.speech_commands import synthesise_speech_commands

    corpora = {name: folder / name for name in sorted({*CORPUS.values()})}
    synthesise_librispeech(corpora["librispeech"])
    synthesise_slurp(corpora["slurp"])
    synthesise_speech_commands(corpora["speech_commands"])
    return corpora


def as_table(scores):
    """The table of all encoders.

    Arguments
    ---------
    scores : dict
        Encoder -> probe -> what `score.json` says.

    Returns
    -------
    str
        Markdown; PER and WER in %, less is better; accuracies in %.
    """
    probes = [p for p in CORPUS if any(p in of for of in scores.values())]
    rows = [["encoder", "M params", *(TITLES[p] for p in probes)]]
    for encoder, of in scores.items():
        size = next(iter(of.values()))["parameters"] / 1e6
        values = [f"{of[p]['value']:.2f}" for p in probes]
        rows.append([encoder, f"{size:.2f}", *values])
    return format_table(rows)


def read_command_line():
    """The arguments, and the options for train.py."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("encoders", nargs="+")
    parser.add_argument("--probes", nargs="+", choices=CORPUS)
    parser.add_argument("--output_folder", default="results/probes")
    parser.add_argument("--demo", action="store_true")
    for corpus in sorted({*CORPUS.values()}):
        parser.add_argument(f"--{corpus}", help="folder of the corpus")
    return parser.parse_known_args()


def main():
    """Runs what is missing and prints the table."""
    given, more = read_command_line()
    output = Path(given.output_folder).resolve()
    if given.demo:
        corpora = synthesise(output)
    else:
        named = {name: vars(given)[name] for name in {*CORPUS.values()}}
        corpora = {k: Path(v).resolve() for k, v in named.items() if v}
    probes = [p for p in given.probes or CORPUS if CORPUS[p] in corpora]
    if not probes:
        sys.exit("error: name a corpus, e.g. --librispeech=..., or --demo")
    scores = {}
    for encoder in given.encoders:
        if Path(encoder).is_dir():
            encoder = str(Path(encoder).resolve())
        name = re.sub(r"[^\w.-]+", "_", encoder).strip("_")
        for probe in probes:
            demo = {**DEMO, **DEMO_OF[probe]} if given.demo else {}
            score = run_probe(
                probe,
                encoder,
                output / name / probe,
                {"data_folder": corpora[CORPUS[probe]], **demo},
                more,
            )
            print(f"{encoder}: {score['figure']} {score['value']}", flush=True)
            scores.setdefault(encoder, {})[probe] = score
    print(as_table(scores))


if __name__ == "__main__":
    main()
