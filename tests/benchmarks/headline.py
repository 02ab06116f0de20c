"""What `make demo` shows, over three seeds.

    python tests/benchmarks/headline.py [--full] [--folder RUNS]

Each seed is a demo of its own (recipes/LibriSpeech/ASR/transformer/demo.py):
other sentences, other noise, other models. A cell is one of its three models;
`cells.py` keeps them, and a demo that was stopped continues. The table goes
into the README of the recipe, between two comments. Without --full: one seed.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from threading import Lock

from cells import ROOT, run_benchmark

DEMO = ROOT / "recipes/LibriSpeech/ASR/transformer/demo.py"
README = DEMO.with_name("README.md")
TABLE = Path(__file__).with_suffix(".json")
BEGIN, END = "<!-- headline:begin -->", "<!-- headline:end -->"

SEEDS = (1, 2, 3)
MODELS = {
    "dense": "dense",
    "dense_longer": "dense, as many epochs",
    "pruned": "pruned",
}
# Figure -> its column and its digits after the point
FIGURES = {
    "wer": ("test WER (%)", 2),
    "encoder_params": ("encoder parameters", 0),
    "total_params": ("parameters", 0),
    "gmacs_per_second": ("GMACs per second", 4),
    "time": ("time of a forward, dense = 1", 2),
    "epochs": ("epochs", 0),
}


# -------------------------------------------------------------------- cells


class Cells:
    """Computes cells from demos, one demo at a time.

    Arguments
    ---------
    folder : Path
        Where demos go, each in the folder of its seed.
    *options : str
        More of the demo's command line.
    """

    def __init__(self, folder, *options):
        self.folder = folder
        self.options = options
        self._reports = {}
        self._lock = Lock()

    def run(self, key):
        """Runs, or continues, the demo of one cell of the table.

        Arguments
        ---------
        key : str
            "MODEL/SEED"

        Returns
        -------
        dict
            `wer` in %, `encoder_params`, `total_params`, `gmacs_per_second`,
            `epochs`, and `time`, that of a forward as a part of the dense
            model's.
        """
        model, seed = key.split("/")
        with self._lock:
            if seed not in self._reports:
                self._reports[seed] = self._report(seed)
        report = self._reports[seed]
        cell = dict(report[model])
        cell["time"] = round(cell.pop("rtf") / report["dense"]["rtf"], 3)
        return cell

    def _report(self, seed):
        folder = self.folder / seed
        command = [sys.executable, DEMO, folder, f"--seed={seed}"]
        subprocess.run([*command, *self.options], stdout=sys.stderr, check=True)
        return json.loads((folder / "report.json").read_text())


# -------------------------------------------------------------------- table


def plan_cells(full):
    """Keys of all cells, in the order in which they are worth running."""
    seeds = SEEDS if full else SEEDS[:1]
    return [f"{model}/{seed}" for seed in seeds for model in MODELS]


def summarise(cells):
    """{model: figure -> its values, seed after seed}."""
    return {
        model: {
            figure: [
                cell[figure]
                for key, cell in sorted(cells.items())
                if key.startswith(f"{model}/")
            ]
            for figure in FIGURES
        }
        for model in MODELS
    }


def as_markdown(summary):
    """The table for the README, below a line that says what it shows."""
    rows = [["model", *(column for column, _ in FIGURES.values())]]
    for model, name in MODELS.items():
        figures = summary[model].items()
        rows.append([name, *(_spread(f, values) for f, values in figures)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|:--|" + "--:|" * len(FIGURES))
    table = "\n".join(lines)
    seeds = len(summary["pruned"]["wer"])
    return f"`make demo` with {seeds} seeds, mean ± half the range:\n\n{table}"


def _spread(figure, values):
    """Mean ± half the range, where there is one."""
    _, digits = FIGURES[figure]
    text = f"{mean(values):,.{digits}f}"
    half = (max(values) - min(values)) / 2
    return f"{text} ± {half:,.{digits}f}" if round(half, digits) else text


def with_table(text, table):
    """A README's text with this table between the two comments.

    Arguments
    ---------
    text : str
    table : str

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the comments are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the README has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


if __name__ == "__main__":
    summary = run_benchmark(
        TABLE, __doc__, plan_cells, Cells, summarise, as_markdown
    )
    text = with_table(README.read_text("utf-8"), as_markdown(summary))
    README.write_text(text, "utf-8")
