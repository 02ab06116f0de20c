"""SLURP to csv: what is written, what is left out, and what is refused."""

import csv
import json
import logging

import numpy as np
import pytest
import soundfile
from slurp_prepare import parse_semantics, prepare_slurp

from sb_prune.demo.slurp import release_line, synthesise_slurp

SPLITS = ("train", "devel", "test")
ANNOTATION = "wake me up at [time : seven am] [date : today]"


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def data(tmp_path):
    """Two sentences in each split, each with one recording of one second."""
    folder = tmp_path / "slurp"
    audio = folder / "audio/slurp_real"
    audio.mkdir(parents=True)
    (folder / "dataset/slurp").mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    for i, split in enumerate(SPLITS):
        lines = [
            release_line(number, "alarm", "set", ANNOTATION)
            for number in (2 * i, 2 * i + 1)
        ]
        write_lines(folder / f"dataset/slurp/{split}.jsonl", lines)
        for line in lines:
            name = line["recordings"][0]["file"]
            soundfile.write(audio / name, noise, 16000)
    return folder


@pytest.fixture
def prepare(data, tmp_path):
    """Function: prepares `data` into `out`."""

    def run(**options):
        prepare_slurp(
            data / "dataset/slurp", data / "audio", tmp_path / "out", **options
        )

    return run


@pytest.fixture
def edit(data):
    """Function: changes the second line of devel.jsonl."""
    path = data / "dataset/slurp/devel.jsonl"

    def change(how):
        first, second = map(json.loads, path.read_text().splitlines())
        second = how(second) or second
        write_lines(path, [first, second])

    return change


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as fin:
        return list(csv.DictReader(fin))


def recording(data, number):
    return data / f"audio/slurp_real/audio-{number:010d}.flac"


def test_rows(prepare, tmp_path):
    prepare()
    for i, split in enumerate(SPLITS):
        rows = rows_of(tmp_path / f"out/{split}.csv")
        name = f"audio-{2 * i:010d}.flac"
        assert len(rows) == 2
        assert rows[0] == {
            "ID": name,
            "duration": "1.0",
            "wav": f"$data_root/slurp_real/{name}",
            "semantics": "alarm set [time : seven am] [date : today]",
            "transcript": "wake me up at seven am today",
            "intent": "alarm_set",
        }


def test_demo_corpus_round_trip(tmp_path):
    """What the demo annotates is what the csv files say."""
    synthesise_slurp(tmp_path / "demo", 3, 6, 2, 2)
    prepare_slurp(
        tmp_path / "demo/dataset/slurp", tmp_path / "demo/audio", tmp_path
    )
    for split in SPLITS:
        text = (tmp_path / f"demo/dataset/slurp/{split}.jsonl").read_text()
        rows = rows_of(tmp_path / f"{split}.csv")
        for row, line in zip(rows, map(json.loads, text.splitlines())):
            said = parse_semantics(row["semantics"])
            annotated = line["sentence"]
            assert f"{said['scenario']}_{said['action']}" == line["intent"]
            assert row["intent"] == line["intent"]
            assert len(said["entities"]) == len(line["entities"])
            for entity in said["entities"]:
                marked = f"[{entity['type']} : {entity['filler']}]"
                assert marked in line["sentence_annotation"]
            assert row["transcript"] == annotated


def test_several_recordings_of_a_sentence(prepare, edit, data, tmp_path):
    def add(line):
        line["recordings"].append({"file": "audio-9-headset.flac"})

    edit(add)
    soundfile.write(
        data / "audio/slurp_real/audio-9-headset.flac", np.zeros(8000), 16000
    )
    prepare()
    rows = rows_of(tmp_path / "out/devel.csv")
    assert [row["duration"] for row in rows] == ["1.0", "1.0", "0.5"]
    assert rows[1]["semantics"] == rows[2]["semantics"]


def test_fillers_are_lower_case_tokens(prepare, edit, tmp_path):
    """The words are those of the authors' evaluation, not of the annotation."""

    def shout(line):
        line["tokens"][4]["surface"] = "Seven"
        line["sentence_annotation"] = "something else"

    edit(shout)
    prepare()
    row = rows_of(tmp_path / "out/devel.csv")[1]
    assert row["semantics"] == "alarm set [time : seven am] [date : today]"


def test_synthetic_speech_joins_the_training(prepare, data, tmp_path):
    line = release_line(99, "play", "music", "play [music_genre : jazz]")
    write_lines(data / "dataset/slurp/train_synthetic.jsonl", [line])
    name = line["recordings"][0]["file"]
    (data / "audio/slurp_synth").mkdir()
    soundfile.write(data / "audio/slurp_synth" / name, np.zeros(1600), 16000)
    prepare(train_splits=["train", "train_synthetic"])
    rows = rows_of(tmp_path / "out/train.csv")
    assert len(rows) == 3
    assert rows[2]["wav"] == f"$data_root/slurp_synth/{name}"


