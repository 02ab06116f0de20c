"""Does graph convexity say how many layers a task needs?

    python tests/benchmarks/convexity_depth.py [--full] [--folder RUNS]

The small encoder of the CTC recipe (demo_encoder.yaml, 6 layers) on a Speech
Commands look-alike (35 words, 20 voices, six times each, SNR of -5 to 10 dB),
to tell words or speakers apart:

    curve              convexity of every layer before any training
    errors             its standard errors
    accuracy_by_depth  when the first layers alone are fine-tuned, all as long
    chosen             depth of the peak
    spearman           rank correlation of curve and mean accuracy
    regret             accuracy of the best depth less that of the chosen one

and at the size of two layers, 60% of the parameters gone,

    only_layers    the first two
    only_gates     all six, pruned by learned gates (wav2vec2_l0.yaml)
    both           the first four, then pruned

with the same epochs in all, and a front-end that learns too, as its gates must
(the depths above keep it frozen, as the recipe does). A cell is one run;
`cells.py` keeps them. Without --full: the curves, and words at the first depth.
"""

import json
import math
import re
from pathlib import Path

from cells import ROOT, Runs, run_benchmark, spread
from scipy.stats import spearmanr

from sb_prune.demo.corpus import synthesise_librispeech
from sb_prune.demo.speech_commands import synthesise_speech_commands

COMMANDS = ROOT / "recipes/Google-speech-commands"
TABLE = Path(__file__).with_suffix(".json")
LABELS = {"word": 35, "spk_id": 20}  # and how many classes
LAYERS = 6
LAYER, ALL = 198_272, 1_330_448  # parameters, of one layer and of the encoder
SMALL, MIDDLE = 2, 4  # layers
EPOCHS, STEPS = 4, 127  # optimizer steps in an epoch
GATED = ("only_gates", "both")
VARIANTS = ("only_layers", *GATED)

EVERY = {
    "encoder_dim": 128,
    "max_batch_length": 16,
    "num_workers": 0,
    "number_of_epochs": EPOCHS,
    "lr": 0.0005,
    "warmup_steps": 50,
}


