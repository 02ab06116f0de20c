"""A small synthesised corpus and runs of the recipe on it."""

import pytest
from recipe_runs import RECIPE, ROOT, TINY, TINY_PRUNE, options, run_python


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
