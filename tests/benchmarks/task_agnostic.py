"""Which way of making a small general-purpose encoder is best?

    python tests/benchmarks/task_agnostic.py [--full] [--folder RUNS]

The small encoder of the CTC recipe (demo_encoder.yaml, 1.33 M parameters) is
the teacher. Nine small encoders of 28% of its parameters are made of it on
audio alone, with the same steps, by the YAMLs of the compression recipe:

    fine_grained   dims inside heads, straight-through gates
    coarse_heads   the same, but heads stay or go as a whole
    soft_gates     as fine_grained, with soft gates
    dphubert       whole heads and soft gates: dphubert.yaml
    armhubert      a narrow student, every second layer reuses a map
    maskhubert     a narrow student without reuse
    narrow         the same, distilled without masks

    fine_grained_slow, coarse_heads_slow
                   gates step by 0.05 instead of 0.2

and each is probed, frozen, by the probing recipe. A cell is one probe of one of
them; `cells.py` keeps them. Without --full: two encoders, one probe.
"""

import json
from functools import cache
from pathlib import Path

import torch
from cells import ROOT, Runs, run_benchmark, spread
from transformers import Wav2Vec2Config, Wav2Vec2Model

from sb_prune.demo.corpus import synthesise_librispeech
from sb_prune.demo.encoder import encoder_shape
from sb_prune.demo.slurp import synthesise_slurp
from sb_prune.students import make_student

COMPRESSION = ROOT / "recipes/LibriSpeech/self-supervised-learning/compression"
PROBING = ROOT / "recipes/LibriSpeech/probing"
TABLE = Path(__file__).with_suffix(".json")
SPARSITY = 0.72
WIDTH, LAYERS = 128, 6  # of the teacher
STEPS = 607  # optimizer steps in an epoch
SLOW = ("fine_grained_slow", "coarse_heads_slow")
PRUNED = ("fine_grained", "coarse_heads", "soft_gates", "dphubert", *SLOW)
STUDENTS = ("armhubert", "maskhubert", "narrow")
MODELS = ("teacher", *PRUNED, *STUDENTS)
PROBES = ("pr", "asr", "ic", "sid")
OF_LONG_RUNS = "    gate_optimizer: {lr: 0.02}\n"  # of dphubert.yaml

