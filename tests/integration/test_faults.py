"""Runs that are killed, whose disk is full or whose files are torn."""

import os
import random
import re
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
from tiny_recipe import (
    BATCHES,
    Runs,
    events_of,
    fill_disk,
    limit_file_size,
    log_of,
)

from sb_prune import LayerwiseDistillation, LeastSquares, taylor_score
from sb_prune.export.loading import load_export
from sb_prune.support.disk import MARK
from sb_prune.support.hashes import file_hash

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
    "record": r"\w+ save/run.json",
    "evaluation": r"batch finetune TEST",
}
HALVED = rf"(open|save|remove) save/(prune|finetune){CHECKPOINT}"


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
    return ending(folder)


def ending(folder):
    return SimpleNamespace(
        folder=folder, hash=exported_hash(folder), events=events_of(folder)
    )


def exported_hash(folder):
    return file_hash(folder / "export/model.ckpt")


def epochs_begun(folder):
    return len(re.findall("EPOCH", log_of(folder)))


def torn(folder):
    return {path.name for path in folder.rglob("torn-*")}


def places(events, name):
    place = {**PLACES, **PLACES_OF_LAYERS}[name]
    return [i for i, e in enumerate(events) if re.match(place, e)]


def assert_mended(folder, undisturbed):
    """The end is that of an undisturbed run, and nothing half is left."""
    load_export(folder / "export")
    assert exported_hash(folder) == undisturbed.hash
    left = {path.name for path in folder.rglob("*") if path.is_dir()}
    assert not [n for n in left if n.endswith((".incomplete", ".earlier"))]
    for name in torn(folder):
        assert re.search(f"WARNING.*is torn.*{re.escape(name)}", log_of(folder))


# -------------------------------------------------------------------- killed


@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_it_continues(place, runs, undisturbed, tmp_path):
    """The end has the same bits; the lost work is at most an epoch."""
    at = random.Random(place).choice(places(undisturbed.events, place))
    folder = tmp_path / "run"
    assert runs.start(folder, at) == SIGKILLED
    assert runs.start(folder) == 0, log_of(folder)
    assert_mended(folder, undisturbed)
    assert epochs_begun(folder) <= EPOCHS + 1
    halved = re.match(HALVED, undisturbed.events[at])
    assert len(torn(folder)) == (1 if halved else 0)


@pytest.mark.parametrize("number", range(2))
def test_killed_twice_it_continues(number, runs, undisturbed, tmp_path):
    """The second kill comes while the rerun recovers, or soon after."""
    draw = random.Random(100 + number)
    folder = tmp_path / "run"
    first = draw.choice(places(undisturbed.events, "finetune, saving"))
    assert runs.start(folder, first) == SIGKILLED
    assert runs.start(folder, at=draw.randrange(6)) == SIGKILLED
    assert runs.start(folder) == 0, log_of(folder)
    assert_mended(folder, undisturbed)
    assert epochs_begun(folder) <= EPOCHS + 2


def test_an_export_is_written_once_per_result(undisturbed):
    """The last epoch is the best one here."""
    assert undisturbed.events.count("rename export") == 1


@pytest.fixture(scope="module")
def rerun(runs, undisturbed, tmp_path_factory):
    """The same command once more replaces the export."""
    folder = tmp_path_factory.mktemp("rerun") / "run"
    shutil.copytree(undisturbed.folder, folder)
    assert runs.start(folder) == 0, log_of(folder)
    return ending(folder)


@pytest.mark.parametrize(
    "event", ["rename export.earlier", "rename export", "remove export.*"]
)
def test_killed_between_two_exports(event, runs, undisturbed, rerun, tmp_path):
    """An export stands whole, or not at all."""
    at = max(i for i, e in enumerate(rerun.events) if re.match(event + "$", e))
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.folder, folder)
    assert runs.start(folder, at) == SIGKILLED
    if (folder / "export").exists():
        load_export(folder / "export")
    assert runs.start(folder) == 0, log_of(folder)
    assert_mended(folder, undisturbed)
    assert epochs_begun(folder) == 0


# ------------------------------------- layers left out, and pruning once more

