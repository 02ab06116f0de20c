"""Small synthesised corpora, a tiny encoder, and runs of the recipes."""

import pytest
import torch
from recipe_runs import RECIPE, ROOT, TINY, TINY_PRUNE, options, run_python
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A few utterances in the layout of LibriSpeech."""
    folder = tmp_path_factory.mktemp("speech") / "corpus"
    run_python(
        ROOT / "sb_prune/demo/corpus.py",
        folder,
        "--train_utterances=24",
        "--dev_utterances=8",
        "--test_utterances=8",
        cwd=ROOT,
    )
    return folder


@pytest.fixture(scope="session")
def dense_run(tmp_path_factory, corpus):
    """Output folder of a (hardly trained) dense run."""
    folder = tmp_path_factory.mktemp("dense") / "run"
    run_python(
        RECIPE / "train.py",
        "hparams/demo_train.yaml",
        *options(TINY, data_folder=corpus, output_folder=folder),
    )
    return folder


@pytest.fixture(scope="session")
def prune(corpus, dense_run):
    """Function: runs demo_prune.yaml into a folder at debug size."""

    def run(
        folder, script=RECIPE / "train.py", check=True, processes=1, **more
    ):
        environment = {k: more.pop(k) for k in list(more) if k.isupper()}
        values = {**TINY_PRUNE, **more}
        return run_python(
            script,
            "hparams/demo_prune.yaml",
            *options(
                values,
                data_folder=corpus,
                dense_folder=dense_run,
                output_folder=folder,
            ),
            check=check,
            processes=processes,
            **environment,
        )

    return run


@pytest.fixture(scope="session")
def pruned_run(tmp_path_factory, prune):
    """Output folder of a finished, uninterrupted pruning run."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    prune(folder)
    return folder


@pytest.fixture(scope="session")
def slurp_corpus(tmp_path_factory):
    """A few utterances in the layout of SLURP."""
    folder = tmp_path_factory.mktemp("speech") / "slurp"
    run_python(
        ROOT / "sb_prune/demo/slurp.py",
        folder,
        "--train_utterances=24",
        "--devel_utterances=6",
        "--test_utterances=6",
        cwd=ROOT,
    )
    return folder


@pytest.fixture(scope="session")
def commands_corpus(tmp_path_factory):
    """A few words in the layout of Speech Commands."""
    folder = tmp_path_factory.mktemp("speech") / "commands"
    run_python(
        ROOT / "sb_prune/demo/speech_commands.py",
        folder,
        "--speakers=4",
        "--repetitions=1",
        cwd=ROOT,
    )
    return folder


@pytest.fixture(scope="session")
def tiny_wav2vec2(tmp_path_factory):
    """A Hugging Face folder of a random wav2vec 2.0 of width 16."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny_wav2vec2"
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
    return folder
