"""A Conformer on real speech: word errors of every method, at every size.

    python tests/benchmarks/real_conformer.py \\
        --librispeech DIR --whisper DIR [--full] [--cells KEY ...]

System 1 (Jiang et al., 2023) on train-clean-5: the recipe's Conformer with
CTC, taught by Whisper's encoder (train_ctc_with_whisper.yaml), is trained once,
then pruned (prune_ctc.yaml) by every method on every other utterance, with the
same steps, pruning and fine-tuning together, the same distillation and the same
data:

    l0_taylor          learned gates, which start in the order of the loss
    l0_soft            the same, which start in the order of the weights
    l0_straight        the same, straight-through
    l0_modules         the same as l0_soft, with whole modules and layers
    taylor, magnitude, random    a score chooses while the model learns
    fisher             taylor, all at once
    fisher_reselected  the same; which units stay, and their readers' weights,
                       follow from least squares
    small_dense        a dense encoder of the size that is left, taught from
                       scratch on all utterances for as many steps as all of
                       the above together

All start from one dense model; seeds are those of pruning. Word errors are
those of greedy CTC, with 95% intervals of a bootstrap over utterances; methods
are chosen on dev. `dense_continued` is pruned by a thousandth, with the steps
and the distillation of all others: from it, differences are counted, since the
dense model has not learned for as long.

A cell is METHOD/LEVEL/SEED, LEVEL the share of the encoder's parameters that
goes, or `dense/1`, `dense_continued/1`. `cut:METHOD/LEVEL/SEED` is the same
just after the cut, before any training; `test:METHOD/LEVEL/SEED` its evaluation
on test. `--cells` runs those alone; without data, what stands in the table is
printed.
"""

import math
import re
from functools import partial
from pathlib import Path

from cells import Runs
from conformer_methods import STRAIGHT
from real_speech import (
    FEW_GONE,
    ON_CPU,
    RECIPE,
    SCORE_STEPS,
    manifests,
    methods_as_markdown,
    phases,
    run_real,
    score,
    steps_in_epoch,
    summarise_methods,
)

TABLE = Path(__file__).with_suffix(".json")
BATCHES = {"max_batch_length": 36, "max_batch_ex": 64, "num_buckets": 20}
DENSE_EPOCHS = 20
PRUNED_RATE = 0.0005  # half of the largest that the dense model had
PRUNE_EPOCHS, TUNE_EPOCHS = 2, 3  # of half the utterances
HALF = 2
CUT_EVERY = 8  # training utterances of which one measures, in `cut:` cells
DENSE = {"d_model": 144, "d_ffn": 1024}
LAYERS, KERNEL = 12, 31
LEVELS = (0.5, 0.75)
CUT_LEVELS = (0.2, 0.35, 0.5)
SEEDS = (1, 2, 3)

L0, SCORE = "conformer_l0", "conformer_score"
SLICES = ["structures:", "    kinds: [ffn_units, heads, conv_channels]"]
MEASURED = ["first_score: !name:sb_prune.taylor_score", "hold_weights: True"]
SMALL_STEP = ["gate_optimizer: !name:torch.optim.Adam", "    lr: 0.05"]
OPEN_FIRST = ["schedule: {start: 0.2}"]  # as gates are, to see what matters
REFIT = ["refit: !name:sb_prune.LeastSquares"]
RESELECT = [*REFIT, "    reselect: True"]
BY_MAGNITUDE = ["score: !name:sb_prune.magnitude_score"]
AT_ONCE = {  # name -> lines
    "fisher": [],
    "fisher_refit": REFIT,
    "fisher_reselected": RESELECT,
    "magnitude_at_once": BY_MAGNITUDE,
    "magnitude_refit": BY_MAGNITUDE + REFIT,
}
METHODS = {  # name -> (preset, lines beside it)
    "l0_taylor": (L0, SLICES + MEASURED),
    "l0_soft": (L0, SLICES),
    "l0_straight": (L0, SLICES + STRAIGHT + SMALL_STEP),
    "l0_modules": (L0, []),
    "taylor": (SCORE, OPEN_FIRST),
    "magnitude": (SCORE, OPEN_FIRST + BY_MAGNITUDE),
    "random": (SCORE, [*OPEN_FIRST, "score: !name:sb_prune.random_score"]),
    "fisher": (SCORE, AT_ONCE["fisher"]),
    "fisher_reselected": (SCORE, AT_ONCE["fisher_reselected"]),
}
BEST = ("l0_taylor", "fisher_reselected")  # more levels and seeds
QUICK = ["dense/1", "cut:fisher_reselected/0.2/1"]


def plan_cells(full):
    """Keys of cells, the most worth first."""
    if not full:
        return QUICK
    first, second = LEVELS
    keys = ["dense/1"]
    keys += [f"{method}/{first}/1" for method in METHODS]
    keys += ["dense_continued/1"]
    keys += [f"{method}/{second}/1" for method in (*BEST, "magnitude")]
    keys += [f"{m}/{first}/{seed}" for seed in SEEDS[1:] for m in BEST]
    keys += [f"small_dense/{first}/1"]
    return keys + [
        f"cut:{m}/{level}/1" for level in CUT_LEVELS for m in AT_ONCE
    ]


# --------------------------------------------------------------------- runs