PLACES_OF_LAYERS = {
    "choice": r"\w+ save/layers.json",
    "train, training": r"batch save TRAIN",
    "train, saving": rf"(mkdir|open|save) save{CHECKPOINT}",
    "train, deleting": r"remove save/CKPT",
    "train, evaluation": r"batch save TEST",
}
PRUNES = ("dense snapshot", "prune, training", "cut", "finetune, training")
VARIANTS = {
    "again": ("record", *PRUNES, "export"),
    "layers": ("record", "choice", *PRUNES, "export"),
    "layers alone": ("record", *PLACES_OF_LAYERS, "export"),
    "layers taught": (*PLACES_OF_LAYERS, "export"),
    "refitted": PRUNES,
}


@pytest.fixture(scope="module")
def variants(runs, tmp_path_factory):
    """What else a run may begin with, as changes in its block."""
    first = tmp_path_factory.mktemp("first") / "run"
    assert runs.start(first, target=0.3) == 0, log_of(first)
    return {
        "again": {"start_from": str(first / "export")},
        "layers": {"layers_removed": 1, "target": 0.6},
        "layers alone": {"layers_removed": 1, "alone": True},
        "layers taught": {
            "layers_removed": 1,
            "alone": True,
            "distillation": partial(LayerwiseDistillation, outputs=["lin"]),
        },
        "refitted": {
            "gate_optimizer": None,
            "score": taylor_score,
            "refit": partial(LeastSquares, utterances=4),
            "prune_steps": BATCHES + 2,
        },
    }


@pytest.fixture(scope="module")
def endings(runs, variants, tmp_path_factory):
    """What a run of each variant ends with if nothing happens."""
    found = {}
    for name, block in variants.items():
        folder = tmp_path_factory.mktemp(name) / "run"
        assert runs.start(folder, **block) == 0, log_of(folder)
        cuts = 2 if name in ("again", "layers") else 1
        assert len(load_export(folder / "export").steps) == cuts
        found[name] = ending(folder)
    return found


@pytest.mark.parametrize(
    "name, place",
    [(name, place) for name in VARIANTS for place in VARIANTS[name]],
)
def test_a_variant_killed_anywhere_continues(
    name, place, runs, variants, endings, tmp_path
):
    found = places(endings[name].events, place)
    at = random.Random(f"{name} {place}").choice(found)
    folder = tmp_path / "run"
    assert runs.start(folder, at, **variants[name]) == SIGKILLED
    assert runs.start(folder, **variants[name]) == 0, log_of(folder)
    assert_mended(folder, endings[name])
    assert epochs_begun(folder) <= EPOCHS + 1


@pytest.mark.parametrize(
    "name, event, named",
    [
        ("again", r"\w+ save/run.json", "save/run.json"),
        ("layers", r"\w+ save/layers.json", "save/layers.json"),
        ("layers alone", r"\w+ save/layers.json", "save/layers.json"),
        ("layers alone", rf"save save{CHECKPOINT}", "save"),
        ("layers alone", "open export", "export"),
    ],
)
def test_a_variant_whose_disk_is_full(
    name, event, named, runs, variants, endings, tmp_path
):
    events = endings[name].events
    at = next(i for i, e in enumerate(events) if re.match(event, e))
    folder = tmp_path / "run"
    assert runs.start(folder, at, fill_disk, **variants[name]) == 1
    said = log_of(folder).strip().splitlines()[-1]
    assert re.match(rf"OSError: {folder}/{named} cannot be written", said)
    assert runs.start(folder, **variants[name]) == 0, log_of(folder)
    assert_mended(folder, endings[name])


def test_the_start_may_go_once_the_run_has_begun(
    runs, variants, endings, tmp_path
):
    """What was done to the model stands in run.json, its weights in dense."""
    export = tmp_path / "first"
    shutil.copytree(variants["again"]["start_from"], export)
    block = {"start_from": str(export)}
    events = endings["again"].events
    at = places(events, "finetune, training")[-1]
    folder = tmp_path / "run"
    assert runs.start(folder, at, **block) == SIGKILLED
    shutil.rmtree(export)
    assert runs.start(folder, **block) == 0, log_of(folder)
    assert_mended(folder, endings["again"])


OFTEN = {"ckpt_interval_steps": 1}  # SpeechBrain saves after every batch


@pytest.fixture(scope="module")
def saved_often(runs, tmp_path_factory):
    """An undisturbed run with checkpoints within its epochs."""
    folder = tmp_path_factory.mktemp("often") / "run"
    assert runs.start(folder, options=OFTEN) == 0
    return ending(folder)


