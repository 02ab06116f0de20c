"""Runs that are killed, whose disk is full or whose files are torn."""

import random
import re
import shutil
from types import SimpleNamespace

import pytest
from tiny_recipe import Runs, events_of, fill_disk, log_of

from sb_prune.durable import MARK
from sb_prune.export import file_hash
from sb_prune.loading import load_export

SIGKILLED = -9
EPOCHS = 4

# Where a kill may come, as what the events there are called.
CHECKPOINT = r"/CKPT[^/]*(/[\w.-]+)?$"
PLACES = {
    "dense snapshot": r"\w+ save/dense",
    "prune, training": r"batch prune TRAIN",
    "prune, validation": r"batch prune VALID",
    "prune, saving": r"(mkdir|open|save) save/prune" + CHECKPOINT,
    "prune, deleting": r"remove save/prune",
    "cut": r"\w+ save/cut",
    "finetune, training": r"batch finetune TRAIN",
    "finetune, saving": r"(mkdir|open|save) save/finetune" + CHECKPOINT,
    "finetune, deleting": r"remove save/finetune",
    "export": r"(mkdir|open|save|rename) export",
    "export, deleting": r"remove export",
    "evaluation": r"batch finetune TEST",
}
KILLS = 24


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that prune one dense run."""
    dense = tmp_path_factory.mktemp("dense") / "run"
    assert Runs().start(dense) == 0
    return Runs(dense)


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory):
    """What a run ends with if nothing happens, and its events."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert runs.start(folder) == 0
    return SimpleNamespace(hash=exported_hash(folder), events=events_of(folder))


def exported_hash(folder):
    return file_hash(folder / "export/model.ckpt")


def epochs_begun(folder):
    return len(re.findall("EPOCH", log_of(folder)))


def torn(folder):
    return {path.name for path in folder.rglob("torn-*")}


def places(events, name):
    return [i for i, e in enumerate(events) if re.match(PLACES[name], e)]


def assert_mended(folder, undisturbed):
    """The end is that of an undisturbed run, and nothing half is left."""
    load_export(folder / "export")
    assert exported_hash(folder) == undisturbed.hash
    left = {path.name for path in folder.rglob("*") if path.is_dir()}
    assert not [n for n in left if n.endswith((".incomplete", ".earlier"))]
    for name in torn(folder):
        assert re.search(f"WARNING.*is torn.*{re.escape(name)}", log_of(folder))


# -------------------------------------------------------------------- killed


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_anywhere_it_continues(number, runs, undisturbed, tmp_path):
    """Two random points in each place; the lost work is at most an epoch."""
    place = list(PLACES)[number % len(PLACES)]
    at = random.Random(number).choice(places(undisturbed.events, place))
    folder = tmp_path / "run"
    assert runs.start(folder, at) == SIGKILLED
    assert runs.start(folder) == 0, log_of(folder)
    assert_mended(folder, undisturbed)
    assert epochs_begun(folder) <= EPOCHS + 1
    if place.endswith(("saving", "deleting")) and "export" not in place:
        assert len(torn(folder)) == 1
    else:
        assert not torn(folder)
