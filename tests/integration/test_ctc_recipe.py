"""The LibriSpeech CTC recipe, dense, on synthesised speech, end to end."""

import importlib
import re
import shutil
import signal
import sys
from functools import partial

import pytest
import ruamel.yaml
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from recipe_runs import (
    CTC,
    KILLED,
    TINY_CTC,
    TINY_ENCODER,
    how_to_run,
    options,
    run_python,
)
from rounding import assert_same_but_for_rounding
from safetensors.torch import load_file
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.checkpoints import Checkpointer
from transformers import AutoFeatureExtractor, AutoModel

TRAIN = CTC / "train_with_wav2vec.py"


@pytest.fixture(scope="module")
def finetune(corpus, tiny_wav2vec2):
    """Function: runs demo_finetune.yaml into a folder at debug size."""

    def run(folder, script=TRAIN, **more):
        how, more = how_to_run(more)
        folders = {
            "data_folder": corpus,
            "wav2vec2_hub": tiny_wav2vec2,
            "output_folder": folder,
        }
        return run_python(
            script,
            "hparams/demo_finetune.yaml",
            *options(TINY_CTC, **{**folders, **more}),
            cwd=CTC,
            **how,
        )

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finetune):
    """A (hardly trained) run, killed in epoch 2 and finished later."""
    folder = tmp_path_factory.mktemp("ctc") / "run"
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


def best_of(folder):
    """The checkpoint with the fewest word errors."""
    return Checkpointer(folder / "save").find_checkpoint(min_key="WER").path


def encoder_of(folder):
    state = torch.load(best_of(folder) / "wav2vec2.ckpt", weights_only=True)
    return {name.removeprefix("model."): state[name] for name in state}


