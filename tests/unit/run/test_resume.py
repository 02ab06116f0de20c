"""Resume points: the generators go on, and a file runs no code."""

import random
from pathlib import Path

import numpy
import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from sb_prune.run.resume import RESUME_POINT, make_resumable_


@pytest.fixture
def checkpointer(tmp_path):
    """Resumable, in an empty folder."""
    checkpointer = Checkpointer(tmp_path / "save")
    make_resumable_(checkpointer)
    return checkpointer


def draws():
    """Draws from every global generator; NumPy keeps a second Gaussian."""
    return (
        torch.rand(3).tolist(),
        numpy.random.randn(),
        numpy.random.rand(3).tolist(),
        random.gauss(0, 1),
        random.random(),
    )


def test_generators_go_on(checkpointer):
    draws()
    checkpointer.save_checkpoint()
    first = draws()
    assert draws() != first
    checkpointer.recover_if_possible()
    assert draws() == first


class Touching:
    """What an attacker would put into a file: loading it runs a function."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_runs_no_code(checkpointer, tmp_path):
    saved = checkpointer.save_checkpoint().path / f"{RESUME_POINT}.ckpt"
    bad = {"random": [Touching(tmp_path / "touched")]}
    torch.save(bad, saved)
    with pytest.raises(ValueError, match="cannot be loaded: it is damaged"):
        checkpointer.recover_if_possible()
    assert not (tmp_path / "touched").exists()
    torch.load(saved, weights_only=False)
    assert (tmp_path / "touched").exists()
