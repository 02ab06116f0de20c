"""What pruning starts from, and what it refuses to start from."""

import os

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from sb_prune.run.snapshots import load_dense


def linear(size=2):
    return {"model": torch.nn.Linear(size, size)}


@pytest.fixture
def dense(tmp_path):
    """A save folder with three checkpoints; the second is the best."""
    checkpointer = Checkpointer(tmp_path / "save", linear())
    for step, error in enumerate([3.0, 1.0, 2.0]):
        meta = {"WER": error, "unixtime": step}
        checkpointer.save_checkpoint(meta, name=str(step))
    return tmp_path / "save"


@pytest.mark.parametrize(
    "keys, name",
    [
        ({}, "CKPT+2"),
        ({"min_key": "WER"}, "CKPT+1"),
        ({"max_key": "WER"}, "CKPT+0"),
    ],
)
def test_the_asked_checkpoint_is_taken(keys, name, dense):
    assert load_dense(dense, linear(), **keys).name == name


def test_one_checkpoint_can_be_named(dense):
    assert load_dense(dense / "CKPT+0", linear()).name == "CKPT+0"


@pytest.mark.parametrize("content", ["", "just words", "WER: [1", "WER: 1.0"])
def test_a_damaged_meta_file_is_named(content, dense):
    (dense / "CKPT+0/CKPT.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"start_from: .*CKPT\+0/CKPT.yaml is"):
        load_dense(dense, linear())


def test_a_truncated_file_is_named(dense):
    os.truncate(dense / "CKPT+2/model.ckpt", 100)
    with pytest.raises(ValueError, match=r"start_from: .*CKPT\+2 .*is damaged"):
        load_dense(dense, linear())


def test_other_shapes_are_refused(dense):
    with pytest.raises(ValueError, match="does not fit the model in this YAML"):
        load_dense(dense, linear(3))


def test_a_checkpoint_without_the_file_is_passed_over(dense):
    (dense / "CKPT+2/model.ckpt").unlink()
    assert load_dense(dense, linear()).name == "CKPT+1"


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="write the save folder of a"):
        load_dense(tmp_path, linear())


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    with pytest.raises(FileNotFoundError, match="write the save folder of a"):
        load_dense(tmp_path / "model.ckpt", linear())
