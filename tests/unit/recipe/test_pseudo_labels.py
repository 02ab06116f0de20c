"""Pseudo-labels are written once, whatever happens, and read with care."""

import json

import pytest
import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from sb_prune.recipe.pseudo_labels import (
    read_pseudo_labels,
    write_pseudo_labels,
)

NAMES = [f"utt{i}" for i in range(7)]
SETTINGS = {"whisper_hub": "openai/whisper-base", "language": "en"}


class Model:
    """Writes the transcript, with a longer end for longer batches.

    So texts depend on the batch, as they may in a real model.
    """

    def __init__(self, fails_at=None):
        self.asked = []
        self._fails_at = fails_at

    def transcribe(self, batch):
        if len(self.asked) == self._fails_at:
            raise KeyboardInterrupt
        self.asked.append(list(batch.id))
        torch.rand(1)
        return [f' {wrd},\n"{len(batch.id)}" \u00e9' for wrd in batch.wrd]


def data(names=NAMES):
    rows = {
        name: {
            "sig": torch.ones(10 + i),
            "duration": float(1 + i),
            "wrd": f"{name} says this",
        }
        for i, name in enumerate(names)
    }
    return DynamicItemDataset(rows, output_keys=["sig"])


def write(path, model, dataset=None, **settings):
    write_pseudo_labels(
        path,
        dataset or data(),
        model.transcribe,
        lambda text: text.replace(",", ""),
        settings={**SETTINGS, **settings},
        max_batch_length=12,
        max_batch_ex=3,
    )


@pytest.fixture
def written(tmp_path):
    """A csv file that was written in one go."""
    path = tmp_path / "undisturbed/labels.csv"
    path.parent.mkdir()
    write(path, Model())
    return path


def test_batches_are_of_about_the_same_length(tmp_path):
    model, dataset = Model(), data()
    write(tmp_path / "labels.csv", model, dataset)
    assert model.asked == [
        ["utt6"],
        ["utt5", "utt4"],
        ["utt3", "utt2", "utt1"],
        ["utt0"],
    ]
    assert list(dataset[0]) == ["sig"]


@pytest.mark.parametrize("torn", ["", "utt3,some te", 'utt3,"some', "utt3,x,1"])
@pytest.mark.parametrize("fails_at", range(4))
def test_a_killed_run_goes_on_where_it_was(written, tmp_path, fails_at, torn):
    """To the same bytes; no batch is transcribed twice or in another one."""
    path = tmp_path / "labels.csv"
    first, second = Model(fails_at), Model()
    with pytest.raises(KeyboardInterrupt):
        write(path, first)
    assert not path.exists()
    with open(tmp_path / "labels.csv.part0", "a") as part:
        part.write(torn)
    write(path, second)
    assert len(first.asked) == fails_at
    assert len(first.asked) + len(second.asked) == 4
    assert path.read_bytes() == written.read_bytes()
    assert sorted(f.name for f in tmp_path.iterdir() if f.is_file()) == [
        "labels.csv",
        "labels.json",
    ]


def test_what_another_process_did_is_used(written, tmp_path):
    """A run of two processes is continued by one."""
    path, model = tmp_path / "labels.csv", Model(2)
    with pytest.raises(KeyboardInterrupt):
        write(path, model)
    lines = (tmp_path / "labels.csv.part0").read_text().splitlines(True)
    (tmp_path / "labels.csv.part0").write_text("".join(lines[:1]))
    (tmp_path / "labels.csv.part1").write_text("".join(lines[1:]))
    again = Model()
    write(path, again)
    assert len(again.asked) == 2
    assert path.read_bytes() == written.read_bytes()


def test_what_is_written_stays(written):
    before, model = written.stat().st_mtime_ns, Model()
    write(written, model)
    assert not model.asked and written.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="with whisper_hub: openai/whisper-ba"):
        write(written, model, whisper_hub="openai/whisper-small")


def test_labels_from_elsewhere(tmp_path):
    """A user may bring a file, e.g. of a larger model."""
    path, model = tmp_path / "labels.csv", Model()
    path.write_text("ID,text,WER\nutt0,Hello.,\n")
    write(path, model)
    assert not model.asked
    assert read_pseudo_labels(path, data(["utt0"]), 10) == {"utt0": "Hello."}
    path.write_text("ID,text\nutt0,Hello.\n")
    assert read_pseudo_labels(path, data(["utt0"]), 10) == {"utt0": "Hello."}
    path.write_text("ID,words\nutt0,Hello.\n")
    with pytest.raises(ValueError, match="has no column text; write ID, text"):
        read_pseudo_labels(path, data(["utt0"]), 10)


def test_generators_stay(tmp_path):
    state = torch.get_rng_state()
    write(tmp_path / "labels.csv", Model())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_differs_is_left_out(written):
    """Each label has one word or two that nobody said."""
    labels = read_pseudo_labels(written, data(), 67)
    assert labels["utt0"] == 'utt0 says this, "1" \u00e9'
    assert list(labels) == NAMES
    with pytest.raises(ValueError, match="max_wer: 10: each pseudo-label in"):
        read_pseudo_labels(written, data(), 10)


def test_other_data_are_refused(written):
    with pytest.raises(ValueError, match="has no label of new: it was made"):
        read_pseudo_labels(written, data(["new", *NAMES]), 100)


def test_the_settings_lie_beside_it(written):
    assert json.loads(written.with_suffix(".json").read_text()) == SETTINGS
