"""The synthesised LibriSpeech: same bits, same layout, safe to interrupt."""

import filecmp

import numpy as np
import pytest
import soundfile

from sb_prune.demo import corpus, synthesis
from sb_prune.demo.espeak import Speaker, speak, speak_all

SIZES = {"train_utterances": 12, "dev_utterances": 4, "test_utterances": 4}


def files_of(folder):
    return sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file()
    )


def sentences_of(folder, split):
    return {
        line.split(maxsplit=1)[1]
        for path in (folder / split).rglob("*.trans.txt")
        for line in path.read_text().splitlines()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "LibriSpeech"
    corpus.synthesise_librispeech(path, seed=1, **SIZES)
    return path


def test_layout(folder):
    transcript = folder / "train-clean-100/19/1/19-1.trans.txt"
    utterance = transcript.read_text().split()[0]
    assert utterance == "19-1-0000"
    audio, rate = soundfile.read(transcript.with_name(f"{utterance}.flac"))
    assert rate == 16000
    assert 1.0 < len(audio) / rate < 4.0
    assert len(list((folder / "train-clean-100").rglob("*.flac"))) == 12


def test_same_arguments_same_bits(folder, tmp_path):
    again = tmp_path / "again"
    corpus.synthesise_librispeech(again, seed=1, **SIZES)
    assert files_of(again) == files_of(folder)
    for name in files_of(folder):
        assert filecmp.cmp(folder / name, again / name, shallow=False), name


def test_no_sentence_in_two_splits(folder):
    train, dev, test = (
        sentences_of(folder, split)
        for split in ("train-clean-100", "dev-clean", "test-clean")
    )
    assert [len(train), len(dev), len(test)] == list(SIZES.values())
    assert not (train & dev or train & test or dev & test)


def test_complete_folder_is_left_alone(folder, monkeypatch):
    monkeypatch.setattr(synthesis, "speak_all", None)
    corpus.synthesise_librispeech(folder, seed=1, **SIZES)


def test_other_arguments_are_refused(folder):
    with pytest.raises(ValueError, match="delete it or name a new folder"):
        corpus.synthesise_librispeech(folder, seed=2, **SIZES)


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "SPEAKERS.TXT").touch()
    with pytest.raises(ValueError, match="not synthesised here"):
        corpus.synthesise_librispeech(tmp_path, seed=1, **SIZES)


def test_interrupted_synthesis_starts_again(folder, tmp_path, monkeypatch):
    def say(texts, speakers):
        return ((np.eye(1, 8)[0], 16000) for _ in texts)

    def say_one_then_stop(texts, speakers):
        yield from say(texts[:1], speakers)
        raise KeyboardInterrupt

    target = tmp_path / "LibriSpeech"
    monkeypatch.setattr(synthesis, "speak_all", say_one_then_stop)
    with pytest.raises(KeyboardInterrupt):
        corpus.synthesise_librispeech(target, seed=1, **SIZES)
    assert not target.exists()
    monkeypatch.setattr(synthesis, "speak_all", say)
    corpus.synthesise_librispeech(target, seed=1, **SIZES)
    assert files_of(target) == files_of(folder)
    assert list(tmp_path.iterdir()) == [target]


def test_unknown_voice_is_named():
    with pytest.raises(ValueError, match="no voice 'en-moon'"):
        speak("HELLO", Speaker("en-moon"))


def test_failing_process_is_noticed():
    with pytest.raises(RuntimeError, match="its own error is printed"):
        list(speak_all(["HELLO"], [Speaker("en-moon")]))
