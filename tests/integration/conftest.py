"""Small synthesised corpora, a tiny encoder, and runs of the recipes."""

import os

import pytest
import soundfile
import torch
from filelock import FileLock
from recipe_runs import (
    RECIPE,
    TINY,
    TINY_PRUNE,
    how_to_run,
    options,
    run_python,
)
from textgrid import IntervalTier, TextGrid
from tiny_whisper import write_tiny_whisper
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Function: name, make -> a folder that is made once, for all workers.

    `make` is called with the folder, which does not exist; the others wait.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def get(name, make):
        folder, made = place / name, place / f"{name}.made"
        with FileLock(place / f"{name}.lock"):
            if not made.exists():
                make(folder)
                made.touch()
        return folder

    return get


def synthesise(made_once, name, script, **sizes):
    """Folder of the corpus that a module of sb_prune.demo makes."""
    flags = [f"--{key}={value}" for key, value in sizes.items()]
    command = ["-m", f"sb_prune.demo.{script}"]
    return made_once(name, lambda folder: run_python(*command, folder, *flags))


@pytest.fixture(scope="session")
def corpus(made_once):
    """A few utterances in the layout of LibriSpeech."""
    return synthesise(
        made_once,
        "librispeech",
        "corpus",
        train_utterances=24,
        dev_utterances=8,
        test_utterances=8,
    )


@pytest.fixture(scope="session")
def alignments(made_once, corpus):
    """A TextGrid for each utterance, of its words and its letters."""

    def tier(name, labels, seconds):
        found, step = IntervalTier(name), seconds / len(labels)
        for place, label in enumerate(labels):
            found.add(place * step, (place + 1) * step, label)
        return found

    def write(folder):
        folder.mkdir()
        for path in corpus.rglob("*.trans.txt"):
            for line in path.read_text().splitlines():
                name, words = line.split(maxsplit=1)
                seconds = soundfile.info(
                    path.with_name(f"{name}.flac")
                ).duration
                grid = TextGrid()
                grid.append(tier("words", words.lower().split(), seconds))
                letters = [f"{letter}1" for letter in words if letter != " "]
                grid.append(tier("phones", letters, seconds))
                grid.write(folder / f"{name}.TextGrid")

    return made_once("alignments", write)


@pytest.fixture(scope="session")
def slurp_corpus(made_once):
    """A few utterances in the layout of SLURP."""
    return synthesise(
        made_once,
        "slurp",
        "slurp",
        train_utterances=24,
        devel_utterances=6,
        test_utterances=6,
    )


@pytest.fixture(scope="session")
def commands_corpus(made_once):
    """A few words in the layout of Speech Commands."""
    return synthesise(
        made_once,
        "commands",
        "speech_commands",
        speakers=4,
        repetitions=1,
    )


@pytest.fixture(scope="session")
def tiny_whisper(made_once):
    """A Hugging Face folder of Whisper, two layers of width 16 each side."""
    return made_once("whisper", write_tiny_whisper)


@pytest.fixture(scope="session")
def dense_run(made_once, corpus):
    """Output folder of a (hardly trained) dense run; to be read only."""
    return made_once(
        "dense_run",
        lambda folder: run_python(
            RECIPE / "train.py",
            "hparams/demo_train.yaml",
            *options(TINY, data_folder=corpus, output_folder=folder),
        ),
    )


@pytest.fixture(scope="session")
def prune(corpus, dense_run):
    """Function: runs demo_prune.yaml into a folder at debug size."""

    def run(folder, script=RECIPE / "train.py", **more):
        how, more = how_to_run(more)
        return run_python(
            script,
            "hparams/demo_prune.yaml",
            *options(
                {**TINY_PRUNE, **more},
                data_folder=corpus,
                dense_folder=dense_run,
                output_folder=folder,
            ),
            **how,
        )

    return run


@pytest.fixture(scope="session")
def pruned_run(made_once, prune):
    """Output folder of a finished pruning run; to be read only."""
    return made_once(
        "pruned_run", lambda folder: prune(folder, new_process=True)
    )


@pytest.fixture(scope="session")
def tiny_wav2vec2(made_once):
    """A Hugging Face folder of a random wav2vec 2.0 of width 16."""

    def make(folder):
        config = Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            conv_dim=[8] * 7,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            Wav2Vec2Model(config).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)

    return made_once("tiny_wav2vec2", make)
