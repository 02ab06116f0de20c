"""The LibriSpeech CTC recipe on Whisper's encoder, end to end."""

import re
import signal

import pytest
import soundfile
import torch
from recipe_runs import (
    CTC,
    KILLED,
    TINY_WHISPER_CTC,
    TINY_WHISPER_CTC_PRUNE,
    how_to_run,
    options,
    run_python,
)
from rounding import assert_same_but_for_rounding
from safetensors.torch import load_file
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.checkpoints import Checkpointer

from sb_prune import lobes
from sb_prune.export.loading import load_export

TRAIN = CTC / "train_with_whisper.py"


@pytest.fixture(scope="module")
def run(corpus, tiny_whisper):
    """Function: runs one of the recipe's YAMLs into a folder."""

    def start(folder, yaml, settings, script=TRAIN, **more):
        how, more = how_to_run(more)
        given = {
            "data_folder": corpus,
            "whisper_hub": tiny_whisper,
            "output_folder": folder,
            "test_csv": f"[{folder}/test-clean.csv]",
            "valid_batch_size": 1,  # as files are transcribed
        }
        return run_python(
            script,
            f"hparams/{yaml}.yaml",
            *options(settings, **{**given, **more}),
            cwd=CTC,
            **how,
        )

    return start


@pytest.fixture(scope="module")
def dense(run, tmp_path_factory):
    """Output folder of a (hardly trained) run of finetune_whisper.yaml."""
    folder = tmp_path_factory.mktemp("whisper_ctc") / "dense"
    run(folder, "finetune_whisper", TINY_WHISPER_CTC)
    return folder


@pytest.fixture(scope="module")
def prune(run, dense):
    """Function: prunes what `dense` trained."""

    def start(folder, **more):
        return run(
            folder,
            "prune_whisper",
            TINY_WHISPER_CTC_PRUNE,
            dense_folder=dense,
            **more,
        )

    return start


@pytest.fixture(scope="module")
def pruned(prune, tmp_path_factory):
    """Output folder of a run that was killed in each of its phases."""
    folder = tmp_path_factory.mktemp("whisper_ctc") / "pruned"
    for epoch in ("1", "2"):
        killed = prune(
            folder,
            script=KILLED,
            check=False,
            new_process=True,
            TRAIN=TRAIN.name,
            KILL_EPOCH=epoch,
        )
        assert killed.returncode == -signal.SIGKILL
    prune(folder)
    return folder


@pytest.fixture
def asr(pruned, tmp_path):
    return EncoderASR.from_hparams(
        source=str(pruned / "export"), savedir=str(tmp_path)
    )


def log_of(folder):
    return (folder / "train_log.txt").read_text().splitlines()


def encoder_of(folder):
    best = Checkpointer(folder / "save").find_checkpoint(min_key="WER").path
    state = torch.load(best / "whisper.ckpt", weights_only=True)
    prefix = "model."
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix)
    }


def evaluated(folder):
    """Utterance -> the hypothesis in the file of word errors."""
    text = (folder / "wer_test-clean.txt").read_text()
    blocks = re.findall(r"^(\S+), %WER .*\n(.*)\n(.*)\n(.*)$", text, flags=re.M)
    found = {}
    for name, _, _, line in blocks:
        words = [word.strip() for word in line.split(" ; ")]
        found[name] = " ".join(word for word in words if word != "<eps>")
    return found


def test_encoder_learns_unless_it_is_frozen(dense, run, tmp_path, tiny_whisper):
    given = load_file(tiny_whisper / "model.safetensors")
    run(
        tmp_path / "run",
        "finetune_whisper",
        TINY_WHISPER_CTC,
        freeze_whisper="True",
        number_of_epochs=1,
    )
    *epochs, test = log_of(dense)
    assert all("lr_model: " in e and "lr_whisper: " in e for e in epochs)
    assert "test WER: " in test
    for folder, same in ((tmp_path / "run", True), (dense, False)):
        state = encoder_of(folder)
        assert not any("decoder" in name for name in state)
        found = [torch.equal(state[n], given[f"model.{n}"]) for n in state]
        assert all(found) == same


