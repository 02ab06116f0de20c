"""Does graph convexity say how many layers of Whisper a task needs?

    python tests/benchmarks/real_convexity.py --librispeech DIR --whisper DIR \\
        --alignments DIR --keywords DIR --orders DIR [--full] [--cells KEY ...]

Convexity (Dorszewski et al., 2024, 2408.11858) on the encoder of Whisper-base
and on real speech: a LibriSpeech tree, TextGrids of its dev split, a folder
with a folder of recordings for each keyword, and a folder of spoken orders with
jsonl files of SLURP and its folder `audio`.

A cell is `curves/WHAT`, the convexity of every layer before any training: of
words and phonemes of dev (`aligned`), or of a task; or TASK/DEPTH/SEED, the
accuracy after the first layers alone have been fine-tuned. The tasks are
`speakers` of train, utterances of each set apart; `keywords`; and `orders`:
which drink. `keywords/gates/SEED` has all layers, pruned by learned gates to
the size of the first three. The recipes are those for speakers, Speech
Commands and SLURP's intents. `--cells` runs some cells alone; without data,
what stands in the table is printed.
"""

import json
import math
import random
import re
import sys
from pathlib import Path

import soundfile
import torch
from cells import ROOT, Runs, locked
from convexity_depth import compare_depths, is_tested, tested_error
from real_speech import (
    ON_CPU,
    run_real,
    steps_in_epoch,
    with_whisper,
    write_with_whisper,
)
from transformers import WhisperConfig, WhisperModel

from sb_prune.support.measure import count_parameters

RECIPES = ROOT / "recipes"
TABLE = Path(__file__).with_suffix(".json")
LAYERS = 6
SMALL = 3  # layers, of whose size the pruned encoder is
BATCHES = {"max_batch_length": 32, "num_buckets": 10}
SHARE = 0.1  # of the keywords for validation, and again for testing
DRINK = "coffeeDrink"  # the slot of an order that is told apart
SEEDS = (1,)
TASKS = {  # name -> recipe, epochs
    "speakers": ("LibriSpeech/speaker-identification", 1),
    "keywords": ("Google-speech-commands", 2),
    "orders": ("SLURP/intents", 6),
}
ALIGNED = {"word": "words", "phone": "phonemes"}
CURVES = ("aligned", *TASKS)
QUICK = ["curves/keywords", "keywords/1/1"]
STRUCTURES = """    structures: !name:sb_prune.whisper_structures
        sides: [encoder]
"""
LAST_LAYERS = """    criterion: !new:sb_prune.depth.LastLayers
        removed: {}
"""
GATES = """pruning: !apply:sb_prune.preset
    name: whisper_l0
    module: wav2vec2
    prune_epochs: !ref <prune_epochs>
    target: !ref <target>
    schedule_steps: !ref <schedule_steps>
    seed: !ref <seed>
    hold_weights: False # the classifier has to learn first
    first_score: !name:sb_prune.magnitude_score # it knows nothing of the task
    distillation: null
    inference: hparams/inference.yaml
    export_folder: !ref <output_folder>/export
"""


def plan_cells(full):
    """Keys of cells, the most worth first."""
    if not full:
        return QUICK
    keys = [f"curves/{what}" for what in CURVES]
    for seed in SEEDS:
        for task in TASKS:
            keys += [f"{task}/{d}/{seed}" for d in range(1, LAYERS + 1)]
        keys.append(f"keywords/gates/{seed}")
    return keys


# --------------------------------------------------------------------- data


def lay_out_keywords(source, folder):
    """Writes recordings of keywords as Speech Commands has them.

    Whoever speaks is unknown, so the split is by file. What was there before,
    and is not in the source, is removed.

    Arguments
    ---------
    source : Path
        Holds a folder of wav or flac files for each keyword.
    folder : Path
        Where they and the two lists go.

    Returns
    -------
    Path
        The folder.
    """
    names = []
    for path in sorted(source.glob("*/*")):
        word = path.parent.name.replace(" ", "_")
        stem = path.name.replace(".", "-")  # a.wav and a.flac are two
        name = f"{word}/{stem}_nohash_0.wav"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not target.is_file():
                aside = target.with_suffix(".incomplete")
                wav, rate = soundfile.read(path, dtype="int16")
                soundfile.write(aside, wav, rate, format="WAV")
                aside.rename(target)
        except soundfile.LibsndfileError as error:
            print(f"{path} is left out ({error})", file=sys.stderr)
            continue
        names.append(name)
    for path in folder.glob("*/*"):
        if path.relative_to(folder).as_posix() not in names:
            path.unlink()
    random.Random(0).shuffle(names)
    apart = round(SHARE * len(names))
    for number, split in enumerate(("validation", "testing")):
        listed = names[number * apart : (number + 1) * apart]
        path = folder / f"{split}_list.txt"
        path.write_text("\n".join(listed) + "\n", encoding="utf-8")
    return folder


