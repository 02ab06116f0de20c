"""What to prune by, on real spoken orders: the encoder of Whisper-base.

    python tests/benchmarks/real_slu.py --whisper DIR --orders DIR \\
        [--full] [--cells KEY ...]

The second half of real_hj.py: the same methods, and the same levels, on what is
understood in place of words. The recipe is SLURP's (recipes/SLURP/direct), with
Whisper's encoder in place of wav2vec 2.0 and a decoder that starts from random
weights; the orders are laid out as SLURP is (train.jsonl, devel.jsonl,
test.jsonl and audio). The drink of an order is its action, all that is ordered
its slots. Figures are those of test: SLU-F1 of slots, with the 95% interval of
a bootstrap over utterances, and how many drinks are right.

A cell is METHOD/LEVEL/SEED, or `dense/SEED`, as in real_hj.py. Checkpoints are
chosen on devel, by the drinks. `--cells` runs some alone; without data, what
stands in the table is printed.
"""

import json
import re
import sys
from pathlib import Path

from cells import ROOT, Runs, locked
from real_convexity import orders_data
from real_hj import METHODS as ALL_METHODS
from real_hj import SCORE, SCORE_STEPS, macs_gone, untrained
from real_speech import (
    run_real,
    schedule,
    steps_in_epoch,
    with_whisper,
    write_with_whisper,
)
from transformers import WhisperConfig

from sb_prune.support.words import error_rate

SLURP = ROOT / "recipes/SLURP/direct"
sys.path.insert(0, str(SLURP))

from slurp_metrics import (  # noqa: E402
    char_distance,
    compare_entities,
    word_distance,
)
from slurp_prepare import prepare_slurp  # noqa: E402

TABLE = Path(__file__).with_suffix(".json")
BATCHES = {"max_batch_length": 32, "max_batch_ex": 64, "num_buckets": 10}
LEVELS = (0.4, 0.2)
SEED = 1
METHODS = {
    name: ALL_METHODS[name]
    for name in ("mac", "fisher_reselected", "magnitude")
}
DENSE_EPOCHS, PRUNE_EPOCHS, TUNE_EPOCHS = 8, 2, 3
TOKENS = 60
RATES = {"lr": 0.001, "lr_wav2vec2": 0.0001}
SMALL_RATES = {"lr": 0.001, "lr_wav2vec2": 0.0005}  # of random weights
QUICK = ["dense/1", "fisher_reselected/0.4/1"]
DISTILLATION = """    distillation:
        hidden_weight: 0.0
        states: [wav2vec2]
        outputs: [seq_lin]
        output_weight: 1.0
        task_weight: 1.0
"""


def plan_cells(full):
    """Keys of cells, the most worth first."""
    if not full:
        return QUICK
    keys = [f"dense/{SEED}"]
    for level in LEVELS:
        keys += [f"{m}/{level}/{SEED}" for m in (*METHODS, "small_dense")]
    return keys


# --------------------------------------------------------------------- runs


