"""What to prune by, on real spoken orders: the encoder of Whisper-base.

    python tests/benchmarks/real_slu.py --whisper DIR --orders DIR \\
        [--full] [--cells KEY ...]

The second half of real_hj.py: some of its methods on what is understood in
place of words. The recipe is SLURP's (recipes/SLURP/direct), with Whisper's
encoder in place of wav2vec 2.0 and a decoder that starts from random weights;
the orders are laid out as SLURP is (train.jsonl, devel.jsonl, test.jsonl and
audio). The drink of an order is its action, all that is ordered its slots.

All start from the dense model and have the same steps, and learn from its
states and logits beside the orders. `dense_longer` has as many steps as the
dense model and they together, as has `small_dense`: random weights in an
encoder of the MACs that are left. Figures are those of test, with 95% intervals
of a bootstrap over utterances: SLU-F1 of slots, and how many drinks are right.
That of `ahead` is the F1 by which a method leads the dense model, of the same
drawn utterances.

A cell is METHOD/LEVEL/SEED, `dense/SEED` or `dense_longer/SEED`. Checkpoints
are chosen on devel, by the drinks, the newest of equals. `--cells` runs some
alone; without data, what stands in the table is printed.
"""

import json
import re
import sys
from pathlib import Path

import numpy
from cells import ROOT, Runs, locked
from real_convexity import orders_data
from real_hj import METHODS as ALL_METHODS
from real_hj import is_at_once, macs_gone, preset_of, untrained
from real_speech import (
    ON_CPU,
    phases,
    run_real,
    schedule,
    steps_in_epoch,
    with_whisper,
    write_with_whisper,
)
from transformers import WhisperConfig

from sb_prune.support.words import error_rate, rate_difference

SLURP = ROOT / "recipes/SLURP/direct"
sys.path.insert(0, str(SLURP))

from slurp_metrics import (  # noqa: E402
    char_distance,
    compare_entities,
    word_distance,
)
from slurp_prepare import (  # noqa: E402
    parse_command,
    parse_semantics,
    prepare_slurp,
)

TABLE = Path(__file__).with_suffix(".json")
BATCHES = {"max_batch_length": 32, "max_batch_ex": 64, "num_buckets": 10}
LEVELS = (0.4, 0.6)
SEED = 1
METHODS = {
    name: ALL_METHODS[name]
    for name in ("mac", "fisher", "fisher_reselected", "even_magnitude")
}
DENSE_EPOCHS, PRUNE_EPOCHS, TUNE_EPOCHS = 16, 2, 2  # of few orders
RATES = {"lr": 0.0005, "lr_wav2vec2": 0.00005}
SMALL_RATES = {"lr": 0.0005, "lr_wav2vec2": 0.0005}  # of random weights
DECODER = {
    "token_type": "bpe",
    "output_neurons": 150,  # 63 tokens for the longest order
    "max_decode_ratio": 0.25,  # tokens for each frame; no order has 0.17
    "test_beam_size": 4,
}
SECOND = ("mac", "fisher_reselected", "even_magnitude", "small_dense")
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
    first, *others = LEVELS
    keys = [f"dense/{SEED}", f"small_dense/{first}/{SEED}"]
    keys += [f"{method}/{first}/{SEED}" for method in METHODS]
    keys.append(f"dense_longer/{SEED}")
    keys += [f"{m}/{level}/{SEED}" for level in others for m in SECOND]
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
            found and all: of each utterance, the two counts whose sums have
            F1 as their ratio; drinks: which are right; macs_gone: the share
            of the MACs that is gone.
        """
        method, *level, seed = key.split("/")
        level = float(level[0]) if level else None
        output = self._train(method, level, seed)
        encoder = self._hub(method, level)
        if method in METHODS:
            encoder = output / "export"
        return {
            **understood(output, self._orders()),
            "macs_gone": macs_gone(self._whisper, encoder),
        }

    def _orders(self):
        return self._data["text_folder"] / "test.jsonl"

    def _hub(self, method, level):
        if method == "small_dense":
            return untrained(self._whisper, level, self.runs.folder)
        return self._whisper

    def _train(self, method, level, seed):
        """Folder of a finished run."""
        dense = method not in METHODS
        name = "-".join(str(n) for n in (method, level, seed) if n is not None)
        hub = self._hub(method, level)
        config = WhisperConfig.from_pretrained(hub)
        options = {
            **BATCHES,
            **self._data,
            **DECODER,
            **(SMALL_RATES if method == "small_dense" else RATES),
            "wav2vec2_hub": hub,
            "encoder_dim": config.d_model,
            **ON_CPU,
            "seed": seed,
        }
        if dense:
            epochs = DENSE_EPOCHS
            if method != "dense":  # as long as the others in all
                epochs += PRUNE_EPOCHS + TUNE_EPOCHS
            options |= {"number_of_epochs": epochs}
            options |= schedule(epochs * self._each)
        else:
            options |= {"dense_folder": self._train("dense", None, seed)}
            epochs = PRUNE_EPOCHS, TUNE_EPOCHS
            options |= phases(is_at_once(method), *epochs, self._each)
            options |= {"target": level}
        yaml = self.runs.folder / f"{name}.yaml"
        text = recipe_yaml(method, options)
        write_with_whisper(yaml, text, SLURP / "hparams")
        script = SLURP / "train_with_wav2vec2.py"

        def finished(output):
            path = output / "predictions.jsonl"
            return path.is_file() and len(rows_of(path)) == len(
                rows_of(self._orders())
            )

        return self.runs.run(name, script, yaml, finished, options)


def recipe_yaml(method, options):
    """The recipe's YAML for Whisper's encoder and a method.

    Arguments
    ---------
    method : str
    options : dict
        What `phases` gives, for a method that prunes.

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
    preset, lines = preset_of(method, options)
    added = "".join(f"    {line}\n" for line in lines) + DISTILLATION
    budget = r"    budget: .*\n        frames: .*\n"
    text, count = re.subn(budget, lambda _: added, text)
    assert count == 1
    return text.replace("    name: wav2vec2_l0\n", f"    name: {preset}\n")


