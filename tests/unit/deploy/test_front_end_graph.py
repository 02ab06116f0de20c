"""Where an encoder is split, so that its features are a graph of their own."""

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.nnet.containers import LengthsCapableSequential
from speechbrain.processing.features import InputNormalization

from sb_prune.deploy.adapters import traceable
from sb_prune.deploy.front_end import split_features
from sb_prune.deploy.runtime.settings import DeployError


def encoder_of(**layers):
    layers["linear"] = torch.nn.Linear(80, 3)
    return traceable(LengthsCapableSequential(**layers).eval())


@pytest.mark.parametrize("norm_type", ["sentence", "global", None])
def test_both_parts_compute_what_the_whole_does(norm_type):
    layers = {"compute_features": Fbank(n_mels=80)}
    if norm_type is not None:
        layers["normalize"] = InputNormalization(norm_type=norm_type)
        layers["normalize"].train()(torch.randn(2, 9, 80), torch.ones(2))
    encoder = encoder_of(**layers)
    features, rest = split_features(encoder)
    assert [*features] == [*layers] and [*rest] == ["linear"]
    wavs, lens = torch.randn(2, 4000), torch.tensor([1.0, 0.6])
    expected = encoder(wavs, lens)
    assert torch.equal(rest(features(wavs, lens), lens), expected)


@pytest.mark.parametrize(
    "encoder", [encoder_of(), encoder_of(before=Fbank()).linear]
)
def test_an_encoder_of_waveforms_has_no_features(encoder):
    with pytest.raises(DeployError, match="begins with Linear; only"):
        split_features(encoder)