def test_missing_recordings_are_left_out_and_counted(
    prepare, data, tmp_path, caplog
):
    recording(data, 3).unlink()
    with caplog.at_level(logging.WARNING):
        prepare()
    assert len(rows_of(tmp_path / "out/devel.csv")) == 1
    (warning,) = caplog.messages
    assert "devel: 1 of 2 recordings are missing" in warning
    assert recording(data, 3).name in warning


def test_no_recording_at_all(prepare, data, tmp_path):
    for number in (2, 3):
        recording(data, number).unlink()
    with pytest.raises(
        FileNotFoundError, match="All 2 recordings of devel.*set audio_folder"
    ):
        prepare()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", SPLITS)
def test_missing_split(prepare, data, split):
    (data / f"dataset/slurp/{split}.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{split}\.jsonl does not.*set text_folder"
    ):
        prepare()


def test_nothing_to_train_on(prepare):
    with pytest.raises(ValueError, match="train_splits: nothing to train on"):
        prepare(train_splits=[])


def remove(*path):
    """Function: line -> removes what a path of keys leads to."""

    def change(line):
        for key in path[:-1]:
            line = line[key]
        del line[path[-1]]

    return change


def put(value, *path):
    """Function: line -> sets what a path of keys leads to."""

    def change(line):
        for key in path[:-1]:
            line = line[key]
        line[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (remove("scenario"), "no field 'scenario'"),
        (remove("action"), "no field 'action'"),
        (remove("sentence"), "no field 'sentence'"),
        (remove("tokens"), "no field 'tokens'"),
        (remove("entities"), "no field 'entities'"),
        (remove("recordings"), "no field 'recordings'"),
        (remove("tokens", 3, "surface"), r"no field 'tokens\[3\].surface'"),
        (remove("entities", 1, "type"), r"no field 'entities\[1\].type'"),
        (remove("entities", 0, "span"), r"no field 'entities\[0\].span'"),
        (remove("recordings", 0, "file"), r"no field 'recordings\[0\].file'"),
        (put(7, "action"), "field 'action' is 7, not a str"),
        (put(None, "entities"), "field 'entities' is None, not a list"),
        (put("x", "tokens", 0), r"no field 'tokens\[0\].surface'"),
        (put([7], "entities", 0, "span"), r"span' is \[7\], which are not"),
        (put([], "entities", 0, "span"), r"span' is \[\], which are not"),
        (put("a]", "tokens", 4, "surface"), "cannot be written as semantics"),
        (put("two words", "action"), "cannot be written as semantics"),
        (lambda line: [line], "no field 'tokens'"),
        (
            put("audio-0000000002.flac", "recordings", 0, "file"),
            "audio-0000000002.flac is already in line 1",
        ),
    ],
)
def test_bad_line_is_named(prepare, edit, tmp_path, change, message):
    edit(change)
    with pytest.raises(ValueError, match=rf"devel\.jsonl, line 2: .*{message}"):
        prepare()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "not json", '{"slurp_id": 1'])
def test_unreadable_json_is_named(prepare, data, text):
    path = data / "dataset/slurp/test.jsonl"
    path.write_text(f"{path.read_text()}{text}\n")
    with pytest.raises(
        ValueError, match=r"test\.jsonl, line 3: unreadable JSON"
    ):
        prepare()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a flac file"),
        truncate,
        lambda path: soundfile.write(path, [], 16000),
        lambda path: soundfile.write(path, [], 16000, format="WAV"),
    ],
    ids=["empty", "corrupt", "truncated", "no samples", "WAV, no samples"],
)
def test_bad_audio_is_named(prepare, data, tmp_path, damage):
    damage(recording(data, 1))
    with pytest.raises(
        ValueError, match=r"0001\.flac is empty or corrupt.*counts as missing"
    ):
        prepare()
    assert not (tmp_path / "out").exists()


def test_another_sampling_rate(prepare, data):
    soundfile.write(recording(data, 1), np.zeros(8000), 8000)
    with pytest.raises(
        ValueError, match=r"0001\.flac is sampled at 8000 Hz.*-ar 16000"
    ):
        prepare()


def test_second_call_does_nothing(prepare, data, tmp_path):
    prepare()
    recording(data, 1).unlink()
    prepare()
    assert len(rows_of(tmp_path / "out/train.csv")) == 2
    (tmp_path / "out/slurp_prepare.json").unlink()
    prepare()
    assert len(rows_of(tmp_path / "out/train.csv")) == 1


def test_other_train_splits_are_prepared_anew(prepare, data, tmp_path):
    test_synthetic_speech_joins_the_training(prepare, data, tmp_path)
    prepare(train_splits=["train_synthetic"])
    assert len(rows_of(tmp_path / "out/train.csv")) == 1


def test_skipping(prepare, data, tmp_path):
    (data / "dataset/slurp/train.jsonl").unlink()
    prepare(skip_prep=True)
    assert not (tmp_path / "out").exists()
