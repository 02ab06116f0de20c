"""Every command of every page runs, at debug size, and so does its Python."""

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from documents import PAGES, blocks, commands, name_of
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
    TINY_WHISPER,
    TINY_WHISPER_CTC,
    TINY_WHISPER_CTC_PRUNE,
    TINY_WHISPER_DISTIL,
    TINY_WHISPER_PRUNE,
    options,
    run_python,
)
from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR
from tiny_export import make_export

from sb_prune import lobes
from sb_prune.export.lineage import size_table
from sb_prune.export.loading import load_export

CORPUS = ["--train_utterances=24", "--dev_utterances=8", "--test_utterances=8"]
TEST = "[results/{}/1234/test-clean.csv]"
TWO_EPOCHS = {"number_of_epochs": 2, "prune_epochs": 1, "schedule_steps": 2}
SHORT_ANSWERS = {"max_decode_ratio": 0.2}  # of models that know nothing yet
FEW_HOURS = {"train_splits": "[train-clean-100]", "num_workers": 0}
SMALL_ENCODER = {"wav2vec2_hub": "/path/to/small_wav2vec2"}
SMALL_WHISPER = {"whisper_hub": "/path/to/small_whisper"}
COMPRESSION = "LibriSpeech/self-supervised-learning/compression"
COMPRESSED = "--output_folder=results/finetune_small/1234"
CTC, SLURP = "train_with_wav2vec.py", "train_with_wav2vec2.py"
CONVEXITY = "train.py hparams/convexity.yaml"
# What tests/unit/test_documents.py looks at.
ELSEWHERE = (
    "make ",
    "pip install ",
    ".venv/bin/python -m pytest ",
    "python tests/benchmarks/",
)
# What debug size adds to a command, by words that it holds; of several that
# fit, the one of most words.
SMALLER = {
    "-m sb_prune.demo.corpus": CORPUS,
    "-m sb_prune.demo.slurp": [
        "--train_utterances=24",
        "--devel_utterances=6",
        "--test_utterances=6",
    ],
    "-m pydoc": [],
    "-m sb_prune.deploy": [],
    "-m sb_prune.presets": [],
    "-m sb_prune.vocabulary": [],
    "-m sb_prune.report": ["--seconds=1"],
    "-m sb_prune.report --compare": ["--utterances=2"],
    "train.py hparams/train.yaml": options(
        JOINT, number_of_epochs=1, test_csv=TEST.format("train")
    ),
    "train.py hparams/prune.yaml": options(
        JOINT_PRUNE, number_of_epochs=2, test_csv=TEST.format("prune")
    ),
    "train_with_whisper.py hparams/train_whisper.yaml": options(
        TINY_WHISPER,
        **SMALL_WHISPER,
        test_csv=TEST.format("train_whisper"),
        number_of_epochs=0,
    ),
    "train_with_whisper.py hparams/prune_whisper.yaml": options(
        TINY_WHISPER_PRUNE,
        **SMALL_WHISPER,
        test_csv=TEST.format("prune_whisper"),
    ),
    "train_with_whisper.py hparams/distil_whisper.yaml": options(
        TINY_WHISPER_DISTIL,
        **SMALL_WHISPER,
        test_csv=TEST.format("distil_whisper"),
    ),
    "train_with_whisper.py hparams/finetune_whisper.yaml": options(
        TINY_WHISPER_CTC,
        **SMALL_WHISPER,
        test_csv=TEST.format("finetune_whisper"),
    ),
    "train_with_whisper.py hparams/prune_whisper.yaml "
    "--dense_folder=results/finetune_whisper/1234": options(
        TINY_WHISPER_CTC_PRUNE,
        **SMALL_WHISPER,
        test_csv=TEST.format("prune_whisper"),
    ),
    "train.py hparams/train_ctc.yaml": options(
        TINY, **FEW_HOURS, test_csv=TEST.format("train_ctc")
    ),
    "train.py hparams/train_ctc_with_whisper.yaml": options(
        TINY,
        **FEW_HOURS,
        **SMALL_WHISPER,
        test_csv=TEST.format("train_ctc_with_whisper"),
    ),
    "train.py hparams/prune_ctc.yaml": options(
        TINY_PRUNE, **FEW_HOURS, test_csv=TEST.format("prune_ctc")
    ),
    "hparams/prune_ctc.yaml --output_folder=results/prune_taught/1234": options(
        TINY_PRUNE, **FEW_HOURS, test_csv=TEST.format("prune_taught")
    ),
    "train.py hparams/demo_train.yaml": options(TINY),
    "train.py hparams/demo_prune.yaml": options(TINY_PRUNE),
    f"{CTC} hparams/finetune.yaml": options(
        TINY_CTC,
        **SMALL_ENCODER,
        number_of_epochs=1,
        test_csv=TEST.format("finetune"),
        test_splits="[test-clean]",
    ),
    f"{CTC} hparams/prune_mac.yaml": options(
        TINY_CTC,
        **SMALL_ENCODER,
        **TWO_EPOCHS,
        test_csv=TEST.format("prune_mac"),
        test_splits="[test-clean]",
    ),
    f"{CTC} hparams/demo_encoder.yaml": options(TINY_ENCODER),
    f"{CTC} hparams/demo_finetune.yaml": options(
        TINY_CTC, number_of_epochs=1, encoder_dim=128
    ),
    f"{CTC} hparams/demo_prune.yaml": options(
        TINY_CTC, **TWO_EPOCHS, encoder_dim=128
    ),
    f"{CTC} hparams/finetune.yaml {COMPRESSED}": options(
        TINY_CTC,
        number_of_epochs=1,
        test_csv=TEST.format("finetune_small"),
        test_splits="[test-clean]",
    ),
    f"{CTC} hparams/prune_size.yaml": options(
        TINY_CTC,
        **TWO_EPOCHS,
        target=0.5,
        test_csv=TEST.format("prune_small"),
        test_splits="[test-clean]",
    ),
    f"{SLURP} hparams/finetune.yaml": options(
        TINY_SLURP, **SMALL_ENCODER, **SHORT_ANSWERS, number_of_epochs=1
    ),
    f"{SLURP} hparams/prune_mac.yaml": options(
        TINY_SLURP, **SMALL_ENCODER, **SHORT_ANSWERS, **TWO_EPOCHS
    ),
    f"{SLURP} hparams/finetune.yaml {COMPRESSED}": options(
        TINY_SLURP, **SHORT_ANSWERS, number_of_epochs=1
    ),
    f"{SLURP} hparams/prune_size.yaml": options(
        TINY_SLURP, **SHORT_ANSWERS, **TWO_EPOCHS, target=0.5
    ),
    f"{SLURP} hparams/demo_finetune.yaml": options(
        TINY_SLURP, **SHORT_ANSWERS, number_of_epochs=1
    ),
    f"{SLURP} hparams/demo_prune.yaml": options(
        TINY_SLURP, **SHORT_ANSWERS, **TWO_EPOCHS
    ),
    "train.py hparams/prune_fine_grained.yaml": options(
        TINY_COMPRESSION, **TINY_UNEQUAL, **SMALL_ENCODER, target=0.3
    ),
    "train.py hparams/armhubert.yaml": options(
        TINY_COMPRESSION, **TINY_STUDENT, **SMALL_ENCODER
    ),
    "train.py hparams/pr.yaml": options(TINY_PROBE),
    "run_probes.py": ["--probes", "sid", *options(TINY_PROBE)],
    CONVEXITY: options(TINY_COMMANDS),
    f"{CONVEXITY} --label=spk_id": options(
        {**TINY_COMMANDS, "output_neurons": 5}
    ),
    f"{CONVEXITY} --data_folder=/path/to/LibriSpeech": options(
        {**TINY_COMMANDS, "output_neurons": 9},
        **ALL_SPLITS,
        layer_pruning=FEW_NEIGHBOURS,
    ),
    f"{CONVEXITY} --alignments_folder=/path/to/alignments": options(
        {**TINY_COMMANDS, "output_neurons": 9},
        **ALL_SPLITS,
        layer_pruning=FEW_NEIGHBOURS,
    ),
    f"{CONVEXITY} --data_folder=/path/to/slurp": options(
        TINY_COMMANDS, layer_pruning=FEW_NEIGHBOURS
    ),
    "train.py hparams/convexity_l0.yaml": options(TINY_COMMANDS, **TWO_EPOCHS),
}