# --------------------------------------------------------------- what is heard


def rows_of(path):
    """What the lines of a jsonl file say; of one half written, those before."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def understood(output, orders):
    """What a run understood of each order.

    Arguments
    ---------
    output : Path
        Folder of the run.
    orders : Path
        jsonl file of the test orders, of which each was recorded once.

    Returns
    -------
    dict
        found, all and drinks: a number for each order, as text.
    """
    heard = {row["file"]: row for row in rows_of(output / "predictions.jsonl")}
    columns = {"found": [], "all": [], "drinks": []}
    for line in orders.read_text(encoding="utf-8").splitlines():
        order = parse_command(line)
        (recording,) = order.recordings
        row, said = heard[recording], parse_semantics(order.semantics)
        found, every = f1_counts(said["entities"], row["entities"])
        fields = ("scenario", "action")
        right = all(row[field] == said[field] for field in fields)
        columns["found"].append(found)
        columns["all"].append(round(every, 4))
        columns["drinks"].append(int(right))
    return {n: " ".join(map(str, values)) for n, values in columns.items()}


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
    """Method -> level -> seed -> figures; dense models have level 0.

    f1, drinks and ahead (by which F1 leads that of the dense model) are rate,
    lower and upper bound, in %.
    """
    table = {}
    for key, cell in sorted(cells.items()):
        method, *level, seed = key.split("/")
        counts = f1_columns(cell)
        drinks = [(int(right), 1) for right in cell["drinks"].split()]
        row = {
            "f1": rounded(error_rate(counts)),
            "drinks": rounded(error_rate(drinks)),
            "utterances": len(counts),
            "macs_gone": cell["macs_gone"],
        }
        dense = cells.get(f"dense/{seed}")
        if dense is not None and method != "dense":
            row["ahead"] = rounded(rate_difference(counts, f1_columns(dense)))
        rows = table.setdefault(method, {}).setdefault((level or ["0"])[0], {})
        rows[seed] = row
    return table


def f1_columns(cell):
    """(utterances, 2) array of what the ratio of sums is F1."""
    columns = [cell[name].split() for name in ("found", "all")]
    return numpy.array(columns, dtype=float).T


def rounded(rates):
    """Rate, lower and upper bound, to two digits."""
    return [round(float(rate), 2) for rate in rates]


def shown(rates):
    """These as a cell of Markdown."""
    if rates is None:
        return "-"
    rate, low, high = rates
    return f"{rate:.1f} ({low:.1f} to {high:.1f})"


def as_markdown(summary):
    """The table for docs."""
    lines = [
        "| method | to remove | seed | MACs gone | SLU-F1, % "
        "| ahead of dense, points | drinks, % |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for method, levels in summary.items():
        for level, seeds in levels.items():
            for seed, row in seeds.items():
                figures = [f"{row['macs_gone']:.1%}"]
                figures += [
                    shown(row.get(n)) for n in ("f1", "ahead", "drinks")
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