@pytest.mark.parametrize("phase", ["prune, training", "finetune, training"])
def test_killed_in_mid_epoch_it_continues_there(
    phase, runs, saved_often, tmp_path
):
    batches = places(saved_often.events, phase)
    folder = tmp_path / "run"
    assert runs.start(folder, at=batches[2], options=OFTEN) == SIGKILLED
    assert runs.start(folder, options=OFTEN) == 0, log_of(folder)
    assert_mended(folder, saved_often)
    assert len(places(events_of(folder), phase)) == len(batches) - 2


# ----------------------------------------------------------------- full disk


@pytest.mark.parametrize(
    "kind, place, named",
    [
        ("save", "dense snapshot", "save/dense.incomplete"),
        ("save", "prune, saving", "save/prune"),
        ("open", "cut", "save/cut.incomplete"),
        ("open", "finetune, saving", "save/finetune"),
        ("save", "export", "export"),
    ],
)
def test_full_disk_is_said_and_mended(
    kind, place, named, runs, undisturbed, tmp_path
):
    at = next(
        i
        for i in reversed(places(undisturbed.events, place))
        if undisturbed.events[i].startswith(kind)
    )
    folder = tmp_path / "run"
    assert runs.start(folder, at, fill_disk) == 1
    said = log_of(folder).strip().splitlines()[-1]
    assert re.match(rf"OSError: {folder}/{named} cannot be written", said)
    assert "make room, then run the same command again" in said
    assert runs.start(folder) == 0, log_of(folder)
    assert_mended(folder, undisturbed)
    assert epochs_begun(folder) <= EPOCHS + 1


def test_disk_that_is_full_within_a_file(runs, undisturbed, tmp_path):
    """What torch says when the system refuses to write on."""
    at = places(undisturbed.events, "prune, saving")[0]
    folder = tmp_path / "run"
    assert runs.start(folder, at, limit_file_size) == 1
    assert "save/prune cannot be written (" in log_of(folder)
    assert runs.start(folder) == 0, log_of(folder)
    assert_mended(folder, undisturbed)


# ---------------------------------------------------------------- torn files


@pytest.fixture(scope="module")
def halfway(runs, undisturbed, tmp_path_factory):
    """A run killed in its last epoch."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    last = places(undisturbed.events, "finetune, training")[-1]
    assert runs.start(folder, at=last) == SIGKILLED
    return folder


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def remove(path):
    path.unlink()


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    "file, damage, lost",
    [
        ("dense/CKPT*/model.ckpt", truncate, "model.ckpt has"),
        ("cut/CKPT*/CKPT.yaml", empty, "CKPT.yaml has 0 of"),
        ("cut/CKPT*/model.ckpt", truncate, "model.ckpt has"),
        ("finetune/CKPT*/model.ckpt", truncate, "model.ckpt has"),
        ("finetune/CKPT*/optimizer.ckpt", remove, "optimizer.ckpt is missing"),
        (f"finetune/CKPT*/{MARK}", truncate, "was not saved to its end"),
    ],
)
def test_files_torn_later_are_set_aside(
    file, damage, lost, runs, halfway, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(halfway, folder)
    (path,) = (folder / "save").glob(file)
    damage(path)
    assert runs.start(folder) == 0, log_of(folder)
    assert len(torn(folder)) == 1
    assert re.search(f"WARNING.*is torn: .*{lost}", log_of(folder))
    assert_mended(folder, undisturbed)
    assert epochs_begun(folder) <= 2


@pytest.mark.parametrize("phase", ["dense", "cut", "finetune"])
def test_files_that_lie_are_named(phase, runs, halfway, tmp_path):
    """Files have the right size, but other content than what was saved."""
    folder = tmp_path / "run"
    shutil.copytree(halfway, folder)
    (path,) = (folder / "save" / phase).glob("CKPT*/model.ckpt")
    zero(path)
    assert runs.start(folder) == 1
    said = log_of(folder).strip().splitlines()[-1]
    assert f"{path.parent} cannot be loaded: it is damaged, or" in said


def test_damaged_export_is_written_anew(runs, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.folder, folder)
    truncate(folder / "export/hyperparams.yaml")
    remove(folder / "export/model.ckpt")
    assert runs.start(folder) == 0, log_of(folder)
    assert_mended(folder, undisturbed)
    assert epochs_begun(folder) == 0
