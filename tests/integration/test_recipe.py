"""The LibriSpeech recipe, pruned on synthesised speech, end to end."""

import re
import shutil
import signal

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from recipe_runs import (
    KILLED,
    RECIPE,
    TINY,
    options,
    run_python,
)
from rounding import assert_same_but_for_rounding

from sb_prune import conformer_structures, cut_
from sb_prune.declare.plan import Plan
from sb_prune.run.snapshots import read_meta
from sb_prune.support.hashes import file_hash


def exported_hash(run):
    return file_hash(run / "export/model.ckpt")


def encoder_size(folder):
    state = torch.load(folder / "model.ckpt", weights_only=True)
    return sum(
        value.numel()
        for name, value in state.items()
        if name.startswith("1.encoder.")
    )


def test_pruned_run_leaves_a_small_exact_model(pruned_run, dense_run):
    meta = read_meta(pruned_run / "save/cut")
    assert meta["difference"] <= 1e-5
    dense = next((dense_run / "save").glob("CKPT*"))
    assert encoder_size(pruned_run / "export") <= encoder_size(dense) / 2


def test_log_names_every_quantity(pruned_run):
    log = (pruned_run / "train_log.txt").read_text()
    for name in (
        "target_sparsity",
        "expected_sparsity",
        "realised_sparsity",
        "parameters",
        "MACs",
        "shift_0",
        "task",
        "distill_hidden",
        "distill_ctc_lin",
        "test WER",
    ):
        assert name in log


SCRIPT = """
import sys, torch, torchaudio
from speechbrain.inference.ASR import EncoderASR
folder, audio, out, saved = sys.argv[1:]
asr = EncoderASR.from_hparams(source=folder, savedir=saved)
wav = asr.load_audio(audio)
log_probabilities = asr.encode_batch(wav[None], torch.ones(1))
words = asr.transcribe_batch(wav[None], torch.ones(1))[0]
torch.save((wav, log_probabilities, words), out)
"""


def test_a_new_process_loads_the_same_function(pruned_run, corpus, tmp_path):
    """Reloaded by from_hparams == the model that was evaluated."""
    audio = next(corpus.rglob("*.flac"))
    script = tmp_path / "load.py"
    script.write_text(SCRIPT)
    out, folder = tmp_path / "out.pt", pruned_run / "export"
    run_python(script, folder, audio, out, tmp_path / "saved", cwd=tmp_path)
    wav, theirs, _ = torch.load(out)

    torch.set_num_threads(1)
    with open(pruned_run / "hyperparams.yaml") as file:
        hparams = load_hyperpyyaml(file)
    plan = Plan.from_dict(read_meta(pruned_run / "save/cut")["plan"])
    cut_(conformer_structures(hparams["Transformer"]), plan)
    hparams["checkpointer"].checkpoints_dir = pruned_run / "save/finetune"
    hparams["checkpointer"].recover_if_possible(min_key="WER")
    for module in hparams["modules"].values():
        module.eval()
    lengths = torch.ones(1)
    with torch.no_grad():
        features = hparams["compute_features"](wav[None])
        features = hparams["normalize"](features, lengths)
        encoded = hparams["Transformer"].encode(
            hparams["CNN"](features), lengths
        )
        mine = hparams["ctc_lin"](encoded).log_softmax(-1)
    assert_same_but_for_rounding(mine, theirs)


@pytest.mark.parametrize(
    "moment",
    [
        {"KILL_EPOCH": "1"},
        {"KILL_SAVING": "prune"},
        {"KILL_PHASE": "cut"},
        {"KILL_EPOCH": "4"},
        {"KILL_SAVING": "export.incomplete"},
    ],
    ids=lambda moment: "-".join(moment.values()),
)
def test_killed_and_rerun_ends_bit_for_bit(moment, tmp_path, prune, pruned_run):
    """At an epoch boundary, between the phases, within a file."""
    killed = prune(tmp_path / "run", script=KILLED, check=False, **moment)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "run/export").exists()
    prune(tmp_path / "run")
    assert exported_hash(tmp_path / "run") == exported_hash(pruned_run)


@pytest.fixture
def finished(pruned_run, tmp_path):
    """A copy of the finished run, to run in."""
    return shutil.copytree(pruned_run, tmp_path / "finished")


def test_rerun_of_a_finished_run_changes_nothing(prune, finished):
    before = exported_hash(finished)
    prune(finished)
    assert exported_hash(finished) == before


