"""Which way of making Whisper's encoder small, for any task, is best?

    python tests/benchmarks/real_task_agnostic.py --librispeech DIR \\
        --whisper DIR --keywords DIR --orders DIR [--full] [--cells KEY ...]

Whisper-base's encoder is the teacher. Of it encoders of 28% of its parameters
are made on the audio of train-clean-5 alone, with the same steps, by the YAMLs
of the compression recipe:

    fine_grained   pruned: dims inside heads, straight-through gates
                   (Wang et al., 2023, 2306.01385)
    coarse_heads   the same, but heads stay or go as a whole
    soft_gates     as fine_grained, with soft gates
    dphubert       whole heads and soft gates (Peng et al., 2023, 2305.17651)
    reselected     pruned at once, the same share everywhere; which units stay,
                   and their readers' weights, follow from least squares
    armhubert      a narrow student, every second layer reuses a map, distilled
                   with masks (Jang et al., 2023, 2305.11685)
    maskhubert     a narrow student without reuse
    narrow         the same, distilled without masks
    starhubert     a narrow student that learns how frames relate to one another
                   (Jang et al., 2024, 2312.09040)

and each is probed, frozen, by the probing recipe: phonemes and letters of dev,
speakers of train (utterances of each set apart), keywords, and the drink of
spoken orders. Keywords and orders are laid out as real_convexity.py needs
them. A cell is MODEL/PROBE/SEED. `--cells` runs some alone; without data, what
stands in the table is printed.
"""

import json
from functools import cache
from pathlib import Path

import torch
from cells import Runs, spread
from real_convexity import keywords_data, orders_data
from real_speech import (
    ON_CPU,
    SCORE_STEPS,
    manifests,
    run_real,
    schedule,
    steps_in_epoch,
    with_whisper,
    write_with_whisper,
)
from task_agnostic import COMPRESSION, OF_LONG_RUNS, PROBING
from transformers import WhisperConfig, WhisperModel

from sb_prune.students import make_student
from sb_prune.support.measure import count_parameters

TABLE = Path(__file__).with_suffix(".json")
SPARSITY = 0.72
STUDENTS = {  # name -> YAML of the recipe
    "armhubert": "armhubert",
    "maskhubert": "maskhubert",
    "narrow": "maskhubert",
    "starhubert": "starhubert",
}
PRUNED = (
    "fine_grained",
    "coarse_heads",
    "soft_gates",
    "dphubert",
    "reselected",
)
MODELS = ("teacher", *PRUNED, *STUDENTS)
LAST = ("coarse_heads", "soft_gates", "maskhubert")  # of what is planned
PROBES = ("pr", "sid", "ks", "ic", "asr")
BATCHES = {"max_batch_length": 32, "num_buckets": 10}
EPOCHS = 2  # of which the first half prunes
PROBE = {**BATCHES, **ON_CPU}
OF_PROBE = {
    "pr": {"number_of_epochs": 2, "lr": 0.003},
    "asr": {"number_of_epochs": 2, "lr": 0.001, "lstm_size": 128},
    "sid": {"number_of_epochs": 3},
    "ks": {"number_of_epochs": 3},
    "ic": {"number_of_epochs": 10},
}
WHOLE = "front_end_channels, layers, ffn_modules, attention_modules, ffn_units"
STRUCTURES = [
    "structures: !name:sb_prune.whisper_structures",
    f"    kinds: [{WHOLE}, heads{{}}]",
    "    sides: [encoder]",
]
INSIDE = ", query_key_dims, value_dims"
GATE_STEPS = {True: 0.05, False: 0.2}  # straight-through: larger ones harm
SLICES = "[front_end_channels, ffn_units, heads]"
AT_ONCE = [  # distillation from an exact copy has no gradient to rank by
    "score: !name:sb_prune.random_score",
    "structures:",
    f"    kinds: {SLICES}",
    f"prune_steps: {SCORE_STEPS}",
    "distillation: null # the recipe's own loss is one",
]


