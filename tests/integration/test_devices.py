"""A run on another device than the CPU: no tensor of it stays behind."""

import json
from pathlib import Path

import pytest
from fork_server import run_forked

from sb_prune.export.loading import load_export

SCRIPT = Path(__file__).with_name("device_run.py")


# Family -> how often a step may wait for the device: to see whether losses and
# gradients are finite, and where SpeechBrain's lobe makes its padding mask.
WAITS = {"conformer": 5, "decoder": 5, "wav2vec2": 8}


@pytest.mark.parametrize("family", WAITS)
def test_a_whole_run_on_one_device(family, tmp_path):
    done = run_forked(SCRIPT, family, tmp_path)
    assert done.returncode == 0, done.stderr
    for export in ("pruned/export", "pruned/export_0.2", "again/export_0.5"):
        assert (tmp_path / export / "hyperparams.yaml").is_file()
    assert len(load_export(tmp_path / "again/export").steps) == 2
    waits = json.loads(done.stdout.splitlines()[-1])["waits"]
    assert waits
    for step in waits:
        assert len(step) <= WAITS[family], step


@pytest.mark.parametrize("mutant", ["gates", "distillation"])
def test_a_tensor_left_behind_is_found(mutant, tmp_path):
    done = run_forked(SCRIPT, "conformer", tmp_path, "--mutant", mutant)
    assert done.returncode != 0
    assert "tensors on spare:0 and on cpu" in done.stderr
