"""What to prune by: heterogeneous joint pruning against its alternatives.

    python tests/benchmarks/hj_variants.py [--full] [--folder RUNS]

One small encoder (demo_encoder.yaml of the CTC recipe) is fine-tuned, pruned
and fine-tuned again on synthesised speech, for speech recognition (asr) and
for spoken language understanding (slu, the SLURP recipe). All variants have
the same steps, distillation and fine-tuning, and leave the same
multiply-accumulates on 10 s of speech:

    mac                HJ-MAC: front-end and Transformer, by MACs
    size, sepsize      HJ-Size and HJ-SepSize: by parameters, in all and of
                       each part; TARGETS are those that leave these MACs
    transformer_only   the front-end stays
    magnitude          as HJ-MAC, but structures are chosen by their L2 norm
    small_dense        a dense encoder of these MACs, with random weights at
                       first, trained as long as all the stages together; for
                       ASR in one go, which suits it better than stages (2.46%
                       against 8.93% of errors, seed 1)

A cell is the last of these runs; `cells.py` keeps them. Without --full: one
seed of ASR at one level, and only three variants.
"""

import re
from pathlib import Path

import torch
from cells import ROOT, Runs, run_benchmark, spread

from sb_prune.demo.corpus import synthesise_librispeech
from sb_prune.demo.encoder import encoder_shape, write_untrained
from sb_prune.demo.slurp import synthesise_slurp
from sb_prune.lobes import Wav2Vec2
from sb_prune.support.measure import count_macs

CTC = ROOT / "recipes/LibriSpeech/ASR/CTC"
SLURP = ROOT / "recipes/SLURP/direct"
TABLE = Path(__file__).with_suffix(".json")
SAMPLES = 160_000  # 10 s
VARIANTS = (
    "mac",
    "transformer_only",
    "size",
    "sepsize",
    "magnitude",
    "small_dense",
)
QUICK = ("mac", "transformer_only", "small_dense")
# Share of the MACs to remove -> shares of the parameters that do, as measured
TARGETS = {
    "0.6": {"size": 0.70, "sepsize": 0.57},
    "0.4": {"size": 0.43, "sepsize": 0.385},
}
ENCODER_EPOCHS = 4  # of demo_encoder.yaml
DENSE_MACS = 1_409_307_520  # its encoder's


class Task:
    """A recipe of fine-tuning, and what it is judged by.

    Arguments
    ---------
    script : Path
    steps : int
        Optimizer steps in an epoch.
    epochs : tuple of int
        Of the dense model, of pruning, of fine-tuning.
    last : str
        File that the evaluation leaves.
    read : callable
        output folder -> {figure: % on the test set}; the first matters.
    keys : dict
        Overrides of its YAMLs.
    """

    def __init__(self, script, steps, epochs, last, read, keys):
        self.script = script
        self.steps = steps
        self.dense, self.prune, self.tune = epochs
        self.last = last
        self.read = read
        self.keys = keys

    def yaml(self, name):
        """Path of one of its YAMLs."""
        return self.script.parent / "hparams" / name

    def schedule(self, epochs):
        """Overrides for a number of epochs."""
        return {
            "number_of_epochs": epochs,
            "total_steps": self.steps * epochs,
            "cooldown_steps": self.steps * epochs // 2,
        }


def word_errors(output):
    """{wer} of a run of the CTC recipe."""
    text = (output / "wer_test-clean.txt").read_text("utf-8")
    return {"wer": float(re.match(r"%WER (\S+)", text)[1])}


def understanding(output):
    """{intent_accuracy, SLU_F1} of a run of the SLURP recipe."""
    *_, test = (output / "train_log.txt").read_text("utf-8").splitlines()
    return {
        name: float(re.search(rf"test {name}: ([^,\s]+)", test)[1])
        for name in ("intent_accuracy", "SLU_F1")
    }


ASR = Task(
    CTC / "train_with_wav2vec.py",
    607,
    (2, 1, 1),
    "wer_test-clean.txt",
    word_errors,
    {"freeze_wav2vec_steps": 0},
)
SLU = Task(
    SLURP / "train_with_wav2vec2.py",
    64,
    (8, 5, 5),
    "predictions.jsonl",
    understanding,
    {},
)
TASKS = {"asr": ASR, "slu": SLU}


