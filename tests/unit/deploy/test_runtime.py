"""What the runtime reads, and how it cuts long audio."""

import json
import sys

import numpy
import pytest
import soundfile
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from sb_prune.deploy.manifests import calibration_audio, labelled_audio
from sb_prune.deploy.runtime.audio import chunked, cut_at_pauses, read_audio
from sb_prune.deploy.runtime.kinds import _text_of
from sb_prune.deploy.runtime.settings import (
    FILE,
    DeployError,
    check_files,
    read_settings,
    write_settings,
)

RATE = 16000


@pytest.fixture
def audio(tmp_path):
    """Function: writes a tone as a file."""

    def write(rate=RATE, seconds=0.5, channels=1):
        steps = numpy.arange(round(seconds * rate)) / rate
        tone = numpy.sin(2 * numpy.pi * 200 * steps)
        path = tmp_path / "tone.wav"
        soundfile.write(path, numpy.stack([tone / 2] * channels, 1), rate)
        return path

    return write


def test_channels_are_averaged(audio):
    mono = read_audio(audio(), RATE)
    assert mono.dtype == numpy.float32
    assert numpy.array_equal(read_audio(audio(channels=2), RATE), mono)


def test_another_rate_is_converted(audio):
    expected = read_audio(audio(), RATE)
    found = read_audio(audio(rate=44100), RATE)
    assert len(found) == len(expected)
    assert numpy.abs(found - expected)[800:-800].max() < 1e-3


def test_without_soxr_another_rate_is_refused(audio, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(DeployError, match="8000 samples a second.*soxr"):
        read_audio(audio(rate=8000), RATE)


def test_empty_audio_is_refused(audio):
    with pytest.raises(DeployError, match="tone.wav has no samples"):
        read_audio(audio(seconds=0), RATE)
    with pytest.raises(DeployError, match="tone.wav, at 10 .* has no samples"):
        read_audio(audio(seconds=0.01), 10)  # nothing is left of it


@pytest.mark.parametrize("name", ["none.wav", "text.wav"])
def test_what_is_no_audio_is_refused(tmp_path, name):
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(DeployError, match=f"{name} cannot be read"):
        read_audio(tmp_path / name, RATE)


def test_pieces_end_in_pauses():
    wav = numpy.ones(50 * RATE)
    for second in (17, 29.5, 40):  # the first is too early
        wav[round(second * RATE) :][: RATE // 2] = 0
    pieces = cut_at_pauses(wav, 30 * RATE, RATE)
    assert numpy.array_equal(numpy.concatenate(pieces), wav)
    assert [round(len(piece) / RATE) for piece in pieces] == [30, 20]
    assert not pieces[0][-100:].any() and not pieces[1][:100].any()


@pytest.mark.parametrize("tail", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("seconds", [30.01, 30.5, 37.4, 52.3, 52.6, 61.0])
def test_no_piece_is_a_scrap(seconds, tail):
    """A decoder would invent words for what is short and silent."""
    generator = numpy.random.default_rng(0)
    wav = generator.standard_normal(round(seconds * RATE))
    wav[len(wav) - round(tail * RATE) :] = 0
    pieces = cut_at_pauses(wav, 30 * RATE, RATE)
    assert numpy.array_equal(numpy.concatenate(pieces), wav)
    assert all(10 * RATE < len(piece) <= 30 * RATE for piece in pieces)


def test_samples_must_be_numbers(tmp_path):
    wav = numpy.zeros(99, numpy.float32)
    wav[7] = numpy.nan
    soundfile.write(tmp_path / "nan.wav", wav, RATE, subtype="FLOAT")
    with pytest.raises(DeployError, match="nan.wav has samples that are no"):
        read_audio(tmp_path / "nan.wav", RATE)


@pytest.mark.parametrize(("step", "before"), [(320, 400), (640, 1), (100, 0)])
@pytest.mark.parametrize("samples", [100000, 96000, 64001, 12345])
def test_chunks_join_where_they_met(step, before, samples):
    """Frames know where they stand; as in a convolution, the last are few."""

    def places(part):  # part holds the place of each of its samples
        frames = max((len(part) - before) // step + 1, 0)
        return part[: frames * step : step, None]

    wav = numpy.arange(samples)
    found = chunked(places, wav, 12800 // step, 1600 // step, step)
    assert numpy.array_equal(found, places(wav))


# ----------------------------------------------------------- deploy.json


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_settings(tmp_path, {"kind": "ctc", "sample_rate": RATE})
    return tmp_path


def test_settings_are_read_as_they_were_written(folder):
    settings = read_settings(folder)
    assert settings["kind"] == "ctc" and list(settings["files"]) == [
        "model.onnx"
    ]


def test_a_file_that_was_edited_is_refused(folder):
    (folder / "model.onnx").write_bytes(b"grape")
    with pytest.raises(DeployError, match="model.onnx is not the file"):
        check_files(folder, read_settings(folder))


def test_a_missing_file_is_named(folder):
    (folder / "model.onnx").unlink()
    with pytest.raises(DeployError, match="model.onnx is missing"):
        read_settings(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[]",
        '{"format": 1}',
        '{"format": 2, "files": {}}',
        '{"format": "2", "files": {}}',
        '{"format": 2, "files": [], "kind": "ctc", "sample_rate": 1}',
    ],
)
def test_damaged_settings_are_refused(folder, text):
    (folder / FILE).write_text(text)
    with pytest.raises(DeployError, match="cannot be read"):
        read_settings(folder)


def test_a_later_format_is_refused(folder):
    settings = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**settings, "format": 3}))
    with pytest.raises(DeployError, match="has format 3.*install a later"):
        read_settings(folder)


def test_an_earlier_format_is_refused(folder):
    settings = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**settings, "format": 1}))
    with pytest.raises(DeployError, match="has format 1.*deploy the model"):
        read_settings(folder)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DeployError, match="has no deploy.json; name a folder"):
        read_settings(tmp_path)