@dataclass
class Checkout:
    """A copy of the tree's recipes, and data at the pages' paths.

    Arguments
    ---------
    root : Path
    """

    root: Path
    _done: set = field(default_factory=set)

    def run(self, line, cwd):
        """Runs one command; the same in the same folder runs once.

        Arguments
        ---------
        line : str
        cwd : Path

        Returns
        -------
        Path
            Where the next one runs.
        """
        first, *words = shlex.split(line)
        if first == "cd":
            return Path(os.path.normpath(cwd / words[0]))
        if line.startswith(ELSEWHERE):
            return cwd
        assert first == "python", f"no test knows how to run: {line}"
        if (line, cwd) not in self._done:
            self._done.add((line, cwd))
            run_python(*self._at_debug_size(line, words), cwd=cwd)
        return cwd

    def run_page(self, page):
        """Runs the commands of a page, from where it tells to.

        Arguments
        ---------
        page : Path

        Returns
        -------
        Path
            Where the last one ran.
        """
        cwd = self.root
        if page.is_relative_to(ROOT / "recipes"):
            cwd /= page.relative_to(ROOT).parent
        for line in commands(page):
            cwd = self.run(line, cwd)
        return cwd

    def _at_debug_size(self, line, words):
        fitting = [key for key in SMALLER if set(key.split()) <= {*words}]
        assert fitting, f"no test knows how to run: {line}"
        more = SMALLER[max(fitting, key=lambda key: len(key.split()))]
        again = {word.partition("=")[0] for word in more}  # a key stands once
        words = [word for word in words if word.partition("=")[0] not in again]
        return [
            word.replace("/path/to/", f"{self.root}/")
            for word in [*words, *more]
        ]