# -------------------------------------------------------------------- cells


class Cells:
    """Computes cells from runs of the recipes.

    Arguments
    ---------
    folder : Path
        Where corpora, runs and logs go.
    """

    def __init__(self, folder):
        self.runs = Runs(folder)
        self.speech = folder / "speech"
        self.data = {"asr": self.speech, "slu": folder / "slurp"}
        synthesise_librispeech(
            self.speech, 1234, train_utterances=2700, test_utterances=640
        )
        synthesise_slurp(self.data["slu"], 1234)

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str
            "TASK/dense/SEED" or "TASK/VARIANT/LEVEL/SEED".

        Returns
        -------
        dict
            The task's figures, and "macs_reduction", the share of the dense
            encoder's that is gone.
        """
        task, variant, *level, seed = key.split("/")
        if variant == "dense":
            output, encoder = (
                self._dense(task, seed),
                self.runs.small_encoder(self.speech),
            )
        elif variant == "small_dense":
            output, encoder = self._small(task, level[0], seed)
        else:
            output = self._prune(task, variant, level[0], seed)
            encoder = output / "export"
        macs = encoder_macs(encoder)
        return {
            **TASKS[task].read(output),
            "macs_reduction": round(1 - macs / DENSE_MACS, 3),
        }

    def _small(self, task, level, seed):
        """Run and Hugging Face folder of a dense model of equal MACs."""
        width = small_width(float(level))
        untrained = self.runs.folder / f"untrained-{level}"
        write_untrained(str(untrained), **encoder_shape(width))
        size = {"wav2vec2_hub": untrained, "encoder_dim": width}
        chosen = TASKS[task]
        epochs = chosen.dense + chosen.prune + chosen.tune
        if chosen is ASR:
            size |= ASR.schedule(ENCODER_EPOCHS + epochs) | {"seed": seed}
            name = f"asr-small_dense-{level}-{seed}"
            return self.runs.folder / name, self.runs.small_encoder(
                self.speech, name, **size
            )
        encoder = self.runs.small_encoder(
            self.speech, f"encoder-{level}", **size
        )
        size["wav2vec2_hub"] = encoder
        name = f"{task}-small_dense-{level}-{seed}"
        return self._train(name, task, seed, epochs, **size), encoder

    def _dense(self, task, seed):
        options = {"wav2vec2_hub": self.runs.small_encoder(self.speech)}
        epochs = TASKS[task].dense
        return self._train(
            f"{task}-dense-{seed}", task, seed, epochs, **options
        )

    def _train(self, name, task, seed, epochs, **options):
        options |= TASKS[task].schedule(epochs)
        return self._run(name, task, "demo_finetune.yaml", seed, options)

    def _prune(self, task, variant, level, seed):
        chosen = TASKS[task]
        name = f"{task}-{variant}-{level}"
        yaml = self.runs.folder / f"{name}.yaml"
        yaml.write_text(pruning_yaml(task, variant), encoding="utf-8")
        options = {
            **chosen.schedule(chosen.prune),
            "number_of_epochs": chosen.prune + chosen.tune,
            "prune_epochs": chosen.prune,
            "schedule_steps": chosen.steps * chosen.prune // 2,
            "target": TARGETS[level].get(variant, float(level)),
            "dense_folder": self._dense(task, seed),
            "wav2vec2_hub": self.runs.small_encoder(self.speech),
        }
        return self._run(f"{name}-{seed}", task, yaml, seed, options)

    def _run(self, name, task, yaml, seed, options):
        chosen = TASKS[task]
        options = {
            **options,
            **chosen.keys,
            "seed": seed,
            "data_folder": self.data[task],
        }
        yaml = chosen.yaml(yaml)  # as it is, where it is absolute
        return self.runs.run(name, chosen.script, yaml, chosen.last, options)


def pruning_yaml(task, variant):
    """demo_prune.yaml, which is HJ-MAC, as another variant."""
    yaml = TASKS[task].yaml("demo_prune.yaml")
    text = yaml.read_text("utf-8")
    if variant in ("size", "sepsize"):
        text = re.sub(r"    budget:.*\n.*frames:.*\n", "", text)
    if variant == "sepsize":
        parts = ("model.feature_extractor", "model.encoder")
        each = "".join(f"\n        {part}: !ref <target>" for part in parts)
        text = text.replace("    target: !ref <target>", f"    target:{each}")
    if variant == "transformer_only":
        kinds = "[layers, ffn_modules, attention_modules, ffn_units, heads]"
        text = added(text, "structures:", f"    kinds: {kinds}")
    if variant == "magnitude":
        text = text.replace("name: wav2vec2_l0", "name: wav2vec2_score")
        text = added(text, "score: !name:sb_prune.magnitude_score")
    return text


def added(text, *lines):
    """A YAML with more lines in its pruning block."""
    module = "    module: wav2vec2\n"
    assert module in text
    more = "".join(f"    {line}\n" for line in lines)
    return text.replace(module, module + more)


# ------------------------------------------------------------------ encoders


def small_width(level):
    """Of the widest encoder with the MACs that pruning leaves."""
    return max(
        width
        for width in range(16, 128, 4)
        if macs_of_width(width) <= (1 - level) * DENSE_MACS
    )


def macs_of_width(width):
    """MACs on 10 s of an encoder of `encoder_shape`, as `encoder_macs` says."""
    channels, frames, macs = width // 2, SAMPLES, 0
    for inputs, kernel, stride in zip(
        [1] + [channels] * 6, [10, 3, 3, 3, 3, 2, 2], [5] + [2] * 6, strict=True
    ):
        frames = (frames - kernel) // stride + 1
        macs += frames * channels * inputs * kernel
    macs += frames * channels * width  # feature projection
    macs += (frames + 1) * width * (width // 4) * 16  # positions
    layer = 4 * width * width + 2 * width * 4 * width + 2 * frames * width
    return macs + 6 * frames * layer


@torch.no_grad()
def encoder_macs(folder):
    """MACs on 10 s of an encoder in a Hugging Face folder or an export."""
    lobe = Wav2Vec2(str(folder), save_path=str(folder)).eval()
    return count_macs(lobe, torch.zeros(1, SAMPLES))


# -------------------------------------------------------------------- table


def plan_cells(full):
    """Keys of all cells, in the order in which they are worth running."""
    if not full:
        return [f"asr/{variant}/0.6/1" for variant in QUICK]
    keys = [f"asr/{variant}/0.6/1" for variant in VARIANTS]
    keys += [f"slu/{variant}/0.6/1" for variant in VARIANTS]
    keys += [f"asr/{variant}/0.6/2" for variant in VARIANTS]
    keys += [f"asr/{variant}/0.4/1" for variant in VARIANTS]
    keys += [f"asr/{variant}/0.6/3" for variant in VARIANTS]
    dense = [f"asr/dense/{seed}" for seed in (1, 2, 3)]
    return ["asr/dense/1", "slu/dense/1", *keys, *dense[1:]]


def summarise(cells):
    """{asr, slu: variant -> list of figures at 0.6, and the rest}."""
    result = {"asr": {}, "slu": {}, "slu_f1": {}, "asr_at_0.4": {}}
    reduction = {"asr": {}, "slu": {}, "asr_at_0.4": {}}
    for key, cell in sorted(cells.items()):
        task, variant, *level, _ = key.split("/")
        name = "asr_at_0.4" if level == ["0.4"] else task
        first = cell["intent_accuracy" if task == "slu" else "wer"]
        result[name].setdefault(variant, []).append(first)
        reduction[name].setdefault(variant, []).append(cell["macs_reduction"])
        if task == "slu":
            result["slu_f1"].setdefault(variant, []).append(cell["SLU_F1"])
    return {**result, "macs_reduction": reduction}


def as_markdown(summary):
    """The table for a README, means with their spread."""
    names = ("asr", "asr_at_0.4", "slu", "slu_f1")
    lines = [
        "| variant | WER, 60% | MACs gone | WER, 40% | intents | SLU-F1 |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for variant in ("dense", *VARIANTS):
        row = [spread(summary[name].get(variant, [])) for name in names]
        gone = spread(summary["macs_reduction"]["asr"].get(variant, []))
        row.insert(1, gone)
        lines.append(f"| {variant} | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark(TABLE, __doc__, plan_cells, Cells, summarise, as_markdown)