def test_test_only_evaluates_the_cut_model(prune, finished):
    log = finished / "train_log.txt"
    wer = log.read_text().strip().rpartition("WER: ")[2]
    prune(finished, test_only=True)
    assert log.read_text().strip().rpartition("WER: ")[2] == wer


def last_line(done):
    """SpeechBrain logs what ends a run to stdout."""
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"target": 1.5}, r"target: 1.5; write a number"),
        (
            {"target": 0.9999},
            r"target: 0.9999 cannot be reached with the declared kinds",
        ),
        ({"prune_epochs": 4}, r"prune_epochs: 4 must be at least 1 and below"),
        ({"schedule_steps": 999}, r"schedule_steps: 999 is longer than"),
        ({"pruning": "{module: Nowhere}"}, r"module: 'Nowhere' is not in"),
        ({"pruning": "{module: CNN}"}, r"module: no ConformerEncoder found"),
        ({"pruning": "{modul: CNN}"}, r"pruning: modul: .*; write module"),
        (
            {"pruning": "{structures: {kinds: [head]}}"},
            r"kinds: \['head'\] cannot be cut here; write some of",
        ),
        (
            {"pruning": "{structures: {only: layers.9}}"},
            r"only: 'layers.9' matches none of",
        ),
        (
            {"pruning": "{distillation: {outputs: [seq_lin]}}"},
            r"outputs: \['seq_lin'\] are not in `modules`",
        ),
        (
            {"pruning": "{start_from: /nowhere}"},
            r"start_from: /nowhere does not exist",
        ),
        ({"d_ffn": 48}, r"start_from: .* does not fit the model in this YAML"),
        (
            {"pruning": "{inference: none.yaml}"},
            r"inference: none.yaml does not exist",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_bad_values_give_one_clear_error(changed, message, prune, tmp_path):
    done = prune(tmp_path / "run", check=False, **changed)
    assert done.returncode
    assert re.search(message, last_line(done)), last_line(done)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"target": 0.6}, r"another pruning: target: 0.5, not 0.6; write"),
        ({"d_ffn": 48}, r"has 48 units, and had \d+; write another out"),
        ({"prune_epochs": 1}, r"pruning: prune_epochs: 2, not 1; write anoth"),
    ],
)
def test_folder_of_another_run_is_refused(changed, message, prune, finished):
    before = exported_hash(finished)
    done = prune(finished, check=False, **changed)
    assert re.search(r"output_folder: .* holds a run", last_line(done))
    assert re.search(message, last_line(done))
    assert exported_hash(finished) == before


def test_foreign_export_folder_is_refused(prune, tmp_path):
    (tmp_path / "run/export").mkdir(parents=True)
    (tmp_path / "run/export/thesis.tex").write_text("years of work")
    done = prune(tmp_path / "run", check=False)
    assert re.search(r"export_folder: .* something else", last_line(done))
    assert (tmp_path / "run/export/thesis.tex").exists()


def test_refusals_leave_the_folder_free(prune, tmp_path):
    """What was refused may be mended in the same output_folder."""
    done = prune(tmp_path / "run", check=False, schedule_steps=999)
    assert done.returncode
    done = prune(tmp_path / "run", schedule_steps=2, prune_epochs=1)
    assert (tmp_path / "run/export").is_dir()


def test_evaluating_before_pruning_is_refused(prune, tmp_path):
    done = prune(tmp_path / "run", check=False, test_only=True)
    assert "holds no run of sb_prune; train first" in last_line(done)


def test_whisper_teaches_a_conformer(corpus, tiny_whisper, tmp_path):
    """It is not in the checkpoint; what it says counts in the loss."""
    losses = {}
    for weight in (0.0, 1.0):
        run = tmp_path / str(weight)
        run_python(
            RECIPE / "train.py",
            "hparams/train_ctc_with_whisper.yaml",
            *options(
                {**TINY, "number_of_epochs": 1, "num_workers": 0},
                data_folder=corpus,
                train_splits="[train-clean-100]",
                test_csv=f"[{run}/test-clean.csv]",
                whisper_hub=tiny_whisper,
                whisper_weight=weight,
                output_folder=run,
            ),
        )
        log = (run / "train_log.txt").read_text()
        losses[weight] = float(re.search(r"train loss: (\S+) ", log)[1])
    assert losses[1.0] > losses[0.0] + 0.1
    saved = {path.stem for path in run.glob("save/CKPT*/*.ckpt")}
    assert "from_whisper" in saved and "whisper" not in saved