def lay_out_drinks(source, folder):
    """Writes orders anew, with the drink as what they are for.

    Arguments
    ---------
    source, folder : Path
        Folders of the jsonl files of SLURP; the audio stays where it is.

    Returns
    -------
    Path
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        orders = [json.loads(line) for line in lines]
        for order in orders:
            order["action"] = drink_of(order)
        text = "".join(json.dumps(order) + "\n" for order in orders)
        aside = folder / f"{path.name}.incomplete"  # another process may read
        aside.write_text(text, encoding="utf-8")
        aside.rename(folder / path.name)
    return folder


def drink_of(order):
    """The words of an order's drink, joined; "none" if it has no such slot."""
    for entity in order["entities"]:
        if entity["type"] == DRINK:
            tokens = [order["tokens"][place] for place in entity["span"]]
            return "_".join(token["surface"].lower() for token in tokens)
    return "none"


def drinks_of(path):
    """What is ordered in a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["action"] for line in lines}


def keywords_data(given, folder):
    """Options of a recipe for the keywords, laid out below a folder."""
    with locked(folder / "keywords.lock"):
        laid_out = lay_out_keywords(Path(given.keywords), folder / "keywords")
    return {"data_folder": laid_out}


def orders_data(given, folder):
    """Options of a recipe for the orders, whose texts go below a folder."""
    source = Path(given.orders).resolve()
    with locked(folder / "orders.lock"):
        texts = lay_out_drinks(source, folder / "orders")
    return {
        "data_folder": source,
        "text_folder": texts,
        "audio_folder": source / "audio",
    }


# --------------------------------------------------------------------- runs


class Cells:
    """Computes cells from runs of the recipes.

    Arguments
    ---------
    folder : Path
        Where data, runs and logs go.
    given : Namespace
        Of the command line.
    """

    def __init__(self, folder, given):
        self.runs, self._given = Runs(folder), given

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str

        Returns
        -------
        dict
            Name -> curve, or accuracy in % and utterances.
        """
        kind, what, *seed = key.split("/")
        if kind == "curves":
            path = self._curves(what) / "save/layers.json"
            curves = json.loads(path.read_text(encoding="utf-8"))["curves"]
            if what == "aligned":
                return {ALIGNED[label]: c for label, c in curves.items()}
            (curve,) = curves.values()
            return {what: curve}
        output = self._train(key.replace("/", "-"), kind, what, *seed)
        rows = (output / "test.csv").read_text(encoding="utf-8").splitlines()
        accuracy = round(100 - tested_error(output), 2)
        return {"accuracy": accuracy, "utterances": len(rows) - 1}

    def _curves(self, what):
        name, options = f"curves-{what}", {"number_of_epochs": 0}
        if what != "aligned":
            return self._train(name, what, None, 1, options)
        options |= {
            **self._speakers(self._given.dev),
            "alignments_folder": self._given.alignments,
            "labels": f"[{', '.join(ALIGNED)}]",
        }
        return self._train(name, "speakers", None, 1, options)

    def _train(self, name, task, what, seed, more=None):
        recipe, epochs = TASKS[task]
        path = self.runs.folder / f"{name}.yaml"
        text = recipe_yaml(recipe, what)
        write_with_whisper(path, text, RECIPES / recipe / "hparams")
        options = {
            **BATCHES,
            "encoder_dim": self._config().d_model,
            **ON_CPU,
            "number_of_epochs": epochs,
            "lr": 0.0001,
            "warmup_steps": 40,
            "seed": seed,
            "wav2vec2_hub": self._given.whisper,
            **self._data(task),
            **(more or {}),
        }
        if options["number_of_epochs"]:
            options |= self._schedule(task, what, epochs)
        script = RECIPES / recipe / "train.py"
        return self.runs.run(name, script, path, is_tested, options)

    def _config(self):
        return WhisperConfig.from_pretrained(self._given.whisper)

    def _schedule(self, task, what, epochs):
        """Options of a training, by the steps that its data make."""
        train = self._curves(task) / "train.csv"  # that run has made it
        steps = steps_in_epoch(train, **BATCHES)
        gates = what == "gates"
        total = epochs * steps // (2 if gates else 1)
        options = {"total_steps": total, "cooldown_steps": total // 2}
        if gates:
            gone = share_of_layers(self._config(), LAYERS - SMALL)
            options |= {"target": gone, "prune_epochs": epochs // 2}
            options["schedule_steps"] = round(0.8 * total)
        return options

    def _data(self, task):
        """Where the recordings of a task are, and how many classes."""
        if task == "speakers":
            return self._speakers(self._given.train)
        folder = self.runs.folder
        if task == "keywords":
            data = keywords_data(self._given, folder)
            words = [p for p in data["data_folder"].iterdir() if p.is_dir()]
            return {**data, "output_neurons": 1 + len(words)}
        data = orders_data(self._given, folder)
        drinks = drinks_of(data["text_folder"] / "train.jsonl")
        return {**data, "output_neurons": 1 + len(drinks)}

    def _speakers(self, split):
        """Where the utterances are, and how many classes: and <unk>."""
        folder = Path(self._given.librispeech, split)
        speakers = [path for path in folder.iterdir() if path.is_dir()]
        return {
            "data_folder": self._given.librispeech,
            "splits": f"[{split}]",
            "output_neurons": 1 + len(speakers),
        }


def share_of_layers(config, layers):
    """Share of the parameters of Whisper's encoder that some layers have."""
    with torch.device("meta"):
        encoder = WhisperModel(config).encoder
    layer = count_parameters([encoder.layers[0]])
    return round(layers * layer / count_parameters([encoder]), 4)


def recipe_yaml(recipe, what):
    """convexity.yaml of a recipe, for Whisper's encoder.

    Arguments
    ---------
    recipe : str
        Its folder.
    what : str or None
        A number of layers, "gates", or None: as many as the criterion keeps.

    Returns
    -------
    str
    """
    gates = what == "gates"
    name = "convexity_l0" if gates else "convexity"
    text = (RECIPES / recipe / f"hparams/{name}.yaml").read_text("utf-8")
    text = with_whisper(text, "wav2vec2")
    block = r"(?m)^{}: .*\n(?:    .*\n)+"
    if gates:
        text, count = re.subn(block.format("layer_pruning"), "", text)
        assert count == 1
        text, count = re.subn(block.format("pruning"), GATES, text)
        assert count == 1
    else:
        before = "    name: layers_convexity\n    module: wav2vec2\n"
        assert text.count(before) == 1
        text = text.replace(before, before + STRUCTURES)
    if what is not None and not gates:
        lines = LAST_LAYERS.format(LAYERS - int(what))
        text = re.sub(r"(?m)^    labels: .*\n", lines, text)
    return text


# -------------------------------------------------------------------- table


def summarise(cells):
    """{curves: name -> ..., tasks: task -> {accuracy_by_depth, ...}}."""
    curves = {}
    for key in sorted(cells):
        if key.startswith("curves/"):
            curves.update(cells[key])
    tasks = {}
    for key, cell in sorted(cells.items()):
        task, what, *seed = key.split("/")
        if seed:
            rows = tasks.setdefault(task, {}).setdefault(what, [])
            rows.append(cell)
    found = {}
    for task, rows in tasks.items():
        by_depth = {
            depth: [cell["accuracy"] for cell in rows[str(depth)]]
            for depth in range(1, LAYERS + 1)
            if str(depth) in rows
        }
        compared = {}
        if task in curves:
            curve = curves[task]["scores"][1:]
            compared = compare_depths(curve, by_depth, LAYERS)
        found[task] = {
            "utterances": next(iter(rows.values()))[0]["utterances"],
            "accuracy_by_depth": by_depth,
            "gates": [cell["accuracy"] for cell in rows.get("gates", [])],
            **compared,
        }
    return {"curves": curves, "tasks": found}


def interval(accuracy, utterances):
    """The 95% interval of Wilson (1927) for a share of utterances, in %."""
    z, n, share = 1.96, utterances, accuracy / 100
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = share * (1 - share) / n + z**2 / (4 * n**2)
    half = z * math.sqrt(half) / (1 + z**2 / n)
    return 100 * (middle - half), 100 * (middle + half)


def as_markdown(summary):
    """The tables for docs: convexity, and accuracy, of every layer."""
    curves, tasks = summary["curves"], summary["tasks"]
    lines = [
        "| layer | " + " | ".join(curves) + " |",
        "|:--|" + "--:|" * len(curves),
    ]
    for layer in range(LAYERS + 1 if curves else 0):
        scores = [
            f"{c['scores'][layer]:.3f} ± {c['errors'][layer]:.3f}"
            for c in curves.values()
        ]
        lines.append(f"| {layer or 'input'} | " + " | ".join(scores) + " |")
    if not tasks:
        return "\n".join(lines)
    lines += ["", "| layers kept | " + " | ".join(tasks) + " |"]
    lines.append("|:--|" + "--:|" * len(tasks))
    for what in (*range(1, LAYERS + 1), "gates"):
        row = []
        for found in tasks.values():
            rates = found["accuracy_by_depth"].get(what, [])
            row.append(shown(rates or found.get(what, []), found["utterances"]))
        if {*row} - {"-"}:
            lines.append(f"| {what} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def shown(rates, utterances):
    """Mean over seeds, and the interval of so many utterances."""
    if not rates:
        return "-"
    mean = sum(rates) / len(rates)
    low, high = interval(mean, utterances)
    return f"{mean:.1f} ({low:.1f} to {high:.1f}; {len(rates)})"


if __name__ == "__main__":
    run_real(
        __doc__,
        TABLE,
        plan_cells,
        Cells,
        summarise,
        as_markdown,
        {
            "librispeech": "a LibriSpeech tree",
            "whisper": "its folder",
            "alignments": "TextGrids of its dev split",
            "keywords": "a folder of recordings for each",
            "orders": "a layout of SLURP",
        },
    )