class Cells:
    """Computes cells from runs of the recipes.

    Arguments
    ---------
    folder : Path
        Where corpora, runs and logs go.
    """

    def __init__(self, folder):
        self.runs = Runs(folder)
        self.speech, self.words = folder / "speech", folder / "words"
        synthesise_librispeech(
            self.speech, 1234, train_utterances=2700, test_utterances=640
        )
        synthesise_speech_commands(
            self.words,
            1234,
            speakers=LABELS["spk_id"],
            repetitions=6,
            words=LABELS["word"],
            jitter=5,
            snr=-5,
        )

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str
            "curves", "LABEL/DEPTH/SEED" or "LABEL/VARIANT/SEED"

        Returns
        -------
        dict or float
            Curves of all labels, or accuracy in %.
        """
        if key == "curves":
            return self._curves()
        label, what, seed = key.split("/")
        yaml = self.runs.folder / f"layers-{what}.yaml"
        yaml.write_text(recipe_yaml(what), encoding="utf-8")
        output = self._train(
            f"{label}-{what}-{seed}", yaml, label, training(what), seed
        )
        return round(100 - tested_error(output), 2)

    def _curves(self):
        yaml = self.runs.folder / "curves.yaml"
        text = absolute((COMMANDS / "hparams/convexity.yaml").read_text())
        text = text.replace("labels: [!ref <label>]", f"labels: {[*LABELS]}")
        yaml.write_text(text, encoding="utf-8")
        options = {**training("1"), "number_of_epochs": 1}
        output = self._train("curves", yaml, "word", options, 1)
        return json.loads((output / "save/layers.json").read_text())["curves"]

    def _train(self, name, yaml, label, options, seed):
        return self.runs.run(
            f"commands-{name}",
            COMMANDS / "train.py",
            yaml,
            is_tested,
            {
                **EVERY,
                **options,
                "label": label,
                "output_neurons": LABELS[label] + 1,  # <unk>
                "seed": seed,
                "wav2vec2_hub": self.runs.small_encoder(self.speech),
                "data_folder": self.words,
            },
        )


def tested_error(output):
    """Errors on test of a run, in %; NaN until it is finished."""
    log = output / "train_log.txt"
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    found = re.search(r"test error: (\S+)", text)
    return float(found[1]) if found else math.nan


def is_tested(output):
    """Whether a run is finished."""
    return not math.isnan(tested_error(output))


def absolute(text):
    """A YAML that may lie anywhere."""
    return text.replace(
        "inference: hparams", f"inference: {COMMANDS / 'hparams'}"
    )


def recipe_yaml(what):
    """The recipe's YAML for a depth or a variant.

    Arguments
    ---------
    what : str
        A number of layers, or one of `GATED`.

    Returns
    -------
    str
    """
    depth = {"only_layers": SMALL, "only_gates": LAYERS, "both": MIDDLE}
    name = "convexity_l0" if what in GATED else "convexity"
    text = absolute((COMMANDS / f"hparams/{name}.yaml").read_text("utf-8"))
    removed = LAYERS - int(depth.get(what, what))
    return re.sub(
        r"(name: layers_convexity\n    module: wav2vec2\n)    labels: .*\n",
        r"\1"
        "    criterion: !new:sb_prune.depth.LastLayers\n"
        f"        removed: {removed}\n",
        text,
    )


def training(what):
    """Options of a run, of one phase or two."""
    phases = 2 if what in GATED else 1
    total = STEPS * EPOCHS // phases
    options = {"total_steps": total, "cooldown_steps": total // 2}
    if what in VARIANTS:
        options["freeze_feature_extractor"] = False
    if what in GATED:  # to the size of SMALL layers
        options["target"] = round((LAYERS - SMALL) * LAYER / ALL, 4)
        options["prune_epochs"] = EPOCHS // 2
        options["schedule_steps"] = total - STEPS
    return options


# -------------------------------------------------------------------- table


def plan_cells(full):
    """Keys of all cells, in the order in which they are worth running."""
    if not full:
        return ["curves", "word/1/1"]
    keys = ["curves"]
    for seed in (1, 2, 3):
        for label in LABELS:
            keys += [f"{label}/{d}/{seed}" for d in range(1, LAYERS + 1)]
            keys += [f"{label}/{v}/{seed}" for v in VARIANTS]
    return keys


def summarise(cells):
    """{label: {curve, accuracy_by_depth, chosen, spearman, regret, ...}}."""
    found = {}
    for label in LABELS:
        scores = {}
        for key, value in sorted(cells.items()):
            if key.startswith(f"{label}/"):
                scores.setdefault(key.split("/")[1], []).append(value)
        by_depth = {
            d: scores[str(d)] for d in range(1, LAYERS + 1) if str(d) in scores
        }
        found[label] = {
            "curve": cells["curves"][label]["scores"],
            "errors": cells["curves"][label]["errors"],
            "accuracy_by_depth": by_depth,
            **compare_depths(
                cells["curves"][label]["scores"][1:], by_depth, LAYERS
            ),
            **{v: scores.get(v, []) for v in VARIANTS},
        }
    return found


def compare_depths(curve, by_depth, layers):
    """What a curve is worth: depth that it chooses, rank correlation, regret.

    Arguments
    ---------
    curve : list of float
        Score of each layer.
    by_depth : dict
        Layers kept -> accuracies, one for each seed.
    layers : int

    Returns
    -------
    dict
        chosen, spearman and regret; the last two are None while a depth lacks.
    """
    chosen = 1 + max(range(len(curve)), key=lambda i: (curve[i], -i))
    found = {"chosen": chosen, "spearman": None, "regret": None}
    if len(by_depth) == layers:
        means = [sum(by_depth[d]) / len(by_depth[d]) for d in sorted(by_depth)]
        found["spearman"] = round(float(spearmanr(curve, means)[0]), 3)
        found["regret"] = round(max(means) - means[chosen - 1], 2)
    return found


def as_markdown(summary):
    """The tables for a README, means with their spread."""
    lines = [
        "| layers | words: convexity | accuracy | speakers: convexity "
        "| accuracy |",
        "|--:|--:|--:|--:|--:|",
    ]
    for depth in range(1, LAYERS + 1):
        row = [str(depth)]
        for label in LABELS:
            found = summary[label]
            score, error = found["curve"][depth], found["errors"][depth]
            row.append(f"{score:.3f} ± {error:.3f}")
            row.append(spread(found["accuracy_by_depth"].get(depth, [])))
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "| at the size of two layers | words | speakers |"]
    lines.append("|:--|--:|--:|")
    for variant in VARIANTS:
        row = [spread(summary[label][variant]) for label in LABELS]
        lines.append(f"| {variant} | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark(TABLE, __doc__, plan_cells, Cells, summarise, as_markdown)
