"""Every command of every README runs, at debug size."""

import os
import pydoc
import re
import shutil
import subprocess
import sys

import pytest
from recipe_runs import (
    ALL_SPLITS,
    FEW_NEIGHBOURS,
    JOINT,
    JOINT_PRUNE,
    ROOT,
    TINY,
    TINY_COMMANDS,
    TINY_COMPRESSION,
    TINY_CTC,
    TINY_ENCODER,
    TINY_PROBE,
    TINY_PRUNE,
    TINY_SLURP,
    TINY_STUDENT,
    TINY_UNEQUAL,
    options,
    run_python,
)

CORPUS = ["--train_utterances=24", "--dev_utterances=8", "--test_utterances=8"]
TEST = "[results/{}/1234/test-clean.csv]"
TWO_EPOCHS = {"number_of_epochs": 2, "prune_epochs": 1, "schedule_steps": 2}
# What debug size adds to a command, by words that it holds
SMALLER = {
    "sb_prune.demo.corpus": CORPUS,
    "hparams/train.yaml": options(
        JOINT, number_of_epochs=1, test_csv=TEST.format("train")
    ),
    "hparams/prune.yaml": options(
        JOINT_PRUNE, number_of_epochs=2, test_csv=TEST.format("prune")
    ),
    "train_with_wav2vec.py hparams/prune_mac.yaml": options(
        TINY_CTC,
        **TWO_EPOCHS,
        test_csv=TEST.format("prune_mac"),
        test_splits="[test-clean]",
        wav2vec2_hub="/path/to/small_wav2vec2",
    ),
    "train_with_wav2vec.py hparams/demo_prune.yaml": options(
        TINY_CTC, **TWO_EPOCHS, encoder_dim=128
    ),
    "train_with_wav2vec2.py hparams/prune_mac.yaml": options(
        TINY_SLURP,
        **TWO_EPOCHS,
        wav2vec2_hub="/path/to/small_wav2vec2",
    ),
    "train_with_wav2vec2.py hparams/demo_prune.yaml": options(
        TINY_SLURP, **TWO_EPOCHS
    ),
    "hparams/demo_train.yaml": options(TINY),
    "train.py hparams/demo_prune.yaml": options(TINY_PRUNE),
    "sb_prune.demo.slurp": [
        "--train_utterances=24",
        "--devel_utterances=6",
        "--test_utterances=6",
    ],
    "train_with_wav2vec.py hparams/finetune.yaml": options(
        TINY_CTC,
        number_of_epochs=1,
        test_csv=TEST.format("finetune"),
        test_splits="[test-clean]",
        wav2vec2_hub="/path/to/small_wav2vec2",
    ),
    "train_with_wav2vec.py hparams/demo_encoder.yaml": options(TINY_ENCODER),
    "train_with_wav2vec.py hparams/demo_finetune.yaml": options(
        TINY_CTC, number_of_epochs=1, encoder_dim=128
    ),
    "train_with_wav2vec2.py hparams/finetune.yaml": options(
        TINY_SLURP,
        number_of_epochs=1,
        wav2vec2_hub="/path/to/small_wav2vec2",
    ),
    "train_with_wav2vec2.py hparams/demo_finetune.yaml": options(
        TINY_SLURP, number_of_epochs=1
    ),
    "train.py hparams/prune_fine_grained.yaml": options(
        TINY_COMPRESSION,
        **TINY_UNEQUAL,
        wav2vec2_hub="/path/to/small_wav2vec2",
    ),
    "train.py hparams/armhubert.yaml": options(
        TINY_COMPRESSION,
        **TINY_STUDENT,
        wav2vec2_hub="/path/to/small_wav2vec2",
    ),
    "train.py hparams/pr.yaml": options(TINY_PROBE),
    "--label=spk_id": options({**TINY_COMMANDS, "output_neurons": 5}),
    "hparams/convexity.yaml --data_folder=/path/to/LibriSpeech": options(
        {**TINY_COMMANDS, "output_neurons": 9},
        **ALL_SPLITS,
        layer_pruning=FEW_NEIGHBOURS,
    ),
    "hparams/convexity.yaml --data_folder=/path/to/slurp": options(
        TINY_COMMANDS, layer_pruning=FEW_NEIGHBOURS
    ),
    "hparams/convexity.yaml": options(TINY_COMMANDS),
    "hparams/convexity_l0.yaml": options(TINY_COMMANDS, **TWO_EPOCHS),
    "run_probes.py": ["--probes", "ks", "sid", *options(TINY_PROBE)],
    "sb_prune.report": ["--seconds=2"],
}