EVERY = {
    "train_splits": "[train-clean-100]",
    "max_batch_length": 12,
    "num_buckets": 20,
    "num_workers": 0,
    "number_of_epochs": 4,
    "warmup_steps": 100,
}
PRUNING = {
    **EVERY,
    "target": SPARSITY,
    "milestones": "[]",
    "prune_epochs": 2,
    "schedule_steps": STEPS,
    "encoder_dim": WIDTH,
    "distilled_layers": "[0, [2, 4, 6]]",
    "lr": 0.0005,
    "cooldown_steps": STEPS,
    "total_steps": 2 * STEPS,  # of each phase
}
DISTILLING = {
    **EVERY,
    "layers": LAYERS,
    "teacher_dim": WIDTH,
    "lr": 0.001,
    "cooldown_steps": 2 * STEPS,
    "total_steps": 4 * STEPS,
}
PROBE = {
    "max_batch_length": 12,
    "num_workers": 0,
    "number_of_epochs": 3,
}
OF_PROBE = {
    "pr": {"lr": 0.003},
    "asr": {"lr": 0.001, "lstm_size": 64, "projection_size": WIDTH},
    "ic": {"number_of_epochs": 10},
    "sid": {"number_of_epochs": 4},
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
        self.speech, self.slurp = folder / "speech", folder / "slurp"
        synthesise_librispeech(
            self.speech, 1234, train_utterances=2700, test_utterances=640
        )
        synthesise_slurp(self.slurp, 1234)

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str
            "MODEL/PROBE/SEED"

        Returns
        -------
        dict
            `value`, in %, and the model's `parameters`.
        """
        model, probe, seed = key.split("/")
        encoder = self._encoder(model, seed)
        output = self.runs.run(
            f"{model}-{probe}-{seed}",
            PROBING / "train.py",
            PROBING / f"hparams/{probe}.yaml",
            "score.json",
            {
                **PROBE,
                **OF_PROBE[probe],
                "seed": seed,
                "wav2vec2_hub": encoder,
                "data_folder": self.slurp if probe == "ic" else self.speech,
            },
        )
        score = json.loads((output / "score.json").read_text())
        return {name: score[name] for name in ("value", "parameters")}

    def _encoder(self, model, seed):
        """Hugging Face folder or export of a finished encoder."""
        if model == "teacher":
            return self.runs.small_encoder(self.speech)
        pruned = model in PRUNED
        yaml = self.runs.folder / f"{model}.yaml"
        yaml.write_text(compression_yaml(model), encoding="utf-8")
        options = PRUNING if pruned else DISTILLING | student(model)
        last = "export/model.safetensors" if pruned else "encoder/config.json"
        output = self.runs.run(
            f"{model}-{seed}",
            COMPRESSION / "train.py",
            yaml,
            last,
            {
                **options,
                "seed": seed,
                "wav2vec2_hub": self.runs.small_encoder(self.speech),
                "data_folder": self.speech,
            },
        )
        return output / Path(last).parent


def compression_yaml(model):
    """The recipe's YAML that makes a model, changed where none does."""
    names = {"dphubert": "dphubert", "armhubert": "armhubert"}
    names |= dict.fromkeys(("maskhubert", "narrow"), "maskhubert")
    name = names.get(model, "prune_fine_grained")
    text = (COMPRESSION / f"hparams/{name}.yaml").read_text("utf-8")
    block = []
    if model in PRUNED:  # the presets' steps of the gates are for long runs
        step = 0.05 if model in SLOW else 0.2
        block = ["gate_optimizer: !name:torch.optim.Adam", f"    lr: {step}"]
    if model.startswith("coarse_heads"):
        kinds = "front_end_channels, layers, ffn_modules, attention_modules"
        block += ["structures:", f"    kinds: [{kinds}, ffn_units, heads]"]
    if model == "soft_gates":
        block += ["gates:", "    straight_through: False"]
    text = text.replace(OF_LONG_RUNS, "")
    line = "    module: wav2vec2\n"
    return text.replace(line, line + "".join(f"    {b}\n" for b in block))


def student(model):
    """Options for a student of the same size as what is pruned."""
    reuse = model == "armhubert"
    width = student_width(reuse)
    options = {
        "encoder_dim": width,
        "intermediate_size": 2 * width,
        "conv": str(front_end(width)),
    }
    if reuse:
        options["reuse"] = str([False, True] * (LAYERS // 2))
    if model == "narrow":
        options["mask_share"] = 0.0
    return options


def front_end(width):
    """Channels, kernels and strides: half as many channels as the width."""
    kernels, strides = [10, 3, 3, 3, 3, 2, 2], [5] + [2] * 6
    return [[width // 2, k, s] for k, s in zip(kernels, strides)]


@cache
def student_width(reuse):
    """The widest student with no more parameters than pruning leaves."""
    with torch.device("meta"):
        teacher = Wav2Vec2Model(Wav2Vec2Config(**encoder_shape(WIDTH)))
        allowed = (1 - SPARSITY) * size_of(teacher)
        return max(
            width
            for width in range(16, WIDTH, 4)
            if size_of(
                make_student(
                    teacher,
                    width,
                    2 * width,
                    front_end(width),
                    [False, True] * (LAYERS // 2) if reuse else None,
                )
            )
            <= allowed
        )


def size_of(model):
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


# -------------------------------------------------------------------- table


def plan_cells(full):
    """Keys of all cells, in the order in which they are worth running."""
    if not full:
        return ["teacher/ic/1", "fine_grained/ic/1"]
    return [f"{model}/{probe}/1" for probe in PROBES for model in MODELS]


def summarise(cells):
    """{table: model -> probe -> scores, params: model -> count}."""
    table, params = {}, {}
    for key, cell in sorted(cells.items()):
        model, probe, _ = key.split("/")
        scores = table.setdefault(model, {}).setdefault(probe, [])
        scores.append(cell["value"])
        params[model] = cell["parameters"]
    return {"table": table, "params": params}


def as_markdown(summary):
    """The table for a README, means with their spread."""
    lines = [
        "| encoder | parameters | PER | WER | intents | speakers |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for model in filter(summary["table"].get, MODELS):
        scores = summary["table"][model]
        row = [spread(scores.get(probe, [])) for probe in PROBES]
        row.insert(0, f"{summary['params'][model]:,}")
        lines.append(f"| {model} | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark(TABLE, __doc__, plan_cells, Cells, summarise, as_markdown)