def test_times_are_no_words_of_whisper(tmp_path):
    """In OpenAI's tokenizers they are no special tokens."""
    words = {"hello": 0, "<|unknown|>": 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<|unknown|>"))
    tokenizer.add_tokens(["<|1.08|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text_of = _text_of(tmp_path, {"kind": "whisper"})
    assert text_of([2, 0, 2]) == "hello"


# -------------------------------------------------------- what is calibrated


def test_a_few_utterances_are_read(tmp_path):
    for n in range(15):
        soundfile.write(tmp_path / f"{n:02}.wav", numpy.zeros(99 + n), RATE)
    found = calibration_audio(tmp_path, RATE)
    assert [len(wav) - 99 for wav in found] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert {len(w) for w in calibration_audio(tmp_path, RATE, 50)} == {50}


def test_a_folder_without_audio_is_refused(tmp_path):
    with pytest.raises(DeployError, match="--audio: .* has no audio files"):
        calibration_audio(tmp_path, RATE)


@pytest.fixture
def manifest(tmp_path, audio):
    """Function: text of a manifest -> its path."""
    audio()

    def write(text):
        path = tmp_path / "dev.csv"
        path.write_text(text)
        return path

    return write


def test_transcripts_are_read(manifest, tmp_path):
    path = manifest("ID,wav,wrd\n1,$data_root/tone.wav,A TONE\n")
    ((wav, words),) = labelled_audio(path, str(tmp_path), RATE)
    assert len(wav) == RATE // 2 and words == "A TONE"
    with pytest.raises(DeployError, match="write --data_folder, too"):
        labelled_audio(path, None, RATE)


@pytest.mark.parametrize("text", ["", "ID,wav\n1,tone.wav\n"])
def test_a_manifest_without_transcripts_is_refused(manifest, text):
    with pytest.raises(DeployError, match="has no transcripts"):
        labelled_audio(manifest(text), None, RATE)


def test_a_row_without_words_is_named(manifest):
    with pytest.raises(DeployError, match="tone.wav.* has no transcript"):
        labelled_audio(manifest("wav,wrd\ntone.wav\n"), None, RATE)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(DeployError, match="--labels: .*none.csv"):
        labelled_audio(tmp_path / "none.csv", None, RATE)