def commands(readme):
    """Lines of the bash blocks of a README."""
    blocks = re.findall(r"```bash\n(.*?)```", readme.read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def checkout(
    tmp_path_factory, corpus, slurp_corpus, commands_corpus, tiny_wav2vec2
):
    """A copy of the tree's recipes, and data at the READMEs' paths."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("recipes", "hparams"):
        shutil.copytree(ROOT / part, folder / part, symlinks=True)
    shutil.copytree(corpus, folder / "LibriSpeech")
    shutil.copytree(slurp_corpus, folder / "slurp")
    shutil.copytree(commands_corpus, folder / "speech_commands_v0.02")
    for name in ("small_wav2vec2", "encoder", "export"):
        shutil.copytree(tiny_wav2vec2, folder / name)
    return folder


def run_line(line, checkout, cwd):
    """Runs one command in cwd; returns where the next one runs."""
    first, *words = line.split()
    if first == "cd":
        return checkout / words[0]
    if first == "make":
        done = subprocess.run(
            ["make", "--dry-run", *words], cwd=ROOT, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return cwd
    assert first == "python", f"no test knows how to run: {line}"
    smaller = [
        more for key, more in SMALLER.items() if set(key.split()) <= {*words}
    ]
    assert smaller, f"no test knows how to run: {line}"
    # a key may stand once
    keys = {word.partition("=")[0] for word in smaller[0]}
    words = [word for word in words if word.partition("=")[0] not in keys]
    words = [
        word.replace("/path/to/", f"{checkout}/")
        for word in [*words, *smaller[0]]
    ]
    run_python(*words, cwd=cwd)
    return cwd


@pytest.mark.parametrize(
    "readme",
    [
        "recipes/Google-speech-commands/README.md",
        "recipes/LibriSpeech/ASR/CTC/README.md",
        "recipes/LibriSpeech/ASR/transformer/README.md",
        "recipes/LibriSpeech/probing/README.md",
        "recipes/LibriSpeech/self-supervised-learning/compression/README.md",
        "recipes/LibriSpeech/speaker-identification/README.md",
        "recipes/SLURP/direct/README.md",
        "recipes/SLURP/intents/README.md",
        "README.md",  # the last: its results are read below
    ],
)
def test_commands_run(readme, checkout):
    cwd = (checkout / readme).parent
    for results in checkout.glob("recipes/**/results"):
        shutil.rmtree(results)
    for line in commands(ROOT / readme):
        cwd = run_line(line, checkout, cwd)


def test_python_of_the_readme_runs(checkout, tmp_path):
    """After the commands above: the export loads and transcribes."""
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    recipe = checkout / "recipes/LibriSpeech/ASR/transformer"
    audio = next((checkout / "LibriSpeech").rglob("*.flac"))
    script = tmp_path / "load.py"
    script.write_text(block.replace("speech.flac", str(audio)))
    done = subprocess.run(
        [sys.executable, script],
        cwd=recipe,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_diff_of_the_readme_is_what_the_recipe_has():
    """The three edits, line by line."""
    edits, block, swap = re.findall(
        r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    recipe = ROOT / "recipes/LibriSpeech/ASR/transformer"
    train = (recipe / "train.py").read_text()
    for line in edits.splitlines():
        if line.startswith("+") and line.strip("+ "):
            assert line[1:] in train
        if line.startswith("-"):
            assert line[1:] not in train
    prune = (recipe / "hparams/prune.yaml").read_text()
    keys = re.findall(r"^\+ *(\w+):", block, re.M)
    assert "pruning" in keys and "inference" in keys
    for key in keys:
        assert f"{key}:" in prune
    for name in re.findall(r"!new:(\S+)", swap):
        assert isinstance(pydoc.locate(name), type)


def test_readme_names_every_public_name():
    import sb_prune

    text = (ROOT / "README.md").read_text()
    for name in sb_prune.__all__:
        assert f"`{name}`" in text
        assert getattr(sb_prune, name).__doc__
