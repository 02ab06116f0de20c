"""What to prune by, on real speech: the encoder of Whisper-base with CTC.

    python tests/benchmarks/real_hj.py --librispeech DIR --whisper DIR \\
        [--full] [--cells KEY ...]

Heterogeneous joint pruning (Peng et al., 2023, 2302.14132) of Whisper's
encoder, a pretrained one that few can train themselves, on train-clean-5. It is
fine-tuned with CTC (finetune_whisper.yaml), pruned and fine-tuned again
(prune_whisper.yaml), on every third utterance. All methods have the same
distillation and, pruning and fine-tuning together, the same steps:

    mac                HJ-MAC: front-end and Transformer, by MACs on 10 s, with
                       gates that start in the order of the loss
    taylor             by the loss of the task, while the model learns
    fisher             the same, all at once
    fisher_reselected  the same; which units stay, and their readers' weights,
                       follow from least squares
    even_magnitude     by the size of weights, all at once, of each structure
                       the same share; `magnitude` ranks all together
    layers             evenly spaced ones stay
    small_dense        a dense encoder of these MACs, with random weights at
                       first and a larger learning rate, on all utterances for
                       at least as many steps as all of the above
    size, sepsize      HJ-Size and HJ-SepSize: by parameters, in all and of
                       each part; shares that leave about these MACs
    transformer_only   as `mac`, but the front-end stays; of wav2vec 2.0 the
                       front-end has a third of the MACs, of Whisper a
                       twentieth

`dense_continued` is pruned by a thousandth, with the steps and the distillation
of all others: from it, differences are counted, since the dense model has not
learned for as long.

A cell is METHOD/LEVEL/SEED, LEVEL the share of the MACs that goes, or
`dense/SEED`, `dense_continued/SEED`; `test:` before it is its evaluation on
test. Checkpoints are chosen by a tenth of dev, which is scored with the rest.
`--cells` runs some alone; without data, what stands in the table is printed.
"""

import copy
import math
import re
import shutil
from functools import partial
from pathlib import Path

import torch
from cells import CTC, Runs, locked
from real_speech import (
    FEW_GONE,
    ON_CPU,
    SCORE_STEPS,
    manifests,
    methods_as_markdown,
    phases,
    run_real,
    schedule,
    score,
    steps_in_epoch,
    summarise_methods,
)
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from sb_prune import lobes, mac_cost, whisper_structures

TABLE = Path(__file__).with_suffix(".json")
FRAMES = 1000  # of the log-mel: 10 s
BATCHES = {"max_batch_length": 32, "max_batch_ex": 64, "num_buckets": 10}
DENSE_EPOCHS = 5
DENSE_RATE = 0.00003  # of the encoder; with 0.0001 it forgets
PRUNE_EPOCHS, TUNE_EPOCHS = 1, 2  # of a third of the utterances
FEW = 3
LEVELS = (0.4, 0.6, 0.2)
SEED = 1
KINDS = "structures: {kinds: [front_end_channels, ffn_units, heads]}"
MACS = ["budget: !name:sb_prune.MACBudget", f"    frames: {FRAMES}"]
PARTS = ("model.encoder.conv1", "model.encoder.layers")
# Share of the MACs -> of the parameters of the encoder, with its positions
OF_PARAMETERS = {0.2: 0.19, 0.4: 0.385, 0.6: 0.58}
L0, SCORE = "whisper_l0", "whisper_score"
PLAIN = ["refit: null"]
BEHIND = KINDS.replace("front_end_channels, ", "")
MAGNITUDE = ["score: !name:sb_prune.magnitude_score"]
EVEN_MAGNITUDE = ["score: !name:sb_prune.local_score"]
METHODS = {  # name -> (preset, lines beside it)
    "mac": (L0, [KINDS, *MACS]),
    "taylor": (SCORE, [KINDS, *MACS, *PLAIN]),
    "fisher": (SCORE, [KINDS, *MACS, *PLAIN]),
    "fisher_reselected": (SCORE, [KINDS, *MACS]),
    "even_magnitude": (SCORE, [KINDS, *MACS, *PLAIN, *EVEN_MAGNITUDE]),
    "magnitude": (SCORE, [KINDS, *MACS, *PLAIN, *MAGNITUDE]),
    "size": (L0, [KINDS]),
    "sepsize": (L0, [KINDS]),
    "transformer_only": (L0, [BEHIND, *MACS]),
}
GRADUAL = ("mac", "taylor", "size", "sepsize", "transformer_only")
LAYERS_KEPT = {0.2: 5, 0.4: 3, 0.6: 2}  # of 6: 15%, 46% and 61% of the MACs
BLOCK = r"(?m)^pruning:.*\n((?:    .*\n)+)"
LAYERS = """layer_pruning:
    module: whisper
    structures: !name:sb_prune.whisper_structures
        sides: [encoder]
    criterion: !new:sb_prune.depth.EvenlySpaced
        kept: {kept}
    distillation: !name:sb_prune.LayerwiseDistillation
        hidden_weight: 0.0
        states: [whisper]
        outputs: [ctc_lin]
        output_weight: 1.0
        task_weight: 1.0
"""
SMALL_RATE, SMALL_WARMUP = 0.0005, 500  # of random weights
FIRST = (
    "fisher_reselected",
    "mac",
    "taylor",
    "even_magnitude",
    "layers",
    "fisher",
    "magnitude",
)
SECOND = ("fisher_reselected", "mac", "even_magnitude")
QUICK = ["dense/1", "fisher_reselected/0.4/1"]


