"""Corpora to labels, and the layout of Speech Commands."""

import csv
import importlib.util
import re
import string
from pathlib import Path

import pytest
import soundfile
import torch

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture
def prepare(monkeypatch):
    """The module probing_prepare."""
    monkeypatch.syspath_prepend(RECIPES / "LibriSpeech/probing")
    import probing_prepare

    return probing_prepare


def write(path, samples=1600, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, torch.zeros(samples).numpy(), rate)


def labels(folder, table):
    with open(folder / f"{table}.csv", newline="") as file:
        return {row["ID"]: row["label"] for row in csv.DictReader(file)}


@pytest.fixture
def librispeech(tmp_path):
    """Two speakers with ten utterances each, in two chapters."""
    folder = tmp_path / "librispeech"
    for speaker in (1, 2):
        for chapter in (1, 2):
            names = [f"{speaker}-{chapter}-{i:04d}" for i in range(5)]
            place = folder / f"train-clean-100/{speaker}/{chapter}"
            for name in names:
                write(place / f"{name}.flac")
            words = ["THE CAT", "XYZZY", "A CAT", "CAT", "THE"]
            lines = [f"{n} {w}\n" for n, w in zip(names, words)]
            text = place / f"{speaker}-{chapter}.trans.txt"
            text.write_text("".join(lines))
    return folder


SPLITS = [["train-clean-100"]] * 3


def test_letters(librispeech, tmp_path, prepare):
    prepare.prepare_characters(librispeech, tmp_path / "out", *SPLITS)
    assert labels(tmp_path / "out", "test")["1-1-0000"] == "T H E | C A T"


def test_phonemes_of_the_cmu_dictionary(librispeech, tmp_path, prepare, caplog):
    prepare.prepare_phonemes(librispeech, tmp_path / "out", *SPLITS)
    found = labels(tmp_path / "out", "train")
    assert found["1-1-0000"] == "DH AH K AE T"
    assert "1-1-0001" not in found
    assert "left out 4 of 20 utterances" in caplog.text


def test_phonemes_of_a_file(librispeech, tmp_path, prepare):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("CAT  K AE1 T\nCAT K AA0 T\nTHE\tDH IY0\n\nBAD\n")
    prepare.prepare_phonemes(librispeech, tmp_path / "out", *SPLITS, lexicon)
    assert labels(tmp_path / "out", "valid")["1-1-0000"] == "DH IY K AE T"
    lexicon.write_text("CAT\n")
    with pytest.raises(ValueError, match="has no lines `WORD PH ON EMES`"):
        prepare.read_lexicon(lexicon)
    lexicon.write_text("DOG D AO G\n")
    with pytest.raises(ValueError, match="train: no utterance has a label"):
        prepare.prepare_phonemes(
            librispeech, tmp_path / "out", *SPLITS, lexicon
        )


def test_speakers_are_in_all_tables_utterances_in_one(
    librispeech, tmp_path, prepare
):
    folder = tmp_path / "out"
    prepare.prepare_speakers(librispeech, folder, SPLITS[0], share=0.2)
    tables = [labels(folder, name) for name in ("train", "valid", "test")]
    assert [len(table) for table in tables] == [12, 4, 4]
    assert len({name for table in tables for name in table}) == 20
    for table in tables:
        assert {*table.values()} == {"1", "2"}
        assert {name.split("-")[1] for name in table} == {"1", "2"}
    with pytest.raises(ValueError, match="speaker 1 has 10 utterances"):
        prepare.prepare_speakers(librispeech, folder, SPLITS[0], share=0.5)


# ---------------------------------------------------------- Speech Commands


@pytest.fixture
def commands(tmp_path):
    """Two words by three speakers."""
    folder = tmp_path / "commands"
    for word in ("yes", "no"):
        for speaker in "abc":
            write(folder / word / f"{speaker}_nohash_0.wav")
    write(folder / "_background_noise_/hum.wav")
    (folder / "validation_list.txt").write_text(
        "yes/b_nohash_0.wav\nno/b_nohash_0.wav\n"
    )
    (folder / "testing_list.txt").write_text("yes/c_nohash_0.wav\n")
    return folder


