"""The SLURP recipe, dense, on synthesised speech, end to end."""

import json
import re
import shutil
import signal

import pytest
import ruamel.yaml
import torch
from recipe_runs import (
    KILLED,
    SLURP,
    TINY_SLURP,
    how_to_run,
    options,
    run_python,
)
from safetensors.torch import load_file
from slurp_metrics import NO_ANSWER
from slurp_prepare import parse_semantics
from speechbrain.inference.ASR import EncoderDecoderASR

TRAIN = SLURP / "train_with_wav2vec2.py"
FIGURES = (
    "loss scenario_accuracy action_accuracy intent_accuracy word_F1 char_F1 "
    "SLU_F1 malformed"
).split()


@pytest.fixture(scope="module")
def finetune(slurp_corpus, tiny_wav2vec2):
    """Function: runs demo_finetune.yaml into a folder at debug size."""

    def run(folder, script=TRAIN, **more):
        how, more = how_to_run(more)
        return run_python(
            script,
            "hparams/demo_finetune.yaml",
            *options(
                TINY_SLURP,
                data_folder=slurp_corpus,
                wav2vec2_hub=tiny_wav2vec2,
                output_folder=folder,
                **more,
            ),
            cwd=SLURP,
            **how,
        )

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finetune):
    """A (hardly trained) run, killed in epoch 2 and finished later."""
    folder = tmp_path_factory.mktemp("slurp") / "run"
    killed = finetune(
        folder,
        script=KILLED,
        check=False,
        new_process=True,
        TRAIN=TRAIN.name,
        KILL_EPOCH="2",
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(log_of(folder)) == 1
    finetune(folder)
    return folder


def log_of(folder):
    return (folder / "train_log.txt").read_text().splitlines()


def test_log_names_every_figure(finished):
    *_, last, test = log_of(finished)
    assert "lr_model: 1.00e-02, lr_wav2vec2: 5.00e-04 - train loss: " in last
    for name in FIGURES:
        assert f"valid {name}: " in last
        assert f"test {name}: " in test


def test_predictions_cover_the_test_set(finished, slurp_corpus):
    lines = (finished / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    gold = (slurp_corpus / "dataset/slurp/test.jsonl").read_text().splitlines()
    files = {r["file"] for g in gold for r in json.loads(g)["recordings"]}
    assert {p["file"] for p in predictions} == files
    assert len(predictions) == len(files)
    for prediction in predictions:
        assert list(prediction) == ["file", "scenario", "action", "entities"]
    # else the tests below would compare nothing with nothing
    assert any(prediction["scenario"] != "none" for prediction in predictions)


def test_best_checkpoint_is_by_intents(finished):
    (folder,) = (finished / "save").glob("CKPT*")
    text = (folder / "CKPT.yaml").read_text()
    best = float(re.search(r"intent_accuracy: (\S+)", text)[1])
    logged = [
        float(re.search(r"valid intent_accuracy: ([^,]+)", line)[1])
        for line in log_of(finished)[:-1]
    ]
    assert best == pytest.approx(max(logged), abs=0.01)


def test_killed_and_rerun_goes_on(finished):
    *epochs, test = log_of(finished)
    assert [re.match(r"epoch: (\d)", e)[1] for e in epochs] == list("12345")
    assert test.startswith("Epoch loaded: ")


def test_test_only_repeats_the_figures(finetune, finished):
    before = log_of(finished)[-1]
    predictions = (finished / "predictions.jsonl").read_bytes()
    finetune(finished, test_only=True)
    assert log_of(finished)[-1] == before
    assert (finished / "predictions.jsonl").read_bytes() == predictions


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "bf16"},
        {
            "processes": 2,
            "distributed_backend": "gloo",
            "find_unused_parameters": True,
        },
    ],
    ids=["bf16", "two processes"],
)
def test_other_ways_to_run(finetune, tmp_path, more):
    finetune(tmp_path / "run", number_of_epochs=1, **more)
    lines = (tmp_path / "run/predictions.jsonl").read_text().splitlines()
    assert len({json.loads(line)["file"] for line in lines}) == len(lines) == 6
    assert len(log_of(tmp_path / "run")) == 2


def test_frozen_encoder_stays(finetune, tiny_wav2vec2, tmp_path):
    finetune(tmp_path / "run", freeze_wav2vec2="True", number_of_epochs=1)
    (folder,) = (tmp_path / "run/save").glob("CKPT*")
    assert not (folder / "wav2vec2_optimizer.ckpt").exists()
    trained = torch.load(folder / "wav2vec2.ckpt", weights_only=True)
    given = load_file(tiny_wav2vec2 / "model.safetensors")
    assert all(
        torch.equal(trained[f"model.{name}"], value)
        for name, value in given.items()
    )


def test_inference_yaml_publishes_what_was_evaluated(
    finished, slurp_corpus, tmp_path
):
    """Placeholders filled, weights beside: understands as the run did."""
    publish(finished, tmp_path / "published")
    model = EncoderDecoderASR.from_hparams(
        source=str(tmp_path / "published"), savedir=str(tmp_path / "saved")
    )
    lines = (finished / "predictions.jsonl").read_text().splitlines()
    for line in lines:
        expected = json.loads(line)
        audio = slurp_corpus / "audio/slurp_real" / expected.pop("file")
        heard = model.transcribe_file(str(audio))
        try:
            understood = parse_semantics(heard)
        except ValueError:
            understood = NO_ANSWER
        assert understood == expected


def publish(run, folder):
    """Makes a folder that from_hparams loads, by hand."""
    yaml = ruamel.yaml.YAML()
    trained = yaml.load((run / "hyperparams.yaml").read_text())
    text = (SLURP / "hparams/inference.yaml").read_text()
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(
        re.sub(
            r"^(\w+): !PLACEHOLDER",
            lambda found: f"{found[1]}: {trained[found[1]]}",
            text,
            flags=re.M,
        )
    )
    (checkpoint,) = (run / "save").glob("CKPT*")
    for name in ("wav2vec2.ckpt", "model.ckpt"):
        shutil.copy(checkpoint / name, folder)
    shutil.copy(run / "tokenizer/60_unigram.model", folder / "tokenizer.ckpt")
