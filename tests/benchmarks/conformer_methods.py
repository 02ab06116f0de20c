"""What pruning is worth: word errors of every method, at two sparsities.

    python tests/benchmarks/conformer_methods.py [--full] [--folder RUNS]

On synthesised speech (sentences unseen in training, known voices), with the
LibriSpeech recipe and its demo YAMLs. Every pruned run starts from the same
converged dense model and has the same epochs, schedule, budget, surgery and
fine-tuning; only how structures are chosen and what is distilled differ. Each
is compared with a dense model of the same size trained from scratch
(`small_dense`) for all those epochs together, as `dense_longer` is.

A cell is one run of train.py; `cells.py` keeps them. Without --full: one seed,
one level, and only what is quick to compare.
"""

import re
from pathlib import Path

from cells import ROOT, Runs, run_benchmark, spread

from sb_prune.demo.corpus import synthesise_librispeech

RECIPE = ROOT / "recipes/LibriSpeech/ASR/transformer"
TABLE = Path(__file__).with_suffix(".json")
WORD_ERRORS = "wer_test-clean.txt"

TEST_UTTERANCES = 640
WIDTH, LAYERS, KERNEL = 96, 4, 15
DENSE_EPOCHS, PRUNE_EPOCHS, TUNE_EPOCHS = 12, 4, 4
ALL_EPOCHS = DENSE_EPOCHS + PRUNE_EPOCHS + TUNE_EPOCHS
STEPS = 94  # optimizer steps in an epoch
EVERY = {"max_batch_length": 24, "dropout": 0.1}
LEVELS = (0.75, 0.5)
SEEDS = (1, 2, 3)

L0 = "conformer_l0"
SCORE = "conformer_score"
SLICES = ["structures:", "    kinds: [ffn_units, heads, conv_channels]"]
STRAIGHT = ["gates:", "    straight_through: True"]
METHODS = {
    "l0_straight": (L0, SLICES + STRAIGHT),
    "l0_soft": (L0, SLICES),
    "taylor": (SCORE, []),
    "magnitude": (SCORE, ["score: !name:sb_prune.magnitude_score"]),
    "random": (SCORE, ["score: !name:sb_prune.random_score"]),
}
# The rows above choose among slices; this among whole modules and layers too.
MODULES = {"l0_soft_modules": (L0, [])}  # the preset as it is
EXTRA = [f"{name}+distill" for name in MODULES]  # at one level only
QUICK = ("l0_soft+distill", "magnitude", "small_dense")


def all_methods():
    """Names of the table's rows: each method with and without a teacher."""
    names = [name + more for more in ("+distill", "") for name in METHODS]
    return [*names, *EXTRA, "small_dense"]


# --------------------------------------------------------------------- runs


