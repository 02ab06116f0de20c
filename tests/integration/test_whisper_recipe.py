"""The LibriSpeech recipe of Whisper, on synthesised speech, end to end."""

import csv
import json
import re
import runpy
import shutil
import signal
import tempfile

import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from recipe_runs import (
    CTC,
    KILLED,
    RECIPE,
    TINY_WHISPER,
    TINY_WHISPER_CTC,
    TINY_WHISPER_DISTIL,
    TINY_WHISPER_PRUNE,
    how_to_run,
    options,
    run_python,
)
from safetensors.torch import load_file
from speechbrain.decoders.seq2seq import S2SWhisperGreedySearcher
from speechbrain.inference.ASR import WhisperASR
from speechbrain.utils.checkpoints import Checkpointer
from whisper_normalizer.english import EnglishTextNormalizer

from sb_prune import lobes
from sb_prune.export.loading import load_export
from sb_prune.report.command import cost_table, main
from sb_prune.support.measure import count_parameters

TRAIN = RECIPE / "train_with_whisper.py"
ONE = torch.ones(1)


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
            "valid_batch_size": 1,  # as files are transcribed
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


def assert_same_bits(*folders):
    ours, theirs = (
        load_file(folder / "export/model.safetensors") for folder in folders
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def test_the_dense_model_is_scored_as_it_is(
    run, tmp_path, tiny_whisper, corpus
):
    run(
        tmp_path,
        "train_whisper",
        TINY_WHISPER,
        number_of_epochs=0,
    )
    lobe = lobes.Whisper(
        str(tiny_whisper),
        str(tmp_path),
        language="en",
        context="utterance",
        margin=0,
        min_context=0,
    ).eval()
    search = S2SWhisperGreedySearcher(
        lobe, min_decode_ratio=0.0, max_decode_ratio=0.15
    )
    for audio in corpus.glob("test-clean/*/*/*.flac"):
        wav = torch.from_numpy(soundfile.read(audio, dtype="float32")[0])[None]
        (tokens,), *_ = search(lobe.forward_encoder(lobe._get_mel(wav)), ONE)
        text = lobe.tokenizer.decode(tokens, skip_special_tokens=True)
        words = EnglishTextNormalizer()(text).split()
        assert evaluated(tmp_path)[audio.stem] == words
    run(tmp_path / "one", "train_whisper", TINY_WHISPER, number_of_epochs=1)
    log = (tmp_path / "one/train_log.txt").read_text()
    assert "valid WER" in log and "test WER" in log


def test_a_run_that_goes_on_has_the_schedule_that_is_asked_for(run, tmp_path):
    """Not that of its checkpoints, which would end below zero."""
    run(tmp_path, "train_whisper", TINY_WHISPER, number_of_epochs=1)
    longer = {"number_of_epochs": 2, "warmup_steps": 1000, "total_steps": 2000}
    run(tmp_path, "train_whisper", TINY_WHISPER, **longer)
    log = (tmp_path / "train_log.txt").read_text()
    first, second = map(float, re.findall(r"lr_encoder: ([\d.e-]+)", log))
    assert 0 < second < 0.1 * first


def test_a_killed_run_ends_with_the_same_bits(pruned, run, tmp_path):
    run(tmp_path, "prune_whisper", TINY_WHISPER_PRUNE)
    assert_same_bits(pruned, tmp_path)


def test_words_are_left_out_once_the_states_are_learned(pruned):
    """The decoder rests, so there is no loss of words to log."""
    log = (pruned / "train_log.txt").read_text()
    assert re.findall(r"train distill_whisper_states: \d", log)
    assert "train task" not in log


def test_the_export_is_a_tenth_smaller(pruned):
    export = load_export(pruned / "export")
    step = export.steps[-1]
    assert {name.split(".")[1] for name in step.plan.keep} == {"encoder"}
    assert cut_difference(pruned / "export") <= 1e-5


@torch.no_grad()
def what_it_hears(export, corpus):
    """Utterance of the test split -> normalised words."""
    with tempfile.TemporaryDirectory() as savedir:
        model = WhisperASR.from_hparams(source=str(export), savedir=savedir)
    found = {}
    for audio in corpus.glob("test-clean/*/*/*.flac"):
        wav = torch.from_numpy(soundfile.read(audio, dtype="float32")[0])[None]
        (words,), _ = model.transcribe_batch(wav, torch.ones(1))
        text = " ".join(words) if isinstance(words, list) else words
        found[audio.stem] = EnglishTextNormalizer()(text).split()
    return found


def evaluated(folder):
    """Utterance -> the words in the file of word errors."""
    text = (folder / "wer_test-clean.txt").read_text()
    blocks = re.findall(r"^(\S+), %WER .*\n.*\n.*\n(.*)$", text, flags=re.M)
    found = {}
    for name, line in blocks:
        words = [word.strip() for word in line.split(" ; ")]
        found[name] = [word for word in words if word != "<eps>"]
    return found


def test_it_hears_what_was_evaluated(pruned, corpus):
    heard = what_it_hears(pruned / "export", corpus)
    assert heard == evaluated(pruned)
    assert len({*map(tuple, heard.values())}) > 1


def test_the_export_is_pruned_again(pruned, run, tmp_path):
    """As `whisper_hub`: one entry replaces the dense model."""
    run(
        tmp_path,
        "prune_whisper",
        {**TINY_WHISPER_PRUNE, "target": 0.13},
        whisper_hub=pruned / "export",
    )
    before, after = (
        load_export(folder / "export") for folder in (pruned, tmp_path)
    )
    assert len(after.steps) == 2
    sizes = [count_parameters([e.hparams["whisper"]]) for e in (before, after)]
    assert sizes[0] > sizes[1]
    assert cut_difference(tmp_path / "export") <= 1e-5
    lobe = lobes.Whisper(str(tmp_path / "export"), str(tmp_path), language="en")
    assert lobe.tokenizer.prefix_tokens[0] == lobe.bos


def test_the_export_is_the_encoder_of_another_recipe(pruned, corpus, tmp_path):
    """As `whisper_hub` of that with CTC: one entry replaces the dense model."""
    given = {
        "data_folder": corpus,
        "whisper_hub": pruned / "export",
        "output_folder": tmp_path,
        "test_csv": f"[{tmp_path}/test-clean.csv]",
        "number_of_epochs": 1,
        "freeze_whisper_steps": 100,
    }
    run_python(
        CTC / "train_with_whisper.py",
        "hparams/finetune_whisper.yaml",
        *options(TINY_WHISPER_CTC, **given),
        cwd=CTC,
    )
    best = Checkpointer(tmp_path / "save").find_checkpoint(min_key="WER").path
    theirs = torch.load(best / "whisper.ckpt", weights_only=True)
    ours = load_export(pruned / "export").hparams["whisper"].state_dict()
    found = [name for name in theirs if name.startswith("model.encoder.layers")]
    assert found and all(torch.equal(theirs[n], ours[n]) for n in found)


def test_test_only_repeats_the_figures(pruned, run):
    before = (pruned / "wer_test-clean.txt").read_text()
    (pruned / "wer_test-clean.txt").unlink()
    run(pruned, "prune_whisper", TINY_WHISPER_PRUNE, test_only=True)
    assert (pruned / "wer_test-clean.txt").read_text() == before


def test_encoder_and_decoder_at_once_refitted_past_a_milestone(run, tmp_path):
    """In bf16; half of the batches fill the window, words and all."""
    change = {
        "prune_steps": 2,
        "refit": {"utterances": 3},
        "structures": {
            "kinds": ["ffn_units", "heads", "cross_heads"],
            "sides": ["encoder", "decoder"],
        },
        "distillation": {"outputs": {"whisper": 1}},
        "milestones": [0.003],
    }
    run(
        tmp_path,
        "prune_whisper",
        {**TINY_WHISPER_PRUNE, "target": 0.006},
        pruning=json.dumps(change),
        freeze_decoder="False",
        precision="bf16",
    )
    log = (tmp_path / "train_log.txt").read_text()
    for part in ("distill_whisper", "distill_whisper_states"):
        assert re.findall(rf"train {part}: \d", log)
    sizes = []
    for name in ("export_0.003", "export"):
        export = load_export(tmp_path / name)
        (step,) = export.steps
        for side in ("encoder", "decoder"):
            masks = [k for n, k in step.plan.keep.items() if f".{side}." in n]
            assert any(not kept.all() for kept in masks)
        assert cut_difference(tmp_path / name) <= 1e-5
        sizes.append(count_parameters([export.hparams["whisper"]]))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[1]
    names = [row[0] for row in cost_table(export)]
    assert "MACs per second, model.encoder, model.decoder" in names
    assert "MACs per second, from the audio" not in names


def cut_difference(export):
    """Of masked and cut model, as the card says."""
    found = re.search(
        r"cut_max_abs_diff \| +(\S+)", (export / "README.md").read_text()
    )
    return float(found[1])


def test_a_decoder_that_nothing_teaches_is_refused(run, tmp_path):
    failed = run(
        tmp_path,
        "prune_whisper",
        TINY_WHISPER_PRUNE,
        freeze_decoder="False",
        check=False,
    )
    assert "no loss reads what the decoder writes" in failed.stdout
    assert not (tmp_path / "train_log.txt").exists()  # nothing was measured


def test_windows_are_as_long_as_the_context(run, tmp_path):
    run(
        tmp_path,
        "prune_whisper",
        TINY_WHISPER_PRUNE,
        context=8,
        full_windows=1.0,
    )
    assert cut_difference(tmp_path / "export") <= 1e-5


@pytest.mark.parametrize("decoder_learns", [True, False])
def test_two_processes_prune_it(run, corpus, tmp_path, decoder_learns):
    """Each joins batches of its own until they fill the window."""
    change = {"distillation": {"outputs": {"whisper": 1}}}
    run(
        tmp_path,
        "prune_whisper",
        TINY_WHISPER_PRUNE,
        pruning=json.dumps(change if decoder_learns else {}),
        freeze_decoder=str(not decoder_learns),
        processes=2,
        distributed_backend="gloo",
    )
    (step,) = load_export(tmp_path / "export").steps
    kept = [kept for kept in step.plan.keep.values()]
    assert any(not k.all() for k in kept)
    assert cut_difference(tmp_path / "export") <= 1e-5
    assert what_it_hears(tmp_path / "export", corpus) == evaluated(tmp_path)


# ------------------------------------------- a student of few decoder layers


@pytest.fixture(scope="module")
def distilled(run, tmp_path_factory):
    """Output folder of a run that was killed in each of its epochs."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    for epoch in ("1", "2"):
        killed = run(
            folder,
            "distil_whisper",
            TINY_WHISPER_DISTIL,
            script=KILLED,
            check=False,
            new_process=True,
            TRAIN=str(TRAIN),
            KILL_EPOCH=epoch,
        )
        assert killed.returncode == -signal.SIGKILL
        labels = folder / "pseudo_labels.csv"
        if epoch == "1":  # it is written; nothing makes it again
            labels.chmod(0o444)
            before = labels.stat().st_mtime_ns
    run(folder, "distil_whisper", TINY_WHISPER_DISTIL)
    assert labels.stat().st_mtime_ns == before
    return folder


def test_a_student_that_was_killed_ends_with_the_same_bits(
    distilled, run, tmp_path
):
    run(tmp_path, "distil_whisper", TINY_WHISPER_DISTIL)
    ours, theirs = (f / "pseudo_labels.csv" for f in (distilled, tmp_path))
    assert ours.read_bytes() == theirs.read_bytes()
    assert_same_bits(distilled, tmp_path)


def test_a_student_learns_from_labels_and_teacher(distilled):
    log = (distilled / "train_log.txt").read_text()
    for part in ("task", "distill_whisper"):
        assert len(re.findall(rf"train {part}: \d", log)) == 2
    assert "distill_hidden" not in log
    with open(distilled / "pseudo_labels.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 24


def test_the_report_of_a_decoder_that_was_cut(distilled):
    """It hears no audio, so what hears it costs as much as before."""
    rows = {r[0]: r[1:] for r in cost_table(load_export(distilled / "export"))}
    pruned, dense, _ = rows["parameters, model.decoder"]
    assert int(pruned.replace(",", "")) < int(dense.replace(",", ""))
    assert rows["MACs per second, from the audio"][2] == "100.0%"
    assert not any("s of" in name for name in rows)
    main([str(distilled / "export")])


@pytest.mark.parametrize("decoder_learns", [True, False])
def test_a_student_of_frozen_layers(run, tmp_path, decoder_learns):
    """The decoder may learn to read it; if nothing can learn, that is said."""
    done = run(
        tmp_path,
        "distil_whisper",
        {**TINY_WHISPER_DISTIL, "number_of_epochs": 1},
        layer_pruning='{"structures": {"sides": ["encoder"]}}',
        freeze_decoder=str(not decoder_learns),
        check=decoder_learns,
    )
    said = "those that stay learn nothing of the teacher"
    if not decoder_learns:
        said = "are frozen, so nothing learns of the teacher"
    assert said in done.stdout
    assert (tmp_path / "export").is_dir() == decoder_learns


def test_speech_without_transcripts_is_enough(run, corpus, tmp_path):
    """Of any folder, by what the model hears; else words are asked for."""
    speech = tmp_path / "data"
    for split in ("dev-clean", "test-clean"):
        (speech / split).parent.mkdir(exist_ok=True)
        (speech / split).symlink_to(corpus / split)
    for number, audio in enumerate(corpus.glob("train-*/*/*/*.flac")):
        folder = speech / f"radio/{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(audio, folder)
    options = {"data_folder": speech, "train_splits": "[radio/0, radio/1]"}
    labelled, plain = tmp_path / "labelled", tmp_path / "plain"
    settings = {**TINY_WHISPER, "number_of_epochs": 1}
    run(labelled, "train_whisper", settings, pseudo_labels="True", **options)
    with open(labelled / "pseudo_labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and not any(row["WER"] for row in rows)
    shutil.copytree(labelled, plain, ignore=shutil.ignore_patterns("save"))
    failed = run(
        plain,
        "train_whisper",
        settings,
        skip_prep="True",
        check=False,
        **options,
    )
    assert "has utterances without words" in failed.stdout


def test_targets_are_what_the_model_wrote(
    corpus, tiny_whisper, tmp_path, monkeypatch
):
    """In its style, and of those alone that are near the transcript."""
    monkeypatch.syspath_prepend(RECIPE)
    script = runpy.run_path(str(TRAIN))
    given = {
        **TINY_WHISPER,
        "data_folder": corpus,
        "whisper_hub": tiny_whisper,
        "output_folder": tmp_path,
        "test_csv": f"[{tmp_path}/test-clean.csv]",
    }
    overrides = "\n".join(f"{key}: {value}" for key, value in given.items())
    with open(RECIPE / "hparams/distil_whisper.yaml") as file:
        hparams = load_hyperpyyaml(file, overrides)
    script["prepare_librispeech"](
        corpus,
        tmp_path,
        hparams["train_splits"],
        hparams["dev_splits"],
        hparams["test_splits"],
    )
    tokenizer = hparams["whisper"].tokenizer
    asked = []

    def transcribe(batch):
        """One utterance is heard right."""
        asked.extend(batch.id)
        said = [wrd.capitalize() + "." for wrd in batch.wrd]
        return [
            s if i == "83-1-0001" else "No." for i, s in zip(batch.id, said)
        ]

    train, valid, _, sampler = script["dataio_prepare"](
        hparams, tokenizer, transcribe
    )
    assert len(asked) == 24 and len(train) == 1 and len(list(sampler)) == 1
    for data, style in ((train, str.capitalize), (valid, str.lower)):
        item = data[0]
        written = tokenizer.decode(item["tokens_eos"], skip_special_tokens=True)
        expected = style(item["wrd"]) + ("." if data is train else "")
        assert written == f" {expected}"


@torch.no_grad()
def test_a_student_is_loaded(distilled, corpus, tmp_path, tiny_whisper):
    """By the lobe and by SpeechBrain's interface; its encoder is stock."""
    export = distilled / "export"
    lobe = lobes.Whisper(str(export), str(tmp_path / "lobe"), language="en")
    dense = lobes.Whisper(
        str(tiny_whisper), str(tmp_path / "dense"), language="en"
    )
    assert len(lobe.model.decoder.layers) == 1
    ours, stock = (x.model.encoder.state_dict() for x in (lobe, dense))
    assert all(torch.equal(ours[name], stock[name]) for name in stock)
    audio = sorted(corpus.glob("test-clean/*/*/*.flac"))[0]
    model = WhisperASR.from_hparams(
        source=str(export), savedir=str(tmp_path / "hub")
    )
    wav = torch.from_numpy(soundfile.read(audio, dtype="float32")[0])[None]
    words, tokens = model.transcribe_batch(wav, torch.ones(1))
    assert len(words) == 1 and len(tokens[0]) > 0


def test_two_processes_share_the_pseudo_labels(distilled, run, tmp_path):
    """Each transcribes some batches; all learn from all of them."""
    run(
        tmp_path,
        "distil_whisper",
        {**TINY_WHISPER_DISTIL, "number_of_epochs": 1},
        processes=2,
        distributed_backend="gloo",
    )
    ours, theirs = (f / "pseudo_labels.csv" for f in (distilled, tmp_path))
    assert ours.read_bytes() == theirs.read_bytes()
    assert load_export(tmp_path / "export").steps
