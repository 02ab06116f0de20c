"""LibriSpeech to csv: what is written, and what is refused."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPE = Path(__file__).parents[3] / "recipes/LibriSpeech"
SPLITS = {"tr_splits": ["train-clean-100"], "te_splits": ["test-clean"]}
FIRST = "train-clean-100/19/1/19-1-0000.flac"


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location(
        "librispeech_prepare", RECIPE / "librispeech_prepare.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare_librispeech


@pytest.fixture
def data(tmp_path):
    """Two splits of two one-second utterances each."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    for split in ("train-clean-100", "test-clean"):
        chapter = tmp_path / "LibriSpeech" / split / "19" / "1"
        chapter.mkdir(parents=True)
        for name in ("19-1-0000", "19-1-0001"):
            soundfile.write(chapter / f"{name}.flac", noise, 16000)
        (chapter / "19-1.trans.txt").write_text(
            "19-1-0000 GOOD MORNING\n19-1-0001 GOOD NIGHT\n"
        )
    return tmp_path / "LibriSpeech"


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as fin:
        return list(csv.DictReader(fin))


def test_rows(prepare, data, tmp_path):
    prepare(data, tmp_path / "out", **SPLITS)
    rows = rows_of(tmp_path / "out/train.csv")
    assert rows == rows_of(tmp_path / "out/train-clean-100.csv")
    assert rows[0] == {
        "ID": "19-1-0000",
        "duration": "1.0",
        "wav": f"$data_root/{FIRST}",
        "spk_id": "19",
        "wrd": "GOOD MORNING",
    }
    assert len(rows_of(tmp_path / "out/test-clean.csv")) == 2


def test_second_call_does_nothing(prepare, data, tmp_path):
    prepare(data, tmp_path / "out", **SPLITS)
    (data / FIRST).unlink()
    prepare(data, tmp_path / "out", **SPLITS)


def test_a_table_that_is_gone_is_written_again(prepare, data, tmp_path):
    prepare(data, tmp_path / "out", **SPLITS)
    (tmp_path / "out/train.csv").unlink()
    prepare(data, tmp_path / "out", **SPLITS)
    assert (tmp_path / "out/train.csv").is_file()


def test_other_splits_are_prepared_anew(prepare, data, tmp_path):
    prepare(data, tmp_path / "out", tr_splits=["train-clean-100"])
    prepare(data, tmp_path / "out", tr_splits=["test-clean"])
    assert "test-clean" in rows_of(tmp_path / "out/train.csv")[0]["wav"]


def test_missing_split(prepare, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="dev-clean"):
        prepare(data, tmp_path / "out", dev_splits=["dev-clean"], **SPLITS)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    "damage, error",
    [
        (lambda path: path.write_bytes(b""), ValueError),
        (lambda path: path.write_bytes(b"not a flac file"), ValueError),
        (truncate, ValueError),
        (lambda path: soundfile.write(path, [], 16000), ValueError),
        (Path.unlink, FileNotFoundError),
    ],
    ids=["empty", "corrupt", "truncated", "no samples", "missing"],
)
def test_bad_audio_is_named(prepare, data, tmp_path, damage, error):
    damage(data / FIRST)
    with pytest.raises(error, match=f"{FIRST}.*split again"):
        prepare(data, tmp_path / "out", **SPLITS)
    assert not (tmp_path / "out").exists()


def test_other_sampling_rate_is_refused(prepare, data, tmp_path):
    soundfile.write(data / FIRST, np.zeros(8000), 8000)
    with pytest.raises(ValueError, match=f"{FIRST}.*8000 Hz.*ffmpeg"):
        prepare(data, tmp_path / "out", **SPLITS)
    assert not (tmp_path / "out").exists()