class Cells:
    """Computes cells from runs of train.py.

    Arguments
    ---------
    folder : Path
        Where corpus, runs and logs go.
    """

    def __init__(self, folder):
        self.runs = Runs(folder)
        self.corpus = folder / "corpus"
        synthesise_librispeech(
            self.corpus, 1234, test_utterances=TEST_UTTERANCES
        )

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str
            "dense/SEED", "dense_longer/SEED" or "METHOD/LEVEL/SEED".

        Returns
        -------
        float
            Word error rate on the test set, in %.
        """
        method, *level, seed = key.split("/")
        name = key.replace("/", "-")
        if method == "dense":
            output = self._dense(seed)
        elif method == "dense_longer":
            output = self._train(name, seed, ALL_EPOCHS)
        elif method == "small_dense":
            model = small_model(float(level[0]))
            output = self._train(name, seed, ALL_EPOCHS, model)
        else:
            output = self._prune(name, method, float(level[0]), seed)
        text = (output / WORD_ERRORS).read_text("utf-8")
        return float(re.match(r"%WER (\S+)", text)[1])

    def _dense(self, seed):
        return self._train(f"dense-{seed}", seed, DENSE_EPOCHS)

    def _train(self, name, seed, epochs, model=None):
        options = {
            "number_of_epochs": epochs,
            "total_steps": STEPS * epochs,
            "cooldown_steps": STEPS * epochs // 2,
            **(model or {"d_model": WIDTH, "d_ffn": 4 * WIDTH}),
        }
        yaml = RECIPE / "hparams/demo_train.yaml"
        return self._run(name, yaml, seed, options)

    def _prune(self, name, method, level, seed):
        yaml = self.runs.folder / f"{method}.yaml"
        yaml.write_text(pruning_yaml(method), encoding="utf-8")
        options = {
            "number_of_epochs": PRUNE_EPOCHS + TUNE_EPOCHS,
            "prune_epochs": PRUNE_EPOCHS,
            "schedule_steps": 2 * STEPS,
            "total_steps": STEPS * PRUNE_EPOCHS,
            "cooldown_steps": STEPS * PRUNE_EPOCHS // 2,
            "target": level,
            "d_model": WIDTH,
            "d_ffn": 4 * WIDTH,
            "dense_folder": self._dense(seed),
        }
        return self._run(name, yaml, seed, options)

    def _run(self, name, yaml, seed, options):
        options = {
            **EVERY,
            **options,
            "seed": seed,
            "data_folder": self.corpus,
        }
        return self.runs.run(
            name, RECIPE / "train.py", yaml, WORD_ERRORS, options
        )


def pruning_yaml(method):
    """demo_prune.yaml with another preset, and without an export."""
    chosen, _, distilled = method.partition("+")
    preset, lines = {**METHODS, **MODULES}[chosen]
    text = (RECIPE / "hparams/demo_prune.yaml").read_text("utf-8")
    text = text.replace(f"name: {L0}\n", f"name: {preset}\n")
    text = re.sub(r"\n    (inference|export_folder):.*", "", text)
    lines = lines + ([] if distilled else ["distillation: null"])
    added = "".join(f"    {line}\n" for line in lines)
    module = "    module: Transformer\n"
    return text.replace(module, module + added)


def small_model(level):
    """Overrides that give a dense encoder what pruning leaves, or less."""
    budget = encoder_parameters(WIDTH, 4 * WIDTH) * (1 - level)
    width = max(
        d for d in range(16, WIDTH, 4) if encoder_parameters(d, 4 * d) <= budget
    )
    hidden = 4 * width
    while encoder_parameters(width, hidden + 1) <= budget:
        hidden += 1
    return {"d_model": width, "d_ffn": hidden}


def encoder_parameters(d, h):
    """Parameters of the demo's Conformer encoder."""
    ffn = 2 * d * h + h + d + 2 * d
    attention = 5 * d * d + d + 2 * d + 2 * d  # with position biases, norm
    convolution = 2 * d * (d + 1) + d * (KERNEL + 1) + 2 * d + d * (d + 1)
    convolution += 2 * d  # its first norm
    return LAYERS * (2 * ffn + attention + convolution + 2 * d) + 2 * d


# -------------------------------------------------------------------- table


def summarise(cells):
    """{table: method -> sparsity -> list of WER, dense, dense_longer}."""
    result = {"table": {}, "dense": [], "dense_longer": []}
    for key, wer in sorted(cells.items()):
        name, *rest = key.split("/")
        if name in result:
            result[name].append(wer)
        else:
            rows = result["table"].setdefault(name, {})
            rows.setdefault(rest[0], []).append(wer)
    return result


def plan_cells(full):
    """Keys of all cells, in the order in which they are worth running."""
    levels, seeds = (LEVELS, SEEDS) if full else (LEVELS[:1], SEEDS[:1])
    methods = all_methods() if full else QUICK
    keys = []
    for level in levels:
        for seed in seeds:
            keys += [
                f"{method}/{level}/{seed}"
                for method in methods
                if level == levels[0] or method not in EXTRA
            ]
    keys += [f"dense_longer/{seed}" for seed in seeds]
    return [f"dense/{seed}" for seed in seeds] + keys


def as_markdown(summary):
    """The table for a README, means with their spread."""
    levels = [str(level) for level in sorted(LEVELS)]
    lines = ["| method | " + " | ".join(levels) + " |", "|:--|--:|--:|"]
    for method in all_methods():
        row = summary["table"].get(method, {})
        cells = [spread(row.get(level, [])) for level in levels]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    for name in ("dense", "dense_longer"):
        lines.append(f"| {name} | {spread(summary[name])} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark(TABLE, __doc__, plan_cells, Cells, summarise, as_markdown)