def equal_states(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def test_killed_and_rerun_goes_on(finished):
    *epochs, test = log_of(finished)
    assert [re.match(r"epoch: (\d)", line)[1] for line in epochs] == list("123")
    assert all("lr_model: " in e and "lr_wav2vec: " in e for e in epochs)
    assert test.startswith("Epoch loaded: ") and "test WER: " in test


def test_words_are_counted(finished):
    *epochs, test = log_of(finished)
    text = (finished / "wer_test-clean.txt").read_text()
    errors = float(re.match(r"%WER (\S+)", text)[1])
    logged = float(re.search(r"test WER: (\S+)", test)[1])
    assert errors == pytest.approx(logged, rel=0.01)
    kept = re.search(
        r"WER: (\S+)", (best_of(finished) / "CKPT.yaml").read_text()
    )
    rates = [float(re.search(r"valid WER: (\S+)", e)[1]) for e in epochs]
    assert float(kept[1]) == pytest.approx(min(rates), rel=0.01)


def test_encoder_learns_unless_it_is_frozen(
    finished, finetune, tiny_wav2vec2, tmp_path
):
    given = load_file(tiny_wav2vec2 / "model.safetensors")
    assert not equal_states(encoder_of(finished), given)
    finetune(tmp_path / "run", freeze_wav2vec="True", number_of_epochs=1)
    assert equal_states(encoder_of(tmp_path / "run"), given)
    assert not (best_of(tmp_path / "run") / "wav2vec_optimizer.ckpt").exists()


@pytest.fixture(params=[("wav2vec", "wav2vec2"), ("whisper", "whisper")])
def brain(request, monkeypatch):
    """A recipe's Brain around one weight in each part, SGD, rate 1."""
    name, encoder = request.param
    monkeypatch.syspath_prepend(CTC)
    # There is another train_with_whisper.py, in another recipe.
    monkeypatch.delitem(sys.modules, f"train_with_{name}", raising=False)
    recipe = importlib.import_module(f"train_with_{name}")
    parts = {n: torch.nn.Linear(1, 1, bias=False) for n in (encoder, "enc")}
    made = recipe.ASR(
        modules=parts,
        hparams={
            "model": parts["enc"],
            "model_opt_class": partial(torch.optim.SGD, lr=1.0),
            f"{name}_opt_class": partial(torch.optim.SGD, lr=1.0),
            f"freeze_{name}": False,
            f"freeze_{name}_steps": 2,
        },
        run_opts={"device": "cpu"},
    )
    made.init_optimizers()
    return made


def test_steps_without_the_encoder_leave_it_nothing(brain):
    def weights():
        return [m.weight.item() for m in brain.modules.values()]

    seen = [weights()]
    for _ in range(3):
        sum(m.weight.sum() for m in brain.modules.values()).backward()
        brain.optimizers_step()
        seen.append(weights())
    encoder, head = zip(*seen)
    start = encoder[0]
    assert encoder == pytest.approx([start, start, start, start - 1])
    assert head == pytest.approx([head[0] - step for step in range(4)])


def test_inference_yaml_publishes_what_was_evaluated(
    finished, corpus, tmp_path
):
    """Placeholders filled, weights beside: the run's own probabilities."""
    publish(finished, tmp_path / "published")
    published = EncoderASR.from_hparams(
        source=str(tmp_path / "published"), savedir=str(tmp_path / "saved")
    )
    modules = trained_modules(finished)
    for path in sorted((corpus / "test-clean").rglob("*.flac"))[:2]:
        wavs = torch.tensor(soundfile.read(path, dtype="float32")[0])[None]
        logits = modules["ctc_lin"](
            modules["enc"](modules["wav2vec2"](wavs, torch.ones(1)))
        )
        encoded = published.encode_batch(wavs, torch.ones(1))
        assert_same_but_for_rounding(encoded, logits.log_softmax(-1))
        words, _ = published.transcribe_batch(wavs, torch.ones(1))
        assert words == [published.transcribe_file(str(path))]


def trained_modules(run):
    """The recipe's modules with the weights that the run evaluated."""
    with open(run / "hyperparams.yaml") as file:
        hparams = load_hyperpyyaml(file)
    hparams["checkpointer"].recover_if_possible(min_key="WER")
    for module in hparams["modules"].values():
        module.eval().requires_grad_(False)
    return hparams["modules"]


def publish(run, folder):
    """Makes a folder that from_hparams loads, by hand."""
    trained = ruamel.yaml.YAML().load((run / "hyperparams.yaml").read_text())
    text = (CTC / "hparams/inference_ctc.yaml").read_text()
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(
        re.sub(
            r"^(\w+): !PLACEHOLDER",
            lambda found: f"{found[1]}: {trained[found[1]]}",
            text,
            flags=re.M,
        )
    )
    for name in ("wav2vec2.ckpt", "model.ckpt"):
        shutil.copy(best_of(run) / name, folder)
    shutil.copy(run / "tokenizer/40_unigram.model", folder / "tokenizer.ckpt")


def test_made_encoder_is_a_hugging_face_folder(corpus, finetune, tmp_path):
    """demo_encoder.yaml leaves what it evaluated; fine-tuning takes it."""
    run = tmp_path / "encoder"
    run_python(
        TRAIN,
        "hparams/demo_encoder.yaml",
        *options(TINY_ENCODER, data_folder=corpus, output_folder=run),
        cwd=CTC,
    )
    model = AutoModel.from_pretrained(run / "encoder")
    assert equal_states(model.state_dict(), encoder_of(run))
    untrained = AutoModel.from_pretrained(run / "untrained")
    assert not equal_states(model.state_dict(), untrained.state_dict())
    assert AutoFeatureExtractor.from_pretrained(run / "encoder").do_normalize
    finetune(
        tmp_path / "run",
        wav2vec2_hub=run / "encoder",
        encoder_dim=128,
        number_of_epochs=1,
    )


def test_hub_out_of_reach_is_said_before_anything_is_made(finetune, tmp_path):
    failed = finetune(
        tmp_path / "run",
        check=False,
        wav2vec2_hub="facebook/wav2vec2-base",
        new_process=True,  # read while it is imported
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert re.search(
        "wav2vec2_hub: facebook/wav2vec2-base .*local folder", last
    )
    assert not (tmp_path / "run").exists()


def test_number_of_characters_must_be_that_of_the_transcripts(
    finetune, tmp_path
):
    failed = finetune(
        tmp_path / "run", check=False, token_type="char", output_neurons=50
    )
    assert failed.returncode == 1
    found = re.search(
        r"output_neurons: 50, but .* has (\d+) .*; write (\d+)", failed.stdout
    )
    assert found[1] == found[2]
    assert 20 < int(found[1]) <= 29