class Cells:
    """Computes cells from runs of train.py.

    Arguments
    ---------
    folder : Path
        Where runs and logs go.
    given : Namespace
        Of the command line.
    """

    def __init__(self, folder, given):
        self.runs, self._teacher = Runs(folder), given.whisper
        self._data = given.librispeech
        self._csv = manifests(
            folder / "csv",
            self._data,
            given.splits,
            {"half": HALF, "few": CUT_EVERY},
        )
        self._steps = {  # of an epoch
            name: steps_in_epoch(self._csv[name][0], **BATCHES)
            for name in ("train", "half")
        }

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str

        Returns
        -------
        dict
            Word error rate, its interval, and errors and words of each
            utterance, by which methods are compared in pairs.
        """
        split = "test" if key.startswith("test:") else "dev"
        key = key.removeprefix("test:")
        return score(partial(self._output, key), self._csv[split])

    def _output(self, key, scored):
        """Folder of a finished run whose model has been scored."""
        method, *level, seed = key.removeprefix("cut:").split("/")
        name = key.replace("/", "-").replace(":", "-")
        if method == "dense":
            return self._dense(seed, scored)
        if method == "small_dense":
            model = small_model(float(level[0]))
            pruned = 1 + PRUNE_EPOCHS + TUNE_EPOCHS  # the first by scores alone
            epochs = DENSE_EPOCHS + math.ceil(pruned / HALF)
            return self._train(name, seed, scored, epochs, model)
        if method == "dense_continued":
            return self._prune(name, "fisher", FEW_GONE, seed, scored)
        if key.startswith("cut:"):
            return self._cut(name, method, float(level[0]), seed, scored)
        return self._prune(name, method, float(level[0]), seed, scored)

    def _dense(self, seed, scored=None):
        scored = scored or self._csv["valid"][0]
        return self._train(f"dense-{seed}", seed, scored, DENSE_EPOCHS, DENSE)

    def _train(self, name, seed, scored, epochs, model):
        steps = epochs * self._steps["train"]
        options = {
            "number_of_epochs": epochs,
            "total_steps": steps,
            "cooldown_steps": round(0.6 * steps),
            "warmup_steps": round(0.1 * steps),
            "whisper_hub": self._teacher,
            **model,
        }
        yaml = RECIPE / "hparams/train_ctc_with_whisper.yaml"
        return self._run(name, yaml, "train", seed, scored, options)

    def _prune(self, name, method, level, seed, scored):
        at_once = method in AT_ONCE
        preset, lines = METHODS[method]
        lines = lines_at_once(method) if at_once else lines
        epochs = PRUNE_EPOCHS, TUNE_EPOCHS
        options = phases(at_once, *epochs, self._steps["half"])
        yaml = self._yaml(name, preset, lines)
        return self._pruned(name, yaml, "half", level, seed, scored, options)

    def _cut(self, name, method, level, seed, scored):
        options = {  # nothing is learned in the epoch after the cut
            "number_of_epochs": 2,
            "prune_epochs": 1,
            "schedule_steps": SCORE_STEPS,
            "lr": 0.0,
        }
        yaml = self._yaml(name, SCORE, lines_at_once(method))
        return self._pruned(name, yaml, "few", level, seed, scored, options)

    def _yaml(self, name, preset, lines):
        path = self.runs.folder / f"{name}.yaml"
        path.write_text(pruning_yaml(preset, lines), encoding="utf-8")
        return path

    def _pruned(self, name, yaml, train, level, seed, scored, options):
        options = {
            "dense_folder": self._dense("1"),
            "target": level,
            "lr": PRUNED_RATE,
            **DENSE,
            **options,
        }
        return self._run(name, yaml, train, seed, scored, options)

    def _run(self, name, yaml, train, seed, scored, options):
        options = {
            "data_folder": self._data,
            "skip_prep": True,
            **ON_CPU,
            "train_csv": self._csv[train][0],
            "valid_csv": self._csv["valid"][0],
            "test_csv": f"[{scored}]",
            **BATCHES,
            "seed": seed,
            **options,
        }
        last = f"wer_{scored.stem}.txt"
        return self.runs.run(name, RECIPE / "train.py", yaml, last, options)


def lines_at_once(method):
    """Lines of the block with which all goes at once, after measuring."""
    return [
        *AT_ONCE[method],
        "hold_weights: True",
        f"prune_steps: {SCORE_STEPS}",
        "schedule: !name:sb_prune.LinearSchedule",
        "    start: 0.99",
    ]


def pruning_yaml(preset, lines):
    """prune_ctc.yaml with another preset and more lines in its block."""
    text = (RECIPE / "hparams/prune_ctc.yaml").read_text("utf-8")
    text = text.replace(f"name: {L0}\n", f"name: {preset}\n")
    text = re.sub(r"\n    (inference|export_folder):.*", "", text)
    added = "".join(f"    {line}\n" for line in lines)
    module = "    module: Transformer\n"
    assert text.count(module) == 1
    return text.replace(module, module + added)


def small_model(level):
    """Overrides that give a dense encoder what pruning leaves, or less."""
    budget = encoder_parameters(**DENSE) * (1 - level)
    width = max(
        d
        for d in range(16, DENSE["d_model"], 4)
        if encoder_parameters(d, 7 * d) <= budget
    )
    hidden = 7 * width
    while encoder_parameters(width, hidden + 1) <= budget:
        hidden += 1
    return {"d_model": width, "d_ffn": hidden}


def encoder_parameters(d_model, d_ffn):
    """Parameters of the recipe's Conformer encoder."""
    d, h = d_model, d_ffn
    ffn = 2 * d * h + h + d + 2 * d
    attention = 5 * d * d + d + 2 * d + 2 * d  # with position biases, norm
    convolution = 2 * d * (d + 1) + d * (KERNEL + 1) + 2 * d + d * (d + 1)
    convolution += 2 * d  # its first norm
    return LAYERS * (2 * ffn + attention + convolution + 2 * d) + 2 * d


if __name__ == "__main__":
    run_real(
        __doc__,
        TABLE,
        plan_cells,
        Cells,
        summarise_methods,
        methods_as_markdown,
        {"librispeech": "a LibriSpeech tree", "whisper": "its folder"},
    )