def test_the_lists_split(commands, tmp_path, prepare):
    prepare.prepare_words(commands, tmp_path / "out")
    assert labels(tmp_path / "out", "train") == {
        "no_a_nohash_0": "no",
        "no_c_nohash_0": "no",
        "yes_a_nohash_0": "yes",
    }
    assert len(labels(tmp_path / "out", "valid")) == 2
    assert labels(tmp_path / "out", "test") == {"yes_c_nohash_0": "yes"}


def break_rate(folder):
    write(folder / "yes/a_nohash_0.wav", rate=8000)


def break_file(folder):
    (folder / "yes/a_nohash_0.wav").write_bytes(b"RIFF")


def empty_file(folder):
    write(folder / "yes/a_nohash_0.wav", samples=0)


def empty_list(folder):
    (folder / "testing_list.txt").write_text("")


@pytest.mark.parametrize(
    "damage, message",
    [
        (break_rate, "a_nohash_0.wav is sampled at 8000 Hz, not 16000"),
        (break_file, "empty or corrupt .*: unpack the archive again"),
        (empty_file, "there are no samples to read"),
        (empty_list, "no file is in the split test"),
    ],
)
def test_bad_audio(damage, message, commands, tmp_path, prepare):
    damage(commands)
    with pytest.raises(ValueError, match=message):
        prepare.prepare_words(commands, tmp_path / "out")
    assert not (tmp_path / "out/train.csv").exists()


def test_what_is_missing_is_named(commands, tmp_path, prepare):
    (commands / "yes/c_nohash_0.wav").unlink()
    with pytest.raises(FileNotFoundError, match="names 1 files that are not"):
        prepare.prepare_words(commands, tmp_path / "out")
    (commands / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match="testing_list.txt is missing"):
        prepare.prepare_words(commands, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="No words in .*: set data_fo"):
        prepare.prepare_words(tmp_path, tmp_path / "out")


# --------------------------------------------------------- units of a corpus


PHONEMES = """AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG
OW OY P R S SH T TH UH UW V W Y Z ZH"""


@pytest.mark.parametrize(
    "probe, labels",
    [
        ("pr", [PHONEMES.replace("\n", " ")]),
        ("asr", [" ".join([*string.ascii_uppercase, "'", "|"])]),
        ("ks", [f"word{n}" for n in range(35)]),
        ("sid", [str(n) for n in range(251)]),  # of train-clean-100
        ("ic", [f"intent{n}" for n in range(60)]),
    ],
)
def test_a_head_has_an_output_for_each_unit(probe, labels, prepare, tmp_path):
    folder = Path(prepare.__file__).parent
    spec = importlib.util.spec_from_file_location("probe", folder / "train.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    stated = (folder / f"hparams/{probe}.yaml").read_text()
    outputs = re.search(r"(?m)^output_neurons: (\d+)", stated)[1]
    hparams = {
        "audio_root": "",
        "label_encoder_file": str(tmp_path / "units.txt"),
        "output_neurons": int(outputs),
        "dynamic_batch_sampler_train": {
            "max_batch_length": 10,
            "num_buckets": 2,
        },
    }
    labels = labels * 5  # so that buckets have borders
    rows = [f"{n},{1 + n},x,{label}" for n, label in enumerate(labels)]
    for name in ("train", "valid", "test"):
        path = hparams[f"{name}_csv"] = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["ID,duration,wav,label", *rows]))
    *_, units = recipe.dataio_prepare(hparams)
    few = len({unit for label in labels for unit in label.split()})
    assert len(units) == few + 2  # the blank and what is unknown


def test_a_score_without_checkpoints_is_not_taken_for_another(
    prepare, tmp_path
):
    from run_probes import note_what_is_probed

    note = tmp_path / "probed.json"
    note_what_is_probed(note, "encoder", {"lr": 1}, [])
    note_what_is_probed(note, "encoder", {"lr": 2}, [])  # nothing has begun
    (tmp_path / "score.json").write_text("{}")
    with pytest.raises(SystemExit, match="is a probe with other options"):
        note_what_is_probed(note, "encoder", {"lr": 1}, [])
