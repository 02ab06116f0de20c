"""Checkpoints: whole, or known to be torn."""

import os

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from sb_prune.support.disk import MARK, guard_, rename_, set_torn_aside


@pytest.fixture
def checkpointer(tmp_path):
    """A guarded one, of one module."""
    made = Checkpointer(tmp_path / "save", {"model": torch.nn.Linear(2, 2)})
    guard_(made)
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_checkpoints_stay(checkpointer):
    checkpointer.save_checkpoint()
    before = names(checkpointer.checkpoints_dir)
    set_torn_aside(checkpointer.checkpoints_dir)
    assert names(checkpointer.checkpoints_dir) == before


@pytest.mark.parametrize("file", ["model.ckpt", "CKPT.yaml", MARK])
def test_a_missing_file_is_torn(file, checkpointer):
    saved = checkpointer.save_checkpoint(name="a")
    (saved.path / file).unlink()
    set_torn_aside(checkpointer.checkpoints_dir)
    assert names(checkpointer.checkpoints_dir) == ["torn-CKPT+a"]


def test_a_truncated_file_is_torn(checkpointer):
    saved = checkpointer.save_checkpoint(name="a")
    file = saved.path / "model.ckpt"
    os.truncate(file, file.stat().st_size - 1)
    set_torn_aside(checkpointer.checkpoints_dir)
    assert names(checkpointer.checkpoints_dir) == ["torn-CKPT+a"]


def test_torn_ones_of_one_name_stay_apart(checkpointer):
    for _ in range(3):
        saved = checkpointer.save_checkpoint(name="a")
        (saved.path / MARK).unlink()
        set_torn_aside(checkpointer.checkpoints_dir)
    assert names(checkpointer.checkpoints_dir) == [
        "torn-CKPT+a",
        "torn-CKPT+a1",
        "torn-CKPT+a2",
    ]


def test_a_checkpoint_that_is_written_over_is_torn_meanwhile(checkpointer):
    path = checkpointer.save_checkpoint(name="a").path
    seen = []
    checkpointer.custom_save_hooks["model"] = lambda *_: seen.append(
        (path / MARK).exists()
    )
    checkpointer.save_checkpoint(name="a")
    assert seen == [False]
    assert (path / MARK).exists()


def test_meta_and_kind_are_kept(checkpointer):
    saved = checkpointer.save_checkpoint({"WER": 3.0}, end_of_epoch=False)
    meta = checkpointer.find_checkpoint().meta
    assert meta == saved.meta
    assert (meta["WER"], meta["end-of-epoch"]) == (3.0, False)


@pytest.fixture
def flushed(monkeypatch):
    """Names of what reached the disk, in order."""
    order = []
    stock = os.fsync

    def fsync(descriptor):
        order.append(
            os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        )
        stock(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return order


def test_the_mark_reaches_the_disk_last(checkpointer, flushed):
    checkpointer.save_checkpoint(name="a")
    assert {"model.ckpt", "CKPT.yaml"} <= set(flushed[: flushed.index(MARK)])
    assert flushed[-2:] == [MARK, "CKPT+a"]


def test_renaming_flushes_first_the_files_then_the_name(tmp_path, flushed):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_text("x")
    rename_(tmp_path / "new", tmp_path / "final")
    assert flushed == ["file", "new", tmp_path.name]
    assert (tmp_path / "final/file").read_text() == "x"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file\nframe #0"),
    ],
    ids=["OSError", "RuntimeError"],
)
def test_a_full_disk_is_explained(error, checkpointer):
    def fail(*_):
        raise error

    checkpointer.custom_save_hooks["model"] = fail
    with pytest.raises(OSError) as raised:
        checkpointer.save_checkpoint()
    message = str(raised.value)
    assert str(checkpointer.checkpoints_dir) in message
    assert "intact: if the disk is full make room" in message
    assert "frame" not in message


def test_a_checkpoint_of_another_model_is_named(checkpointer):
    checkpointer.save_checkpoint(name="a")
    checkpointer.recoverables["model"] = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="cannot be loaded: it is") as raised:
        checkpointer.recover_if_possible()
    assert "CKPT+a cannot" in str(raised.value)
    assert "size mismatch" in str(raised.value)
