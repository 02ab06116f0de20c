"""The synthesised Speech Commands: layout, lists, harder versions."""

import filecmp
from collections import defaultdict

import pytest
import soundfile

from sb_prune.demo.speech_commands import LISTS, synthesise_speech_commands

SIZES = {"seed": 1, "speakers": 3, "repetitions": 2, "words": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Function: further arguments -> folder."""

    def synthesise(name, **options):
        folder = tmp_path_factory.mktemp("demo") / name
        synthesise_speech_commands(folder, **{**SIZES, **options})
        return folder

    return synthesise


@pytest.fixture(scope="module")
def plain(corpus):
    return corpus("plain")


def audio_of(folder):
    """{file: samples} of one word."""
    return {
        path.name: soundfile.read(path)[0]
        for path in sorted((folder / "yes").glob("*.wav"))
    }


def lengths(folder):
    """{speaker: set of the lengths of its recordings of one word}."""
    found = defaultdict(set)
    for name, samples in audio_of(folder).items():
        found[name.partition("_")[0]].add(len(samples))
    return found


def test_lists_name_speakers_of_their_own(plain):
    assert len(list(plain.rglob("*.wav"))) == 3 * 2 * 2
    valid, test = ((plain / name).read_text().split() for name in LISTS)
    speakers = [
        {file[4:].split("_")[0] for file in inside} for inside in (valid, test)
    ]
    assert len(valid) == len(test) == 4
    assert not speakers[0] & speakers[1]
    assert all((plain / file).is_file() for file in valid + test)


def test_same_arguments_same_bits(plain, corpus):
    again = corpus("again")
    for path in plain.rglob("*.*"):
        assert filecmp.cmp(path, again / path.relative_to(plain), False)


def test_jitter_makes_recordings_of_a_speaker_differ(plain, corpus):
    jittered = lengths(corpus("jittered", jitter=20))
    assert max(map(len, jittered.values())) == 2
    assert jittered.keys() == lengths(plain).keys()


def test_loud_noise_is_louder_than_speech(plain, corpus):
    for clean, noisy in zip(
        audio_of(plain).values(), audio_of(corpus("noisy", snr=-20)).values()
    ):
        assert _crest(noisy) < _crest(clean) / 1.2


def _crest(samples):
    """Peak over root mean square: white noise has less than speech."""
    return abs(samples).max() / (samples**2).mean() ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speakers": 2}, "three splits"),
        ({"speakers": 56}, "55 voices"),
        ({"words": 36}, "write 2 to 35"),
        ({"jitter": 31}, "0 to 30"),
    ],
)
def test_arguments_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        synthesise_speech_commands(tmp_path / "x", **{**SIZES, **options})
