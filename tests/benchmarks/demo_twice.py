"""Half of an encoder in two prunings, beside half of it in one.

    python tests/benchmarks/demo_twice.py [--full] [--folder RUNS]

The CTC recipe makes a small encoder on synthesised speech (`dense`,
demo_encoder.yaml). A part of the same speech then serves to prune it by
demo_prune.yaml, with parameters as the budget:

    one             50% in one run
    first           30%, in a run of half as many steps
    twice           50%, in a second such run, from the export of `first`,
                    which is the teacher too
    twice_taught    the same, but the dense model is the teacher
    dense_longer    0%: the encoder, fine-tuned for as many steps as `one` has,
                    by demo_finetune.yaml, under a new head

Half of the steps of a pruning fine-tune what is left. A cell is one of these
runs; `cells.py` keeps them. Without --full: one seed.
"""

import csv
from pathlib import Path
from statistics import mean
from threading import Lock

import hj_variants
from cells import CTC, Runs, run_benchmark
from hj_variants import added, encoder_macs, word_errors

from sb_prune.demo.corpus import synthesise_librispeech
from sb_prune.lobes import Wav2Vec2

TABLE = Path(__file__).with_suffix(".json")
SCRIPT = CTC / "train_with_wav2vec.py"

SEEDS = (1, 2, 3)
UTTERANCES, PART = 2700, 5  # prunings see every fifth of them
STEPS = 124  # optimizer steps in an epoch of that part
EPOCHS = 4  # of `one`, half of them prune
FIRST, TARGET = 0.3, 0.5
# Model -> its name in the table
MODELS = {
    "dense": "dense",
    "dense_longer": "dense, as many epochs",
    "first": "30%",
    "one": "50% in one run",
    "twice": "50%, from those 30%",
    "twice_taught": "the same, the dense model teaches",
}
EXTRA = "twice_taught"  # worth running when all others are there
# Figure -> its column and its digits after the point
FIGURES = {
    "wer": ("test WER (%)", 2),
    "params": ("encoder parameters", 0),
    "gmacs_per_second": ("GMACs per second", 4),
    "epochs": ("epochs after dense", 0),
}


# -------------------------------------------------------------------- cells