def plan_cells(full):
    """Keys of cells, the most worth first."""
    if not full:
        return QUICK
    first, *others = LEVELS
    keys = [f"dense/{SEED}"]
    keys += [f"{method}/{first}/{SEED}" for method in FIRST]
    keys.append(f"dense_continued/{SEED}")
    keys += [f"{m}/{level}/{SEED}" for level in others for m in SECOND]
    keys.append(f"small_dense/{first}/{SEED}")
    rest = [method for method in METHODS if method not in FIRST]
    return keys + [f"{method}/{first}/{SEED}" for method in rest]


# --------------------------------------------------------------------- runs


class Cells:
    """Computes cells from runs of train_with_whisper.py.

    Arguments
    ---------
    folder : Path
        Where runs and logs go.
    given : Namespace
        Of the command line.
    """

    def __init__(self, folder, given):
        self.runs = Runs(folder)
        self._data, self._whisper = given.librispeech, given.whisper
        self._config = WhisperConfig.from_pretrained(given.whisper)
        self._csv = manifests(
            folder / "csv", self._data, given.splits, {"few": FEW}
        )

    def run(self, key):
        """Runs, or continues, one cell of the table.

        Arguments
        ---------
        key : str

        Returns
        -------
        dict
            Word error rate, its interval, errors and words of each utterance,
            and the share of the MACs that is gone.
        """
        split = "test" if key.startswith("test:") else "dev"
        key = key.removeprefix("test:")
        found = score(partial(self._output, key), self._csv[split])
        gone = macs_gone(self._whisper, self._encoder(key))
        return {**found, "macs_gone": gone}

    def _encoder(self, key):
        """Folder with the encoder of a finished cell."""
        method, *level, _ = key.split("/")
        if method == "dense":
            return self._whisper
        if method == "small_dense":
            return self._small(float(level[0]))
        return self.runs.folder / key.replace("/", "-") / "export"

    def _output(self, key, scored):
        """Folder of a finished run whose model has been scored."""
        method, *level, seed = key.split("/")
        name = key.replace("/", "-")
        if method == "dense":
            return self._dense(seed, scored)
        if method == "dense_continued":
            return self._prune(name, "fisher", FEW_GONE, seed, scored)
        level = float(level[0])
        if method == "small_dense":
            pruned = 1 + PRUNE_EPOCHS + TUNE_EPOCHS  # the first by scores alone
            epochs = DENSE_EPOCHS + math.ceil(pruned / FEW)
            hub = self._small(level)
            small = {
                "encoder_dim": WhisperConfig.from_pretrained(hub).d_model,
                "lr_whisper": SMALL_RATE,
                "warmup_steps": SMALL_WARMUP,
            }
            return self._train(name, seed, scored, epochs, hub, **small)
        return self._prune(name, method, level, seed, scored)

    def _small(self, level):
        return untrained(self._whisper, level, self.runs.folder)

    def _dense(self, seed, scored):
        name, more = f"dense-{seed}", {"lr_whisper": DENSE_RATE}
        hub = self._whisper
        return self._train(name, seed, scored, DENSE_EPOCHS, hub, **more)

    def _train(self, name, seed, scored, epochs, hub, **more):
        steps = epochs * steps_in_epoch(self._csv["train"][0], **BATCHES)
        options = {
            "freeze_whisper_steps": 0,
            "number_of_epochs": epochs,
            **schedule(steps),
            **more,
        }
        yaml = CTC / "hparams/finetune_whisper.yaml"
        return self._run(name, yaml, "train", seed, scored, hub, options)

    def _prune(self, name, method, level, seed, scored):
        yaml = self.runs.folder / f"{name}.yaml"
        steps = steps_in_epoch(self._csv["few"][0], **BATCHES)
        options = phases(is_at_once(method), PRUNE_EPOCHS, TUNE_EPOCHS, steps)
        text = pruning_yaml(method, level, options)
        yaml.write_text(text, encoding="utf-8")
        options |= {
            "dense_folder": self._dense(seed, self._csv["valid"][0]),
            "target": level,
            "loss_reduction": "mean",  # for each token, as distillation is
        }
        hub = self._whisper
        return self._run(name, yaml, "few", seed, scored, hub, options)

    def _run(self, name, yaml, train, seed, scored, hub, options):
        options = {
            "data_folder": self._data,
            "whisper_hub": hub,
            "skip_prep": True,
            **ON_CPU,
            "train_csv": self._csv[train][0],
            "valid_csv": self._csv["valid"][0],
            "test_csv": f"[{scored}]",
            **BATCHES,
            "attn_implementation": "eager",
            "encoder_dim": self._config.d_model,
            "seed": seed,
            **options,
        }
        script = CTC / "train_with_whisper.py"
        last = f"wer_{scored.stem}.txt"
        return self.runs.run(name, script, yaml, last, options)


