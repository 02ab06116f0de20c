"""Does graph convexity say how many layers of Whisper a task needs?

    python tests/benchmarks/real_convexity.py --librispeech DIR --whisper DIR \\
        --alignments DIR --keywords DIR --orders DIR [--full] [--cells KEY ...]

System 4 (Dorszewski et al., 2024) on the encoder of Whisper-base and on real
speech: a LibriSpeech tree, TextGrids of its dev split, a folder with a folder
of recordings for each keyword, and spoken orders in the layout of SLURP.

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
from cells import ROOT, Runs
from convexity_depth import compare_depths
from real_speech import run_real

RECIPES = ROOT / "recipes"
TABLE = Path(__file__).with_suffix(".json")
LAYERS = 6
LAYER, ENCODER = 3_152_384, 20_590_592  # parameters of Whisper-base
SMALL = 3  # layers, of whose size the pruned encoder is
SECONDS = 32  # of a batch
SHARE = 0.1  # of the keywords for validation, and again for testing
DRINK = "coffeeDrink"  # the slot of an order that is told apart
SEEDS = (1, 2, 3)
TASKS = {  # name -> recipe, epochs, steps in each
    "speakers": ("LibriSpeech/speaker-identification", 1, 560),
    "keywords": ("Google-speech-commands", 2, 190),
    "orders": ("SLURP/intents", 6, 90),
}
ALIGNED = {"word": "words", "phone": "phonemes"}
CURVES = ("aligned", *TASKS)
QUICK = ["curves/keywords", "keywords/1/1"]
LOBE = r"""wav2vec2: !new:sb_prune.lobes.Whisper
    source: !ref <wav2vec2_hub>
\1
    encoder_only: True
    aligned: True # no frames behind the utterance
    context: utterance
    margin: 0.5
"""
STRUCTURES = """    structures: !name:sb_prune.whisper_structures
        sides: [encoder]
"""
NOTHING_LEFT_OUT = """    criterion: !new:sb_prune.depth.LastLayers
        removed: {}
"""
GATES = """pruning: !apply:sb_prune.preset
    name: whisper_l0
    module: wav2vec2
    prune_epochs: !ref <prune_epochs>
    target: !ref <target>
    schedule_steps: !ref <schedule_steps>
    seed: !ref <seed>
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

    Whoever speaks is unknown, so the split is by file.

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
        name = f"{word}/{path.stem}_nohash_0.wav"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not target.is_file():
                soundfile.write(target, *soundfile.read(path, dtype="int16"))
        except soundfile.LibsndfileError as error:
            print(f"{path} is left out ({error})", file=sys.stderr)
            continue
        names.append(name)
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
        Layouts of SLURP; the audio stays where it is.

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
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def drink_of(order):
    """The words of an order's drink, joined; "none" if it has no such slot."""
    for entity in order["entities"]:
        if entity["type"] == DRINK:
            words = [
                order["tokens"][place]["surface"] for place in entity["span"]
            ]
            return "_".join(words)
    return "none"


def drinks_of(path):
    """What is ordered in a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["action"] for line in lines}


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
        keywords = lay_out_keywords(Path(given.keywords), folder / "keywords")
        orders = lay_out_drinks(Path(given.orders), folder / "orders")
        self._data = {
            "speakers": self._speakers(given.train),
            "keywords": {
                "data_folder": keywords,
                "output_neurons": 1 + len([*keywords.glob("*/")]),
            },
            "orders": {
                "output_neurons": 1 + len(drinks_of(orders / "train.jsonl")),
                "data_folder": given.orders,
                "text_folder": orders,
                "audio_folder": Path(given.orders).resolve() / "audio",
            },
        }

    def _speakers(self, split):
        """Where the utterances are, and how many classes: and <unk>."""
        speakers = [*Path(self._given.librispeech, split).glob("*/")]
        return {
            "data_folder": self._given.librispeech,
            "splits": f"[{split}]",
            "output_neurons": 1 + len(speakers),
        }

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
        log = (output / "train_log.txt").read_text(encoding="utf-8")
        error = float(re.search(r"test error: (\S+)", log)[1])
        rows = (output / "test.csv").read_text(encoding="utf-8").splitlines()
        return {"accuracy": round(100 - error, 2), "utterances": len(rows) - 1}

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
        folder, epochs, steps = TASKS[task]
        path = self.runs.folder / f"{name}.yaml"
        path.write_text(recipe_yaml(folder, what), encoding="utf-8")
        text = (RECIPES / folder / "hparams/inference.yaml").read_text("utf-8")
        inference = self.runs.folder / f"{task}-inference.yaml"
        inference.write_text(with_whisper(text), encoding="utf-8")
        phases = 2 if what == "gates" else 1
        total = epochs * steps // phases
        options = {
            "encoder_dim": 512,
            "max_batch_length": SECONDS,
            "num_workers": 0,
            "number_of_epochs": epochs,
            "lr": 0.0001,
            "warmup_steps": 40,
            "total_steps": total,
            "cooldown_steps": total // 2,
            "seed": seed,
            "wav2vec2_hub": self._given.whisper,
            **self._data[task],
        }
        if what == "gates":
            options["target"] = round((LAYERS - SMALL) * LAYER / ENCODER, 4)
            options["prune_epochs"] = epochs // 2
            options["schedule_steps"] = total - steps // 4
        script = RECIPES / folder / "train.py"
        options |= more or {}
        return self.runs.run(name, script, path, "export/README.md", options)


def with_whisper(text):
    """A YAML of a recipe, with Whisper's encoder in place of its own."""
    first = r"(?m)^wav2vec2: !new:.*\n    source: .*\n(    save_path: .*)\n"
    changed, count = re.subn(first + r"(?:    .*\n)*", LOBE, text)
    assert count == 1
    return changed


def recipe_yaml(folder, what):
    """convexity.yaml of a recipe, for Whisper's encoder.

    Arguments
    ---------
    folder : str
        Of the recipe.
    what : str or None
        A number of layers, "gates", or None: as many as the criterion keeps.

    Returns
    -------
    str
    """
    gates = what == "gates"
    name = "convexity_l0" if gates else "convexity"
    text = (RECIPES / folder / f"hparams/{name}.yaml").read_text("utf-8")
    text = with_whisper(text)
    before = "    name: layers_convexity\n    module: wav2vec2\n"
    assert text.count(before) == 1
    text = text.replace(before, before + STRUCTURES)
    if what is not None:
        removed = 0 if gates else LAYERS - int(what)
        lines = NOTHING_LEFT_OUT.format(removed)
        text = re.sub(r"(?m)^    labels: .*\n", lines, text)
    if gates:
        block = r"(?m)^pruning: .*\n(?:    .*\n)+"
        assert len(re.findall(block, text)) == 1
        text = re.sub(block, GATES, text)
    task = next(name for name, (f, *_) in TASKS.items() if f == folder)
    return text.replace(
        "inference: hparams/inference.yaml",
        f"inference: !ref <output_folder>/../{task}-inference.yaml",
    )


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
