"""Features as convolutions are those of SpeechBrain."""

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import InputNormalization
from tiny_whisper import write_tiny_whisper

from sb_prune import lobes
from sb_prune.deploy.adapters import plain_attention, rotations, traceable
from sb_prune.deploy.features import LogMel, PlainFbank


@pytest.fixture
def wavs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4001, generator=generator) * 0.1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_mels": 80, "f_min": 20, "f_max": 7600},
        {"n_fft": 512, "win_length": 32, "hop_length": 8},
        {"n_fft": 512},  # a window shorter than the transform
        {"filter_shape": "gaussian"},
        {"requires_grad": True, "param_change_factor": 2.0},
    ],
)
@torch.no_grad()
def test_fbank(wavs, options):
    stock = Fbank(**options)
    assert torch.allclose(PlainFbank(stock)(wavs), stock(wavs), atol=1e-3)


@pytest.mark.parametrize("options", [{"deltas": True}, {"context": True}])
def test_fbank_with_more_than_energies_is_refused(options):
    with pytest.raises(ValueError, match="only log mel energies"):
        PlainFbank(Fbank(**options))


@torch.no_grad()
def test_log_mel(wavs, tmp_path):
    write_tiny_whisper(tmp_path)
    lobe = lobes.Whisper(str(tmp_path), str(tmp_path), context="utterance")
    padded = lobe.pad_or_trim(wavs)
    found, expected = LogMel(lobe)(padded), lobe.log_mel_spectrogram(padded)
    assert torch.allclose(found, expected, atol=1e-4)


def test_normalisation_has_the_statistics(wavs):
    features = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1))
    stock = InputNormalization(norm_type="global")
    stock(features, torch.ones(2))
    stock.eval()
    model = torch.nn.Sequential(stock)
    adapted = traceable(model)
    assert type(adapted[0]) is not InputNormalization
    assert type(model[0]) is InputNormalization
    assert torch.equal(adapted(features + 1), model(features + 1))


def test_a_copy_shares_its_weights():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Fbank())
    copied = traceable(model)
    assert copied[0].weight is model[0].weight
    assert isinstance(copied[1], PlainFbank)


def test_rotations_are_those_of_speechbrain():
    from speechbrain.nnet.attention import PrecomputedRoPESinusoids

    given = (7, 8, torch.float32, torch.device("cpu"))
    ours, theirs = rotations(*given), PrecomputedRoPESinusoids(*given)
    assert torch.allclose(ours.cosines, theirs.cosines, atol=1e-6)
    assert torch.allclose(ours.sines, theirs.sines, atol=1e-6)
    assert torch.equal(ours.index_swap, theirs.index_swap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("given", ["nothing", "causal", "bool", "numbers"])
def test_attention_is_that_of_torch(given, dtype):
    query, key, value = torch.randn(3, 2, 4, 5, 8).to(dtype)
    kept = torch.rand(2, 1, 5, 5) < 0.7
    kept[..., 0] = True
    options = {
        "nothing": {"scale": 0.3},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": kept},
        "numbers": {"attn_mask": torch.randn(2, 1, 5, 5).to(dtype)},
    }[given]
    stock = torch.nn.functional.scaled_dot_product_attention
    within = 1e-5 if dtype is torch.float32 else 2e-3
    torch.testing.assert_close(
        plain_attention(query, key, value, **options),
        stock(query, key, value, **options),
        rtol=within,
        atol=within,
    )


@pytest.mark.parametrize(
    "given, message",
    [
        ({"dropout_p": 0.1}, "dropout"),
        ({"is_causal": True, "attn_mask": torch.ones(5, 5)}, "beside a mask"),
    ],
)
def test_attention_that_is_not_deployed(given, message):
    states = torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match=message):
        plain_attention(states, states, states, **given)