def is_at_once(method):
    """Whether a method removes all before anything learns."""
    return method not in GRADUAL


def preset_of(method, options):
    """Preset of a method, and the lines of its block, also on measuring.

    Arguments
    ---------
    method : str
    options : dict
        What `phases` gives.
    """
    preset, lines = METHODS[method]
    if is_at_once(method):
        return preset, [*lines, f"prune_steps: {SCORE_STEPS}"]
    start = round(SCORE_STEPS / options["schedule_steps"], 3)
    # of whisper_score all that is not at once
    more = [] if preset == L0 else ["prune_steps: null"]
    return preset, [*lines, *more, f"schedule: {{start: {start}}}"]


def pruning_yaml(method, level, options):
    """prune_whisper.yaml as another method at a level.

    Arguments
    ---------
    method : str
    level : float
    options : dict
        What `phases` gives.
    """
    text = (CTC / "hparams/prune_whisper.yaml").read_text("utf-8")
    text = text.replace("inference: hparams", f"inference: {CTC / 'hparams'}")
    if method == "layers":
        block = re.search(BLOCK, text)[1]
        kept = LAYERS.format(kept=LAYERS_KEPT[level])
        taken = (
            r"    (?:start_from|start_min_key|inference|export_folder): .*\n"
        )
        kept += "".join(re.findall(taken, block))
        return re.sub(BLOCK, lambda _: kept, text)
    preset, lines = preset_of(method, options)
    text = text.replace(f"    name: {L0}\n", f"    name: {preset}\n")
    target = "    target: !ref <target>\n"
    assert text.count(target) == 1
    if method == "size":
        share = OF_PARAMETERS[level]  # as measured, for these levels alone
        text = text.replace(target, f"    target: {share}\n")
    if method == "sepsize":
        each = "".join(f"        {part}: !ref <target>\n" for part in PARTS)
        text = text.replace(target, f"    target:\n{each}")
    added = "".join(f"    {line}\n" for line in lines)
    module = "    module: whisper\n"
    assert text.count(module) == 1
    return text.replace(module, module + added)


# ------------------------------------------------------------------ encoders


def untrained(source, level, folder):
    """Makes the dense encoder of a level, with random weights.

    Arguments
    ---------
    source : str
        Folder of the dense model.
    level : float
        Share of its MACs that goes.
    folder : Path
        Where that of the encoder goes.

    Returns
    -------
    Path
    """
    made = folder / f"untrained-{level}"
    lock = made.with_name(f"{made.name}.lock")
    with locked(lock), torch.random.fork_rng():
        if not made.is_dir():
            torch.manual_seed(0)
            aside = made.with_name(f"{made.name}.incomplete")
            shutil.rmtree(aside, ignore_errors=True)
            config = WhisperConfig.from_pretrained(source)
            WhisperModel(small_config(config, level)).save_pretrained(aside)
            extractor = WhisperFeatureExtractor.from_pretrained(source)
            extractor.save_pretrained(aside)
            aside.rename(made)
    return made


def macs_gone(dense, left):
    """Share of the MACs on 10 s that one encoder has less than another.

    Arguments
    ---------
    dense, left : str
        Folders of models.

    Returns
    -------
    float
    """
    encoders = (
        lobes.Whisper(str(source), str(source), encoder_only=True)
        for source in (dense, left)
    )
    whole, rest = map(macs_of, encoders)
    return round(1 - rest / whole, 4)


def macs_of(model):
    """MACs of the encoder of a model on 10 s."""
    declaration = whisper_structures(model, sides=["encoder"])
    return mac_cost(declaration, FRAMES).dense()


def small_config(config, level):
    """Of the widest encoder with the MACs that pruning leaves, or less.

    Arguments
    ---------
    config : WhisperConfig
        Of the dense model.
    level : float

    Returns
    -------
    WhisperConfig
    """
    whole = _macs_of_config(config)
    for width in range(config.d_model, 0, -config.encoder_attention_heads):
        small = copy.deepcopy(config)
        small.d_model = width
        small.encoder_ffn_dim = small.decoder_ffn_dim = 4 * width
        if _macs_of_config(small) <= (1 - level) * whole:
            return small
    raise ValueError(f"{level}: no encoder is as small")


def _macs_of_config(config):
    with torch.device("meta"):
        model = WhisperModel(config)
    return macs_of(model)


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