def test_test_only_repeats_the_figures(dense, run):
    before, errors = log_of(dense)[-1], dense / "wer_test-clean.txt"
    text = errors.read_bytes()
    run(dense, "finetune_whisper", TINY_WHISPER_CTC, test_only=True)
    assert log_of(dense)[-1] == before
    assert errors.read_bytes() == text


def test_a_killed_run_ends_with_the_same_bits(pruned, prune, tmp_path):
    prune(tmp_path / "run")
    for name in ("model.safetensors", "model.ckpt", "tokenizer.ckpt"):
        ours, theirs = (
            (folder / "export" / name).read_bytes()
            for folder in (pruned, tmp_path / "run")
        )
        assert ours == theirs


def test_a_tenth_of_the_encoder_is_gone(pruned):
    export = load_export(pruned / "export")
    assert {n.split(".")[1] for n in export.steps[-1].plan.keep} == {"encoder"}
    card = (pruned / "export/README.md").read_text()
    difference = re.search(r"cut_max_abs_diff \| +(\S+)", card)
    assert float(difference[1]) <= 1e-5


def test_losses_of_the_teacher(pruned):
    text = (pruned / "train_log.txt").read_text()
    assert "distill_whisper_states" in text and "distill_ctc_lin" in text


def test_transcripts_teach_too(pruned):
    """The loss has the recipe's own part, beside those of the teacher."""
    text = (pruned / "train_log.txt").read_text()
    for line in text.splitlines()[:2]:  # an epoch of each phase
        shown = dict(re.findall(r"train (\w+): ([-+.\de]+)", line))
        parts = {n: float(x) for n, x in shown.items() if "distill" in n}
        whole = float(shown["task"]) + sum(parts.values())
        assert float(shown["loss"]) == pytest.approx(whole, rel=0.02)


def test_the_export_hears_what_was_evaluated(asr, pruned, corpus):
    hypotheses = evaluated(pruned)
    assert len(hypotheses) == 8 and any(hypotheses.values())
    for name, hypothesis in hypotheses.items():
        (audio,) = corpus.rglob(f"{name}.flac")
        assert asr.transcribe_file(str(audio)) == hypothesis
        wav = torch.from_numpy(soundfile.read(audio, dtype="float32")[0])[None]
        words, _ = asr.transcribe_batch(wav, torch.ones(1))
        assert words == [hypothesis]


@torch.no_grad()
def test_the_export_is_the_model_of_the_run(asr, pruned):
    """Also in a batch; and silence behind an utterance is not transcribed."""
    wavs = 0.1 * torch.randn(2, 16_000)
    lengths = torch.tensor([1.0, 0.5])
    encoded = asr.encode_batch(wavs, lengths)
    assert encoded.shape[:2] == (2, 50)
    export = load_export(pruned / "export")
    parts = [export.hparams[name] for name in ("whisper", "enc", "ctc_lin")]
    expected = wavs
    for part in parts:
        expected = part.eval()(expected)
    assert_same_but_for_rounding(encoded, expected.log_softmax(-1))
    _, tokens = asr.transcribe_batch(wavs, lengths)
    best = encoded.argmax(-1)
    for found, frames, heard in zip(tokens, best, (50, 25)):
        kept = torch.unique_consecutive(frames[:heard])
        assert found == kept[kept != 0].tolist()


def test_the_export_is_pruned_again(pruned, prune, tmp_path):
    prune(
        tmp_path,
        target=0.13,
        pruning=f"{{start_from: {pruned}/export, start_min_key: null}}",
    )
    assert len(load_export(tmp_path / "export").steps) == 2


def test_an_export_is_the_source_of_a_lobe(pruned, run, tmp_path):
    """As `whisper_hub`: one entry replaces the dense model."""
    hub = pruned / "export"
    settings = {**TINY_WHISPER_CTC, "number_of_epochs": 1}
    run(tmp_path, "finetune_whisper", settings, whisper_hub=hub)
    lobe = lobes.Whisper(str(hub), str(tmp_path), encoder_only=True)
    trained, given = encoder_of(tmp_path), lobe.model.state_dict()
    assert {n: v.shape for n, v in trained.items()} == {
        n: v.shape for n, v in given.items()
    }