class Cells:
    """Computes cells from runs of train_with_wav2vec2.py.

    Arguments
    ---------
    folder : Path
        Where data, runs and logs go.
    given : Namespace
        Of the command line.
    """

    def __init__(self, folder, given):
        self.runs, self._whisper = Runs(folder), given.whisper
        self._data = orders_data(given, folder)
        texts, audio = (self._data[n] for n in ("text_folder", "audio_folder"))
        with locked(folder / "csv.lock"):
            prepare_slurp(texts, audio, folder / "csv", ["train"])
        self._each = steps_in_epoch(folder / "csv/train.csv", **BATCHES)

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str

        Returns
        -------
        dict
            f1, low, high and drinks in %, utterances, and the share of the
            MACs that is gone.
        """
        method, *level, seed = key.split("/")
        level = float(level[0]) if level else None
        output = self._train(method, level, seed)
        encoder = self._hub(method, level)
        if method in METHODS:
            encoder = output / "export"
        return {
            **understood(output, self._data["text_folder"] / "test.jsonl"),
            "macs_gone": macs_gone(self._whisper, encoder),
        }

    def _hub(self, method, level):
        if method == "small_dense":
            return untrained(self._whisper, level, self.runs.folder)
        return self._whisper

    def _train(self, method, level, seed):
        """Folder of a finished run."""
        dense = method not in METHODS
        name = "-".join(str(n) for n in (method, level, seed) if n is not None)
        yaml = self.runs.folder / f"{name}.yaml"
        write_with_whisper(yaml, recipe_yaml(method), SLURP / "hparams")
        hub = self._hub(method, level)
        config = WhisperConfig.from_pretrained(hub)
        options = {
            **BATCHES,
            **self._data,
            **(SMALL_RATES if method == "small_dense" else RATES),
            "wav2vec2_hub": hub,
            "encoder_dim": config.d_model,
            "output_neurons": TOKENS,
            "num_workers": 0,
            "seed": seed,
        }
        if dense:
            epochs = DENSE_EPOCHS
            if method == "small_dense":  # as long as the others in all
                epochs += PRUNE_EPOCHS + TUNE_EPOCHS
            options |= {"number_of_epochs": epochs, **self._steps(epochs)}
        else:
            options |= {"dense_folder": self._train("dense", None, seed)}
            options |= {"target": level, **self._phases(method)}
        script = SLURP / "train_with_wav2vec2.py"
        last = "predictions.jsonl"
        return self.runs.run(name, script, yaml, last, options)

    def _phases(self, method):
        """Options that say how long a method prunes and fine-tunes."""
        if METHODS[method][0] == SCORE:  # the steps that it saves fine-tune
            epochs = PRUNE_EPOCHS + TUNE_EPOCHS
            return {
                "number_of_epochs": 1 + epochs,
                "prune_epochs": 1,
                "schedule_steps": SCORE_STEPS,
                **self._steps(epochs),
            }
        steps = self._steps(PRUNE_EPOCHS)["total_steps"]
        return {
            "number_of_epochs": PRUNE_EPOCHS + TUNE_EPOCHS,
            "prune_epochs": PRUNE_EPOCHS,
            "schedule_steps": round(0.6 * steps),
            **self._steps(TUNE_EPOCHS),
        }

    def _steps(self, epochs):
        """Options of the learning rate of so many epochs."""
        return schedule(epochs * self._each)


def recipe_yaml(method):
    """The recipe's YAML for Whisper's encoder and a method.

    Arguments
    ---------
    method : str

    Returns
    -------
    str
    """
    pruned = method in METHODS
    name = "prune_mac" if pruned else "finetune"
    text = (SLURP / f"hparams/{name}.yaml").read_text("utf-8")
    text = with_whisper(text, "wav2vec2")
    if not pruned:
        return text
    preset, lines = METHODS[method]
    if preset == SCORE:
        lines = [*lines, f"prune_steps: {SCORE_STEPS}"]
    added = "".join(f"    {line}\n" for line in lines) + DISTILLATION
    budget = r"    budget: .*\n        frames: .*\n"
    text, count = re.subn(budget, lambda _: added, text)
    assert count == 1
    return text.replace("    name: wav2vec2_l0\n", f"    name: {preset}\n")


# --------------------------------------------------------------- what is heard


def understood(output, orders):
    """Figures of what a run understood.

    Arguments
    ---------
    output : Path
        Folder of the run.
    orders : Path
        jsonl file of the test orders.

    Returns
    -------
    dict
        f1, low and high: of slots; drinks: right ones; all in %. utterances.
    """
    lines = (output / "predictions.jsonl").read_text("utf-8").splitlines()
    heard = {row["file"]: row for row in map(json.loads, lines)}
    counts, right = [], 0
    for line in orders.read_text("utf-8").splitlines():
        order = json.loads(line)
        for recording in order["recordings"]:
            row = heard[recording["file"]]
            right += row["action"] == order["action"]
            counts.append(f1_counts(slots_of(order), row["entities"]))
    f1, low, high = error_rate(counts)
    return {
        "f1": round(f1, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "drinks": round(100 * right / len(counts), 2),
        "utterances": len(counts),
    }


def slots_of(order):
    """Entities of an order, with their words."""
    words = [token["surface"] for token in order["tokens"]]
    return [
        {
            "type": entity["type"],
            "filler": " ".join(words[place] for place in entity["span"]),
        }
        for entity in order["entities"]
    ]


def f1_counts(said, heard):
    """(2 TP, 2 TP + FP + FN) of an utterance, whose ratio of sums is SLU-F1."""
    counts = [
        compare_entities(said, heard, distance)
        for distance in (word_distance, char_distance)
    ]
    found = 2 * sum(c.found for c in counts)
    return found, found + sum(c.wrong + c.missed for c in counts)


# -------------------------------------------------------------------- table


def summarise(cells):
    """Method -> level -> seed -> figures; the dense model is level 0."""
    table = {}
    for key, cell in sorted(cells.items()):
        method, *level, seed = key.split("/")
        rows = table.setdefault(method, {}).setdefault((level or ["0"])[0], {})
        rows[seed] = cell
    return table


def as_markdown(summary):
    """The table for docs."""
    lines = [
        "| method | to remove | seed | MACs gone | SLU-F1, % | drinks, % |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for method, levels in summary.items():
        for level, seeds in levels.items():
            for seed, row in seeds.items():
                f1 = f"{row['f1']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
                figures = [
                    f"{row['macs_gone']:.1%}",
                    f1,
                    f"{row['drinks']:.1f}",
                ]
                what = f"| {method} | {float(level):.0%} | {seed} | "
                lines.append(what + " | ".join(figures) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_real(
        __doc__,
        TABLE,
        plan_cells,
        Cells,
        summarise,
        as_markdown,
        {
            "whisper": "its folder",
            "orders": "a layout of SLURP",
        },
    )
