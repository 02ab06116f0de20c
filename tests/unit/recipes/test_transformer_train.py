"""What the recipe of the Conformer computes of Whisper's frames."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sb_prune.distillation import ProjectedDistillation

RECIPE = Path(__file__).parents[3] / "recipes/LibriSpeech/ASR/transformer"


@pytest.fixture
def distance(monkeypatch):
    """Function: student's frames, Whisper's, lengths -> from_whisper."""
    monkeypatch.syspath_prepend(RECIPE)
    spec = importlib.util.spec_from_file_location(
        "conformer_train", RECIPE / "train.py"
    )
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    sys.modules.pop("librispeech_prepare", None)  # other recipes have it too
    same = ProjectedDistillation(4, 4, layers=[0], identity=True)

    def measure(own, goal, lengths):
        brain = SimpleNamespace(
            hparams=SimpleNamespace(whisper=lambda _: goal, whisper_weight=1.0),
            modules=SimpleNamespace(from_whisper=same),
        )
        return float(recipe.ASR.from_whisper(brain, own, None, lengths))

    return measure


def test_two_frames_of_whisper_are_one(distance):
    """The least is that of the same frames, at their places."""
    torch.manual_seed(0)
    own = torch.randn(2, 6, 4)
    goal = own.repeat_interleave(2, dim=1)
    for frames in (12, 11):  # of the last two, one is missing
        lengths = torch.ones(2)
        same = distance(own, goal[:, :frames], lengths)
        assert same == pytest.approx(-1, abs=1e-5)  # L1 0, cosine 1
        assert distance(own.roll(1, 1), goal[:, :frames], lengths) > 0


def test_padding_does_not_count(distance):
    torch.manual_seed(0)
    own, lengths = torch.randn(2, 6, 4), torch.tensor([1.0, 0.5])
    goal = own.repeat_interleave(2, dim=1)
    own[1, 3:] += 100
    assert distance(own, goal, lengths) == pytest.approx(-1, abs=1e-5)
    own[1, 2] += 100
    assert distance(own, goal, lengths) > 1