def plan_cells(full):
    """Keys of cells, the most worth first."""
    if not full:
        return ["teacher/ic/1", "reselected/ic/1"]
    first = [model for model in MODELS if model not in LAST]
    return [
        f"{model}/{probe}/1"
        for models in (first, LAST)
        for probe in PROBES
        for model in models
    ]


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
        self._config = WhisperConfig.from_pretrained(given.whisper)
        csv = folder / "csv"
        self._csv = manifests(csv, given.librispeech, given.splits)

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str

        Returns
        -------
        dict
            `value`, in %, and the model's `parameters`.
        """
        model, probe, seed = key.split("/")
        yaml = self.runs.folder / f"{probe}.yaml"
        text = (PROBING / f"hparams/{probe}.yaml").read_text("utf-8")
        yaml.write_text(with_whisper(text, "wav2vec2"), encoding="utf-8")
        options = {
            **PROBE,
            **OF_PROBE[probe],
            "seed": seed,
            "wav2vec2_hub": self._encoder(model, seed),
            **self._data(probe),
        }
        output = self.runs.run(
            key.replace("/", "-"),
            PROBING / "train.py",
            yaml,
            "score.json",
            options,
        )
        score = json.loads((output / "score.json").read_text("utf-8"))
        return {name: score[name] for name in ("value", "parameters")}

    def _data(self, probe):
        """Options of a probe: where its recordings are."""
        splits = self._given.splits
        if probe == "sid":
            return {
                "data_folder": self._given.librispeech,
                "splits": f"[{splits['train']}]",
            }
        if probe in ("pr", "asr"):
            return {
                "data_folder": self._given.librispeech,
                "train_splits": f"[{splits['train']}]",
                "valid_splits": f"[{splits['dev']}]",
                "test_splits": f"[{splits['dev']}]",
                "eval_precision": "bf16",
            }
        if probe == "ks":
            return keywords_data(self._given, self.runs.folder)
        return orders_data(self._given, self.runs.folder)

    def _encoder(self, model, seed):
        """Folder of a finished encoder."""
        if model == "teacher":
            return self._given.whisper
        name = f"{model}-{seed}"
        yaml = self.runs.folder / f"{name}.yaml"
        text = compression_yaml(model)
        write_with_whisper(yaml, text, COMPRESSION / "hparams")
        options = {
            **BATCHES,
            **ON_CPU,
            "seed": seed,
            "wav2vec2_hub": self._given.whisper,
            "data_folder": self._given.librispeech,
            "train_splits": f"[{self._given.splits['train']}]",
            "valid_splits": f"[{self._given.splits['dev']}]",
            "valid_csv": self._csv["valid"][0],
            **self._training(model),
        }
        last = "export/model.safetensors"
        if model in STUDENTS:
            last = "encoder/config.json"
        script = COMPRESSION / "train.py"
        output = self.runs.run(name, script, yaml, last, options)
        return output / Path(last).parent

    def _training(self, model):
        """Options of a pruned encoder or of a student."""
        steps = steps_in_epoch(self._csv["train"][0], **BATCHES)
        layers, width = self._config.encoder_layers, self._config.d_model
        if model in STUDENTS:
            return {
                "number_of_epochs": EPOCHS,
                **schedule(EPOCHS * steps),
                "lr": 0.001,
                **student(self._config, model),
            }
        prune = EPOCHS // 2
        options = {
            "number_of_epochs": EPOCHS,
            "prune_epochs": prune,
            "schedule_steps": prune * steps // 2,
            **schedule(prune * steps),
            "lr": 0.0002,
            "target": SPARSITY,
            "milestones": "[]",
            "encoder_dim": width,
            "distilled_layers": str([0, [*range(2, layers + 1, 2)]]),
        }
        if model == "reselected":
            options |= {"prune_epochs": 1, "schedule_steps": SCORE_STEPS}
            options |= {"number_of_epochs": EPOCHS + 1}
            options |= schedule(EPOCHS * steps)
        return options


def compression_yaml(model):
    """The recipe's YAML that makes a model, changed where none does.

    Arguments
    ---------
    model : str

    Returns
    -------
    str
    """
    name = STUDENTS.get(model, "prune_fine_grained")
    if model == "dphubert":
        name = model
    text = (COMPRESSION / f"hparams/{name}.yaml").read_text("utf-8")
    text = with_whisper(text, "wav2vec2", "teacher")
    if model in STUDENTS:
        return text
    inside = "" if model in ("coarse_heads", "dphubert") else INSIDE
    straight = model not in ("soft_gates", "dphubert")
    block = [
        "gate_optimizer: !name:torch.optim.Adam",
        f"    lr: {GATE_STEPS[straight]}",
        *(line.format(inside) for line in STRUCTURES),
    ]
    if model == "soft_gates":
        block += ["gates:", "    straight_through: False"]
    if model == "reselected":
        block = AT_ONCE
        text = text.replace("name: fine_grained_l0", "name: whisper_score")
    text = text.replace(OF_LONG_RUNS, "")
    line = "    module: wav2vec2\n"
    assert text.count(line) == 1
    return text.replace(line, line + "".join(f"    {b}\n" for b in block))


def student(config, model):
    """Options for a student of the same size as what is pruned.

    Arguments
    ---------
    config : WhisperConfig
        Of the teacher.
    model : str
        One of `STUDENTS`.

    Returns
    -------
    dict
    """
    layers = config.encoder_layers
    reuse = [n % 2 == 1 for n in range(layers)]
    if model != "armhubert":
        reuse = None
    width = student_width(config.to_json_string(), reuse is not None)
    options = {
        "encoder_dim": width,
        "intermediate_size": 4 * width,
        "conv": "null",
    }
    if reuse:
        options["reuse"] = str(reuse)
    if model == "starhubert":
        options["distilled_layers"] = str([*range(1, layers + 1)])
        options["cosine"] = True
        return options
    if model == "narrow":
        options["mask_share"] = 0.0
    return {**options, "layers": layers, "teacher_dim": config.d_model}


@cache
def student_width(config, reuse):
    """The widest student with no more parameters than pruning leaves."""
    config = WhisperConfig(**json.loads(config))
    maps = [n % 2 == 1 for n in range(config.encoder_layers)]
    with torch.device("meta"):
        teacher = WhisperModel(config)
        allowed = (1 - SPARSITY) * count_parameters([teacher.encoder])
        heads = config.encoder_attention_heads
        for width in range(config.d_model, 0, -heads):
            small = make_student(
                teacher, width, 4 * width, reuse=maps if reuse else None
            )
            if count_parameters([small.encoder]) <= allowed:
                return width
    raise ValueError(f"no student is as small as {1 - SPARSITY:.0%}")


# -------------------------------------------------------------------- table


def summarise(cells):
    """{table: model -> probe -> values, params: model -> count}."""
    table, params = {}, {}
    for key, cell in sorted(cells.items()):
        model, probe, _ = key.split("/")
        table.setdefault(model, {}).setdefault(probe, []).append(cell["value"])
        params[model] = cell["parameters"]
    return {"table": table, "params": params}


def as_markdown(summary):
    """The table for docs, means with their spread."""
    heads = ("PER", "speakers", "keywords", "orders", "letters' WER")
    lines = [
        "| encoder | parameters | " + " | ".join(heads) + " |",
        "|:--|--:|" + "--:|" * len(heads),
    ]
    for model in filter(summary["table"].get, MODELS):
        scores = summary["table"][model]
        row = [spread(scores.get(probe, [])) for probe in PROBES]
        count = f"{summary['params'][model]:,}"
        lines.append(f"| {model} | {count} | " + " | ".join(row) + " |")
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
            "librispeech": "a LibriSpeech tree",
            "whisper": "its folder",
            "keywords": "a folder of recordings for each",
            "orders": "jsonl files of SLURP, and audio",
        },
    )
