"""An export as a deployed model: the same transcripts, without SpeechBrain."""

import json
import re
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
from difflib import SequenceMatcher
from pathlib import Path

import numpy
import onnx
import pytest
import soundfile
import torch
from recipe_runs import RECIPE, ROOT
from speechbrain.inference.ASR import EncoderASR
from tiny_export import make_export
from tiny_whisper import write_tiny_whisper

from sb_prune.deploy import OnnxASR, deploy
from sb_prune.deploy.command import main
from sb_prune.deploy.folder import Quantization
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.lobes import Whisper
from sb_prune.support.measure import count_macs

# All that the runtime needs, and what that needs in turn.
RUNTIME = (
    "numpy*",
    "onnxruntime*",
    "*soundfile*",
    "*cffi*",
    "pycparser*",
    "sentencepiece*",
    "flatbuffers*",
    "google*",
    "protobuf*",
    "packaging*",
    "typing_extensions*",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export of an untrained model, which says something else each time."""
    folder = tmp_path_factory.mktemp("export") / "export"
    make_export(folder)
    return folder


@pytest.fixture(scope="module")
def deployed(exported, tmp_path_factory):
    """Folder of the deployed export, and what the command printed of it."""
    folder = tmp_path_factory.mktemp("deploy") / "deployed"
    return folder, deploy(exported, folder)


@pytest.fixture
def copied(deployed, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(deployed[0], tmp_path / "copied")


@pytest.fixture(scope="module")
def utterances(corpus):
    return sorted(corpus.rglob("*.flac"))[:12]


def batch_of(paths):
    """(wavs, lens) of files, padded with zeros."""
    wavs = [
        torch.from_numpy(soundfile.read(p, dtype="float32")[0]) for p in paths
    ]
    longest = max(map(len, wavs))
    lens = torch.tensor([len(wav) / longest for wav in wavs])
    return torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), lens


def test_table_says_that_nothing_differs(deployed):
    _, table = deployed
    rows = dict(table)
    assert float(rows["float32: largest difference of scores, relative"]) < 1e-5
    assert rows["float32: other tokens than the source, of 5 of noise"] == "0"


def test_it_transcribes_as_the_export_does(
    deployed, exported, utterances, tmp_path
):
    export = EncoderASR.from_hparams(
        source=str(exported), savedir=str(tmp_path / "saved")
    )
    asr = OnnxASR(deployed[0])
    words = []
    for n in range(0, len(utterances), 4):
        wavs, lens = batch_of(utterances[n : n + 4])
        expected, tokens = export.transcribe_batch(wavs, lens)
        found = asr.transcribe_batch(wavs.numpy(), lens.numpy())
        assert found == (expected, tokens)
        words += expected
    assert len(set(words)) > 1  # so it is heard what is said
    for path in utterances[:3]:
        assert asr.transcribe_file(path) == export.transcribe_file(str(path))


def test_long_audio_is_heard_in_chunks(deployed, utterances, tmp_path):
    """Of which each hears what is near, so that little differs."""
    wav = numpy.concatenate([soundfile.read(p)[0] for p in utterances])
    wav = numpy.tile(wav, -(-70 * 16000 // len(wav)))
    soundfile.write(tmp_path / "long.flac", wav, 16000)
    asr = OnnxASR(deployed[0])
    (whole,), _ = asr.transcribe_batch(wav[None], numpy.ones(1))
    chunked = asr.transcribe_file(tmp_path / "long.flac")
    matcher = SequenceMatcher(None, whole, chunked, autojunk=False)
    assert len(whole) > 100 and matcher.ratio() > 0.9


def test_command_transcribes(deployed, utterances, capsys):
    main(["transcribe", str(deployed[0]), str(utterances[0])])
    expected = OnnxASR(deployed[0]).transcribe_file(utterances[0])
    assert capsys.readouterr().out == f"{utterances[0]}: {expected}\n"


def test_features_are_a_graph_of_their_own(
    exported, deployed, utterances, tmp_path
):
    """For devices that compute these, and hear the same as without."""
    main(
        [str(exported), "--output", str(tmp_path / "apart"), "--features_apart"]
    )
    hparams = EncoderASR.from_hparams(
        source=str(exported), savedir=str(tmp_path / "saved")
    ).hparams
    wavs, lens = batch_of(utterances[:3])
    expected = hparams.normalize(hparams.compute_features(wavs), lens)
    feed = {"wavs": wavs.numpy(), "lens": lens.numpy()}
    apart, whole = OnnxASR(tmp_path / "apart"), OnnxASR(deployed[0])
    (features,) = apart.model.run("features.onnx", feed)
    off = numpy.abs(features - expected.numpy()).max()
    assert off < 1e-3 * expected.abs().max()
    given = apart.model.sessions["model.onnx"].get_inputs()
    assert [i.name for i in given] == ["features", "lens"]
    arrays = (wavs.numpy(), lens.numpy())
    assert apart.transcribe_batch(*arrays) == whole.transcribe_batch(*arrays)


def test_it_needs_neither_torch_nor_speechbrain(deployed, utterances, tmp_path):
    """In an environment that has nothing but what RUNTIME names."""
    environment = tmp_path / "environment"
    command = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(command, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    here = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    for path in (p for h in here for name in RUNTIME for p in h.glob(name)):
        (packages / path.name).symlink_to(path)
    (packages / "sb_prune").symlink_to(ROOT / "sb_prune")
    python = environment / "bin/python"
    run = {"cwd": tmp_path, "env": {}, "capture_output": True, "text": True}
    for absent in ("torch", "speechbrain", "transformers", "hyperpyyaml"):
        failed = subprocess.run([python, "-c", f"import {absent}"], **run)
        assert "ModuleNotFoundError" in failed.stderr
    command = [python, "-m", "sb_prune.deploy", "transcribe"]
    done = subprocess.run([*command, deployed[0], utterances[0]], **run)
    expected = OnnxASR(deployed[0]).transcribe_file(utterances[0])
    assert done.stdout == f"{utterances[0]}: {expected}\n", done.stderr


# ------------------------------------------------------------------ bad input


def test_an_export_that_was_edited_is_refused(exported, tmp_path):
    export = shutil.copytree(exported, tmp_path / "export")
    weights = export / "model.ckpt"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(DeployError, match="truncated, edited or of another"):
        deploy(export, tmp_path / "deployed")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="error: .*has no hyperparams.yaml"):
        main([str(tmp_path), "--output", str(tmp_path / "deployed")])


@pytest.mark.parametrize("name", ["mine", "mine.old"])
def test_other_files_are_not_overwritten(exported, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").touch()
    with pytest.raises(DeployError, match="is there already, and no deployed"):
        deploy(exported, tmp_path / "mine")
    assert [p.name for p in tmp_path.rglob("*")] == [name, "thesis.tex"]


def test_a_beam_search_is_refused(exported, tmp_path):
    export = shutil.copytree(exported, tmp_path / "export")
    path = export / "hyperparams.yaml"
    greedy = "!name:speechbrain.decoders.ctc_greedy_decode"
    text, beam = path.read_text(), "!name:speechbrain.decoders.CTCBeamSearcher"
    assert greedy in text
    path.write_text(text.replace(greedy, beam))
    with pytest.raises(DeployError, match="decoding_function: only greedy"):
        deploy(export, tmp_path / "deployed")


def test_a_damaged_graph_is_refused(copied):
    graph = copied / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(DeployError, match="model.onnx is not the file"):
        OnnxASR(copied)


HALF_A_GRAPH = """
def write(module, inputs, outputs, path):
    path.write_text('half a graph')
    os.kill(os.getpid(), signal.SIGKILL)
recognisers.write_graph = write
"""
BETWEEN = """
def rename_(source, target):
    disk.rename_(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
folder.rename_ = rename_
"""


@pytest.mark.parametrize(
    ("stop", "left"), [(HALF_A_GRAPH, "copied"), (BETWEEN, "copied.old")]
)
def test_what_was_there_stays_until_another_is_complete(
    exported, copied, stop, left
):
    """Killed while it writes a graph, or between two names; then run again."""
    before = {path.name for path in copied.iterdir()}
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal\n"
            "from sb_prune.deploy import folder, recognisers\n"
            "from sb_prune.support import disk\n"
            f"{stop}\n"
            f"folder.deploy({str(exported)!r}, {str(copied)!r})",
        ]
    )
    assert killed.returncode == -signal.SIGKILL
    assert {path.name for path in copied.with_name(left).iterdir()} == before
    assert copied.with_name("copied.incomplete").is_dir()
    (copied.with_name(left) / "old").touch()
    deploy(exported, copied)
    assert {path.name for path in copied.iterdir()} == before
    assert {path.name for path in copied.parent.iterdir()} == {"copied"}


def test_weights_in_16_bits(deployed, exported, corpus, tmp_path):
    folder, path = tmp_path / "half", next(corpus.rglob("*.flac"))
    rows = dict(deploy(exported, folder, half=True))
    off = float(rows["float16: largest difference of scores, relative"])
    assert 1e-6 < off < 1e-2
    whole, half = (
        sum(file.stat().st_size for file in f.glob("*.data"))
        for f in (deployed[0], folder)
    )
    assert half < 0.7 * whole
    assert OnnxASR(folder).transcribe_file(path)


def test_word_errors_are_counted_where_there_are_words(
    exported, corpus, utterances, tmp_path
):
    """And may be what limits integers."""
    prepare = runpy.run_path(str(RECIPE / "librispeech_prepare.py"))
    prepare["prepare_librispeech"](corpus, tmp_path, te_splits=["test-clean"])
    words = {
        "labels": str(tmp_path / "test-clean.csv"),
        "data_folder": str(corpus),
    }
    for limit in ({"max_kl": 10.0}, {"max_wer_loss": 100.0}):
        folder = tmp_path / min(limit)
        asked = Quantization(str(corpus), **words, **limit)
        rows = dict(deploy(exported, folder, asked))
        for label in ("float32", "int8"):
            assert 0 <= float(rows[f"{label}: word error rate, %"]) <= 200


def test_int8_says_what_it_costs_and_what_stays(exported, corpus, tmp_path):
    folder = tmp_path / "int8"
    table = deploy(exported, folder, Quantization(str(corpus), max_kl=3e-5))
    rows = dict(table)
    assert 0 < float(rows["int8: KL divergence, nats"]) <= 3e-5
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    operators = {node.op_type for node in graph.graph.node}
    assert {"MatMulInteger", "MatMul"} <= operators
    kept = [name for name in rows if name.startswith("stays a float: ")]
    count = re.search(r"int8: matrix products, of (\d+)", " ".join(rows))
    number = int(rows[count[0]])
    assert number and kept and number + len(kept) == int(count[1])
    path = next(corpus.rglob("*.flac"))
    assert isinstance(OnnxASR(folder).transcribe_file(path), str)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_wer_loss": 0.2}, "--max_wer_loss: .* write --labels"),
        ({"max_kl": -1.0}, "--max_kl: -1.0; write 0 or more"),
    ],
)
def test_what_is_asked_of_integers_is_checked(values, message):
    with pytest.raises(DeployError, match=message):
        Quantization("audio", **values)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize", "int8"], "write --audio FOLDER"),
        (["--max_kl", "1"], "--max_kl: write --quantize int8, too"),
        (
            ["--quantize", "int8", "--audio", "a", "--max_kl", "1"]
            + ["--max_wer_loss", "1"],
            "--max_kl: leave it out",
        ),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        main(["export", "--output", "deployed", *flags])
    assert message in capsys.readouterr().err


def test_audio_is_looked_for_before_anything_else(exported, tmp_path):
    with pytest.raises(DeployError, match="--audio: .* has no audio files"):
        deploy(exported, tmp_path / "deployed", Quantization(str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_audio_that_is_too_short_is_said_so(deployed):
    with pytest.raises(DeployError, match="is it too short"):
        OnnxASR(deployed[0]).transcribe_batch(
            numpy.zeros((1, 0 + 1), "f4"), numpy.ones(1)
        )


WHISPER = """
whisper: !new:sb_prune.lobes.Whisper
    source: {source}
    save_path: {source}
    context: 6.0
    language: en
decoder: !new:speechbrain.decoders.seq2seq.S2SWhisperGreedySearcher
    model: !ref <whisper>
    min_decode_ratio: 0.0
    max_decode_ratio: 0.1
modules:
    whisper: !ref <whisper>
    decoder: !ref <decoder>
"""


def test_a_dense_whisper_in_a_short_context(corpus, tmp_path):
    """Its MACs are those of what it hears, its integers cost something."""
    write_tiny_whisper(str(tmp_path / "dense"))
    source = tmp_path / "source"
    source.mkdir()
    yaml = WHISPER.format(source=tmp_path / "dense")
    (source / "hyperparams.yaml").write_text(yaml)
    folder = tmp_path / "deployed"
    rows = dict(deploy(source, folder, Quantization(str(corpus))))
    assert 0 < float(rows["int8: KL divergence, nats"]) < 0.01
    lobe = Whisper(str(tmp_path / "dense"), "", context=6.0, language="en")
    heard = torch.zeros(1, 4 * 16000)  # and a margin of 2 s
    macs = count_macs(lambda *given: lobe.eval()(heard), heard)
    written = json.loads((folder / "deploy.json").read_text())
    assert written["source"]["macs_per_second"] == pytest.approx(macs / 4)
    asr = OnnxASR(folder)
    path = max(corpus.rglob("*.flac"), key=lambda path: path.stat().st_size)
    assert isinstance(asr.transcribe_file(path), str)
    with pytest.raises(DeployError, match="hears 4 s at a time"):
        asr.transcribe_batch(numpy.zeros((1, 80000)), [1.0])


@pytest.mark.parametrize("lens", [[1.0], [1.0, 0.0], [32000, 16000], [2.0, 1]])
def test_lengths_are_relative(deployed, lens):
    with pytest.raises(DeployError, match="wav_lens: .*; write for each of 2"):
        OnnxASR(deployed[0]).transcribe_batch(numpy.zeros((2, 32000)), lens)
