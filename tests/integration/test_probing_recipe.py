"""Probes of frozen encoders at debug size."""

import json

import pytest
from recipe_runs import PROBING, TINY_PROBE, options, run_python

FIGURES = {"pr": "PER", "asr": "WER", "ks": "KS", "ic": "IC", "sid": "SID"}
TINY_OF = {"asr": {"lstm_size": 8, "projection_size": 8}}


@pytest.fixture
def corpus_of(corpus, slurp_corpus, commands_corpus):
    """Function: folder of the corpus of a probe."""
    others = {"ks": commands_corpus, "ic": slurp_corpus}
    return lambda probe: others.get(probe, corpus)


@pytest.fixture
def run_probe(tmp_path, corpus_of, tiny_wav2vec2):
    """Function: runs a probe; returns its process and its folder."""

    def run(probe, **more):
        done = run_python(
            PROBING / "train.py",
            f"hparams/{probe}.yaml",
            *options(
                {**TINY_PROBE, **TINY_OF.get(probe, {})},
                wav2vec2_hub=tiny_wav2vec2,
                data_folder=corpus_of(probe),
                output_folder=tmp_path / probe,
                **more,
            ),
            cwd=PROBING,
            check=False,
        )
        return done, tmp_path / probe

    return run


@pytest.mark.parametrize("probe", FIGURES)
def test_a_probe_leaves_its_score(probe, run_probe):
    done, folder = run_probe(probe)
    assert not done.returncode, done.stdout[-2000:]
    score = json.loads((folder / "score.json").read_text())
    assert score["figure"] == FIGURES[probe]
    assert score["value"] >= 0
    assert len(score["layers"]) == 3  # what enters, and two layers
    assert sum(score["layers"]) == pytest.approx(1)
    assert len({*score["layers"]}) > 1  # they have learnt
    saved = {path.name for path in folder.glob("save/CKPT*/*")}
    assert "model.ckpt" in saved
    assert not any("wav2vec2" in name for name in saved)


def test_a_probe_that_learns(run_probe):
    """Ten words by two voices, which are in the training set only."""
    _, folder = run_probe("ks", number_of_epochs=12, lr=0.02)
    log = (folder / "train_log.txt").read_text().splitlines()
    losses = [
        float(line.split("train loss: ")[1].split()[0]) for line in log[:-1]
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_too_few_outputs_are_refused(run_probe):
    done, _ = run_probe("sid", output_neurons=4)
    assert done.returncode
    assert "output_neurons: 10 or more" in done.stdout


def test_a_table_of_encoders(tmp_path, corpus, slurp_corpus, tiny_wav2vec2):
    def run(*more):
        return run_python(
            PROBING / "run_probes.py",
            tiny_wav2vec2,
            "--probes",
            "sid",
            "ic",
            "ks",
            f"--librispeech={corpus}",
            f"--slurp={slurp_corpus}",
            f"--output_folder={tmp_path}",
            *options(TINY_PROBE),
            *more,
            check=False,
        )

    done = run()
    assert not done.returncode, done.stderr
    *_, head, _, row = done.stdout.splitlines()
    assert head.split() == "| encoder | M params | IC acc. | SID acc. |".split()
    assert row.split()[1] == str(tiny_wav2vec2)
    (scores,) = {*tmp_path.glob("*/sid/score.json")}
    before = scores.stat().st_mtime_ns
    assert run().stdout == done.stdout
    assert scores.stat().st_mtime_ns == before
    # a score is not taken for one with other options
    failed = run("--seed=2")
    assert failed.returncode == 1
    assert "with other further options" in failed.stderr
    assert "write another --output_folder" in failed.stderr


def test_a_probe_that_fails_says_why(tmp_path, corpus, tiny_wav2vec2):
    for key in ("no_such_key", "nor_such_key"):  # tried again with others
        done = run_python(
            PROBING / "run_probes.py",
            tiny_wav2vec2,
            f"--librispeech={corpus}",
            f"--output_folder={tmp_path}",
            "--device=cpu",
            f"--{key}=1",
            check=False,
        )
        assert done.returncode == 1
        assert key in done.stderr
        assert "error: pr of" in done.stderr