class Cells:
    """Computes cells from runs of the CTC recipe.

    Arguments
    ---------
    folder : Path
        Where the corpus, runs and logs go.
    **options
        Overrides of every YAML, which make all of it tiny, say.
    """

    def __init__(self, folder, **options):
        self.runs = Runs(folder)
        self.options = options
        self.speech = folder / "speech"
        self._lock = Lock()
        synthesise_librispeech(
            self.speech, 1234, UTTERANCES, test_utterances=640
        )

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str
            "dense", or "MODEL/SEED"

        Returns
        -------
        dict
            `wer` in %, `params` and `gmacs_per_second` of the encoder, and
            `epochs` since the dense model.
        """
        model, _, seed = key.partition("/")
        encoder = self.runs.small_encoder(self.speech, **self.options)
        output, epochs = encoder.parent, 0
        if model != "dense":
            output, epochs = self._run(model, seed, encoder)
        if not model.startswith("dense"):
            encoder = output / "export"
        return {
            **word_errors(output),
            "params": parameters(encoder),
            "gmacs_per_second": round(encoder_macs(encoder) / 10e9, 4),
            "epochs": epochs,
        }

    def _run(self, model, seed, encoder):
        """Output folder of a run, and the epochs since the dense model."""
        before, options = 0, {"dense_folder": encoder.parent}
        if model.startswith("twice"):
            first, before = self._run("first", seed, encoder)
            options["first_folder"] = first
        if model == "dense_longer":
            yaml, options = CTC / "hparams/demo_finetune.yaml", {}
        else:
            yaml = self.runs.folder / f"{model}.yaml"
            yaml.write_text(pruning_yaml(model), encoding="utf-8")
        options |= {
            **schedule(model),
            "seed": seed,
            "data_folder": self.speech,
            "wav2vec2_hub": encoder,
            "train_csv": self._part(encoder.with_name("train.csv")),
            **self.options,
        }
        name, last = f"{model}-{seed}", "wer_test-clean.txt"
        output = self.runs.run(name, SCRIPT, yaml, last, options)
        return output, before + options["number_of_epochs"]

    def _part(self, everything):
        """A csv file of what prunings see."""
        path = self.runs.folder / f"every_{PART}.csv"
        with self._lock, open(everything, newline="") as file:
            if not path.is_file():
                head, *rows = csv.reader(file)
                with open(path, "w", newline="") as part:
                    csv.writer(part).writerows([head, *rows[::PART]])
        return path


def schedule(model):
    """Overrides of a run's YAML: its epochs, its steps and its target."""
    if model == "dense_longer":
        return {"number_of_epochs": EPOCHS, **steps(EPOCHS)}
    epochs = EPOCHS if model == "one" else EPOCHS // 2
    return {
        "number_of_epochs": epochs,
        "prune_epochs": epochs // 2,
        "schedule_steps": STEPS * epochs // 4,
        **steps(epochs // 2),  # each phase has its own
        "target": FIRST if model == "first" else TARGET,
    }


def steps(epochs):
    """Overrides that let learning rates rise and fall in so many epochs."""
    total = STEPS * epochs
    return {
        "total_steps": total,
        "cooldown_steps": total // 2,
        "warmup_steps": total // 10,
    }


def pruning_yaml(model):
    """demo_prune.yaml with parameters as the budget, from where it starts."""
    text = hj_variants.pruning_yaml("asr", "size")
    if not model.startswith("twice"):
        return text
    dense = "    start_from: !ref <dense_folder>/save\n    start_min_key: WER\n"
    assert dense in text
    text = text.replace(dense, "")
    text = added(text, "start_from: !ref <first_folder>/export")
    if model == EXTRA:
        text = added(text, "teacher: !ref <dense_folder>/save")
    place = "dense_folder: !PLACEHOLDER"
    return text.replace(place, f"first_folder: !PLACEHOLDER\n{place}")


def parameters(folder):
    """Of an encoder in a Hugging Face folder or an export."""
    lobe = Wav2Vec2(str(folder), save_path=str(folder))
    return sum(parameter.numel() for parameter in lobe.parameters())


# -------------------------------------------------------------------- table


def plan_cells(full):
    """Keys of all cells, in the order in which they are worth running."""
    seeds = SEEDS if full else SEEDS[:1]
    models = [model for model in MODELS if model not in ("dense", EXTRA)]
    keys = [f"{model}/{seed}" for seed in seeds for model in models]
    return ["dense", *keys, *(f"{EXTRA}/{seed}" for seed in seeds)]


def summarise(cells):
    """{model: figure -> its values, seed after seed}."""
    return {
        model: {
            figure: [
                cell[figure]
                for key, cell in sorted(cells.items())
                if key.partition("/")[0] == model
            ]
            for figure in FIGURES
        }
        for model in MODELS
    }


def as_markdown(summary):
    """The table for a page, with mean ± half the range over seeds."""
    rows = [["model", "seeds", *(column for column, _ in FIGURES.values())]]
    for model, figures in summary.items():
        if seeds := len(figures["wer"]):
            row = [_spread(f, values) for f, values in figures.items()]
            rows.append([MODELS[model], str(seeds), *row])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|:--|" + "--:|" * (1 + len(FIGURES)))
    return "\n".join(lines)


def _spread(figure, values):
    """Mean ± half the range, where there is one."""
    _, digits = FIGURES[figure]
    text = f"{mean(values):,.{digits}f}"
    half = (max(values) - min(values)) / 2
    return f"{text} ± {half:,.{digits}f}" if round(half, digits) else text


if __name__ == "__main__":
    run_benchmark(TABLE, __doc__, plan_cells, Cells, summarise, as_markdown)