@pytest.fixture(scope="module")
def checkout(
    tmp_path_factory,
    corpus,
    slurp_corpus,
    commands_corpus,
    alignments,
    tiny_wav2vec2,
    tiny_whisper,
):
    root = tmp_path_factory.mktemp("checkout")
    for part in ("recipes", "hparams"):
        shutil.copytree(
            ROOT / part,
            root / part,
            symlinks=True,
            ignore=shutil.ignore_patterns("results"),
        )
    for name, folder in {
        "LibriSpeech": corpus,
        "demo": corpus,  # what is complete is not synthesised again
        "slurp": slurp_corpus,
        "slurp_demo": slurp_corpus,
        "speech_commands_v0.02": commands_corpus,
        "alignments": alignments,
        "small_wav2vec2": tiny_wav2vec2,
        "small_whisper": tiny_whisper,
        "whisper-base": tiny_whisper,
        "encoder": tiny_wav2vec2,
        "export": tiny_wav2vec2,
    }.items():
        (root / name).symlink_to(folder)
    (root / "words.txt").write_text("some words\n", encoding="utf-8")
    make_export(root / "recogniser")
    shutil.copy(next(commands_corpus.rglob("*.wav")), root / "yes.wav")
    shutil.copy(next(corpus.rglob("*.flac")), root / "speech.flac")
    return Checkout(root)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=name_of
)
def test_page_does_what_it_says(page, checkout, tmp_path):
    """Its commands, then the Python that uses what they have made."""
    cwd = checkout.run_page(page)
    if page.parent == ROOT / "docs":
        return  # tests/unit/test_documents.py runs the Python of these
    for block in blocks(page, "python"):
        script = tmp_path / "script.py"
        text = block.text.replace("/path/to/", f"{checkout.root}/")
        audio = f'"{checkout.root}/speech.flac"'
        script.write_text(text.replace('"speech.flac"', audio))
        run_python(script, cwd=cwd)


@pytest.mark.parametrize(
    "recipe, interface",
    [
        ("LibriSpeech/ASR/CTC", EncoderASR),
        ("SLURP/direct", EncoderDecoderASR),
    ],
)
def test_a_compressed_encoder_is_pruned_further(
    recipe, interface, checkout, tiny_wav2vec2, tmp_path
):
    """What the commands in the README of the compression have made."""
    checkout.run_page(ROOT / "recipes" / COMPRESSION / "README.md")
    export = checkout.root / "recipes" / recipe / "results/prune_small/1234"
    export /= "export"
    dense = lobes.Wav2Vec2(str(tiny_wav2vec2), str(tmp_path))
    header, *rows = size_table(load_export(export))
    assert header[1:3] == ["parameters", "gone"]
    assert [row[0] for row in rows] == ["dense", "after cut 1", "after cut 2"]
    original = sum(p.numel() for p in dense.parameters())
    assert rows[0][1] == f"{original:,}"
    first, second = (float(row[2].rstrip("%")) for row in rows[1:])
    assert 30 <= first < 50 <= second < 55
    assert "after cut 2" in (export / "README.md").read_text()
    system = interface.from_hparams(
        source=str(export), savedir=str(tmp_path / "hub")
    )
    system.transcribe_batch(torch.randn(1, 4000), torch.ones(1))


def test_documentation_builds_without_a_warning(tmp_path):
    """`make docs`, on a copy: Sphinx writes what it finds into its source."""
    tree = tmp_path / "tree"
    pictures = (ROOT / "docs").rglob("*.svg")
    for page in (*PAGES, *pictures):
        copy = tree / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, copy)
    shutil.copy(ROOT / "docs/conf.py", tree / "docs")
    shutil.copytree(ROOT / "docs/templates", tree / "docs/templates")
    arguments = sphinx_arguments()
    assert "-W" in arguments
    run_python("-m", "sphinx", *arguments, cwd=tree)
    assert (tree / "docs/build/docs/index.html").is_file()
    assert (tree / "docs/build/docs/api/sb_prune.Plan.html").is_file()


def sphinx_arguments():
    """What the Makefile gives to Sphinx."""
    dry = subprocess.check_output(
        ["make", "--dry-run", "docs"], cwd=ROOT, text=True
    )
    (line,) = (line for line in dry.splitlines() if "-m sphinx" in line)
    return line.partition("-m sphinx ")[2].split()
