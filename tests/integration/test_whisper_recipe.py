"""The LibriSpeech recipe of Whisper, on synthesised speech, end to end."""

import re
import signal

import pytest
import soundfile
import torch
from recipe_runs import (
    KILLED,
    RECIPE,
    TINY_WHISPER,
    TINY_WHISPER_PRUNE,
    how_to_run,
    options,
    run_python,
)
from safetensors.torch import load_file
from speechbrain.inference.ASR import WhisperASR

from sb_prune import lobes
from sb_prune.export.loading import load_export

TRAIN = RECIPE / "train_with_whisper.py"


@pytest.fixture(scope="module")
def run(corpus, tiny_whisper):
    """Function: runs one of the recipe's YAMLs into a folder."""

    def start(folder, yaml, settings, script=TRAIN, **more):
        how, more = how_to_run(more)
        folders = {
            "data_folder": corpus,
            "whisper_hub": tiny_whisper,
            "output_folder": folder,
            "test_csv": f"[{folder}/test-clean.csv]",
        }
        return run_python(
            script,
            f"hparams/{yaml}.yaml",
            *options(settings, **{**folders, **more}),
            **how,
        )

    return start


@pytest.fixture(scope="module")
def pruned(run, tmp_path_factory):
    """Output folder of a run that was killed in each of its phases."""
    folder = tmp_path_factory.mktemp("whisper") / "run"
    for epoch in ("1", "2"):
        killed = run(
            folder,
            "prune_whisper",
            TINY_WHISPER_PRUNE,
            script=KILLED,
            check=False,
            new_process=True,
            TRAIN=str(TRAIN),
            KILL_EPOCH=epoch,
        )
        assert killed.returncode == -signal.SIGKILL
    run(folder, "prune_whisper", TINY_WHISPER_PRUNE)
    return folder


def rate_of(folder):
    found = re.search(
        r"%WER (\S+)", (folder / "wer_test-clean.txt").read_text()
    )
    return float(found[1])


def test_the_dense_model_is_scored_as_it_is(run, tmp_path, tiny_whisper):
    run(tmp_path, "train_whisper", TINY_WHISPER, number_of_epochs=0)
    assert rate_of(tmp_path) > 50
    run(tmp_path / "one", "train_whisper", TINY_WHISPER, number_of_epochs=1)
    log = (tmp_path / "one/train_log.txt").read_text()
    assert "valid WER" in log and "test WER" in log


def test_a_killed_run_ends_with_the_same_bits(pruned, run, tmp_path):
    run(tmp_path, "prune_whisper", TINY_WHISPER_PRUNE)
    ours, theirs = (
        load_file(folder / "export/model.safetensors")
        for folder in (pruned, tmp_path)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_export_is_a_tenth_smaller(pruned):
    export = load_export(pruned / "export")
    step = export.steps[-1]
    assert {name.split(".")[1] for name in step.plan.keep} == {"encoder"}
    card = (pruned / "export/README.md").read_text()
    difference = re.search(r"cut_max_abs_diff \| +(\S+)", card)
    assert float(difference[1]) <= 1e-5


@torch.no_grad()
def test_it_transcribes_audio(pruned, corpus, tmp_path):
    audio = sorted(corpus.glob("test-clean/*/*/*.flac"))[0]
    model = WhisperASR.from_hparams(
        source=str(pruned / "export"), savedir=str(tmp_path)
    )
    wav = torch.from_numpy(soundfile.read(audio, dtype="float32")[0])[None]
    words, tokens = model.transcribe_batch(wav, torch.ones(1))
    assert len(words) == 1 and len(tokens[0]) > 0


def test_the_export_is_pruned_again(pruned, run, tmp_path):
    """As `whisper_hub`: one entry replaces the dense model."""
    run(
        tmp_path,
        "prune_whisper",
        {**TINY_WHISPER_PRUNE, "target": 0.13},
        whisper_hub=pruned / "export",
    )
    assert len(load_export(tmp_path / "export").steps) == 2
    lobe = lobes.Whisper(str(tmp_path / "export"), str(tmp_path), language="en")
    assert lobe.tokenizer.prefix_tokens[0] == lobe.bos
