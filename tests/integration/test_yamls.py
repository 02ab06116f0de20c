"""Every YAML in the repository loads, and prune YAMLs add only pruning."""

import difflib
import re

import pytest
import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml
from recipe_runs import ROOT

from sb_prune.presets import preset_names

YAMLS = sorted(
    path
    for folder in ("hparams", "recipes")
    for path in (ROOT / folder).rglob("*.yaml")
)


# Inference YAMLs take scalars from these.
TRAINING = {
    "recipes/LibriSpeech/ASR/CTC/hparams/inference_ctc": "demo_finetune",
    "recipes/LibriSpeech/ASR/CTC/hparams/inference_whisper_ctc": (
        "finetune_whisper"
    ),
    "recipes/LibriSpeech/ASR/transformer/hparams/inference": "train",
    "recipes/LibriSpeech/ASR/transformer/hparams/inference_ctc": "demo_train",
    "recipes/LibriSpeech/ASR/transformer/hparams/inference_whisper": (
        "train_whisper"
    ),
    "recipes/LibriSpeech/self-supervised-learning/compression/hparams/"
    "inference": "prune_fine_grained",
    "recipes/SLURP/direct/hparams/inference": "finetune",
    "recipes/Google-speech-commands/hparams/inference": "finetune",
    "recipes/LibriSpeech/speaker-identification/hparams/inference": "convexity",
    "recipes/SLURP/intents/hparams/inference": "convexity",
}


def name_of(path):
    """A YAML's path in the repository, without its suffix."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def overrides(path, folder, encoder, whisper):
    """A value for each !PLACEHOLDER, and models that need no network."""
    names = re.findall(r"^(\w+): !PLACEHOLDER", path.read_text(), re.M)
    values = {}
    for name in names:
        if name.endswith("folder"):
            values[name] = str(folder)
        elif not name.endswith("_hub"):
            training = path.with_name(f"{TRAINING[name_of(path)]}.yaml")
            (found,) = re.findall(
                rf"^{name}: (\S+)", training.read_text(), re.M
            )
            values[name] = 16  # the width of an encoder, which it says itself
            if not found.startswith("!"):
                values[name] = ruamel.yaml.YAML(typ="safe").load(found)
    for name, model in (("wav2vec2_hub", encoder), ("whisper_hub", whisper)):
        if re.search(f"^{name}:", path.read_text(), re.M):
            values[name] = str(model)
    if re.search(r"^reuse: \[", path.read_text(), re.M):
        values["reuse"] = [False, True]  # that encoder has two layers
    return values


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_yaml_loads(path, tmp_path, monkeypatch, tiny_wav2vec2, tiny_whisper):
    monkeypatch.chdir(tmp_path)  # Checkpointers make their folders
    monkeypatch.syspath_prepend(path.parents[1])  # as train.py's is
    with open(path) as file:
        hparams = load_hyperpyyaml(
            file, overrides(path, tmp_path, tiny_wav2vec2, tiny_whisper)
        )
    assert hparams


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_no_schedule_of_steps_is_stored(path):
    """From a checkpoint it would undo that a run is to go on for longer."""
    yaml = path.read_text()
    kept = yaml.partition("recoverables:")[2]
    for name in re.findall(r"^(\w+): !new:.*\.WarmCoolDecay", yaml, re.M):
        assert f" {name}:" not in kept


def test_no_recipe_and_no_preset_is_left_out():
    scripts = {path.parent for path in (ROOT / "recipes").rglob("train*.py")}
    folders = {path.parents[1] for path in YAMLS}
    assert folders == {*scripts, ROOT}
    presets = {path.stem for path in YAMLS if path.parents[1] == ROOT}
    assert presets == {*preset_names()}


TRANSFORMER = "recipes/LibriSpeech/ASR/transformer/hparams"
SLURP = "recipes/SLURP/direct/hparams"
CTC = "recipes/LibriSpeech/ASR/CTC/hparams"
COMMANDS = "recipes/Google-speech-commands/hparams"
PAIRS = [
    (f"{TRANSFORMER}/train", f"{TRANSFORMER}/prune"),
    (f"{TRANSFORMER}/demo_train", f"{TRANSFORMER}/demo_prune"),
    (f"{TRANSFORMER}/train_ctc", f"{TRANSFORMER}/prune_ctc"),
    (f"{TRANSFORMER}/train_whisper", f"{TRANSFORMER}/prune_whisper"),
    (f"{TRANSFORMER}/train_whisper", f"{TRANSFORMER}/distil_whisper"),
    (f"{CTC}/finetune_whisper", f"{CTC}/prune_whisper"),
    *((f"{f}/demo_finetune", f"{f}/demo_prune") for f in (SLURP, CTC)),
    (f"{COMMANDS}/finetune", f"{COMMANDS}/convexity"),
    (f"{COMMANDS}/finetune", f"{COMMANDS}/convexity_l0"),
    *(
        (f"{folder}/finetune", f"{folder}/prune_{variant}")
        for folder in (SLURP, CTC)
        for variant in ("size", "mac", "sepsize", "transformer_only")
    ),
]


def test_what_whisper_teaches_is_all_that_differs():
    plain, taught = (
        (ROOT / f"{TRANSFORMER}/{name}.yaml").read_text().splitlines()
        for name in ("train_ctc", "train_ctc_with_whisper")
    )
    gone = {
        line[2:].partition(":")[0].strip()
        for line in difflib.ndiff(plain, taught)
        if line.startswith("- ") and not line.startswith("- #")
    }
    assert gone == {
        "",
        "output_folder",
        "time_warp",  # frames stay where the teacher has them
        "min_augmentations",
        "max_augmentations",
        "augmentations",
    }


@pytest.mark.parametrize("dense, pruned", PAIRS)
def test_prune_yaml_is_the_dense_one_and_the_block(dense, pruned):
    """Nothing else may drift apart: the dense run must load."""
    train = (ROOT / f"{dense}.yaml").read_text().splitlines()
    prune = (ROOT / f"{pruned}.yaml").read_text()
    for title in ("Layer pruning", "Pruning"):
        block = rf"#+ {title} #+\n\n(# .*?\n)?\w+:.*?\n\n"
        prune = re.sub(block, "", prune, flags=re.S)
    prune = re.sub(r"\nwindows: .*?\n\n", "\n", prune, flags=re.S)
    changed = {
        re.match(r"\w*", line).group()
        for line in set(prune.splitlines()) ^ set(train)
        if not line.startswith("#")
    }
    assert changed <= {
        "output_folder",
        "tokenizer_folder",
        "dense_folder",
        "dropout",
        "freeze_decoder",
        "freeze_encoder",
        "freeze_feature_extractor",
        "freeze_wav2vec_steps",
        "freeze_whisper_steps",
        "full_windows",
        "kept_layers",
        "number_of_epochs",
        "prune_epochs",
        "pseudo_labels",
        "sample",
        "target",
        "target_front_end",
        "schedule_steps",
        "warmup_steps",
        "cooldown_steps",
        "total_steps",
        "update_until_epoch",
        "lr",
        "lr_decoder",
        "lr_encoder",
    }
