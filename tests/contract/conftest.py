"""Models of all architectures, and what they compute."""

import pytest
import torch
from toy_architecture import ToyEncoder

FEATURES = 6


def make_toy(layers=2, seed=0, dropout=0.0):
    """A toy encoder in eval mode, every weight random."""
    model = ToyEncoder(FEATURES, layers, dropout=dropout)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def encode_toy(model, batch=3, frames=13, padded=True):
    """(B, T, d) of fixed random input, zero where an utterance has ended."""
    generator = torch.Generator().manual_seed(99)
    source = torch.randn(4, frames, FEATURES, generator=generator)[:batch]
    if padded:
        steps = torch.arange(frames) / frames
        over = steps >= torch.linspace(1, 0.5, batch)[:, None]
        source = source.masked_fill(over[..., None], 0)
    return model(source)


@pytest.fixture(scope="session")
def make_model(make_asr, make_wav2vec2):
    """Factory of a model of any family, by default a `TransformerASR`."""

    def make(family=None, **options):
        if family == "toy":
            return make_toy(**options)
        if family is None:
            return make_asr(**options)
        return make_wav2vec2(family, **options)

    return make


@pytest.fixture(scope="session")
def compute(encode, transcribe, encode_waveform):
    """Function: model -> all it outputs (B, steps, d) for fixed input."""

    def run(model, *arguments):
        if isinstance(model, ToyEncoder):
            return encode_toy(model, *arguments)
        if not hasattr(model, "custom_src_module"):
            return encode_waveform(model, *arguments)
        if hasattr(model, "decoder"):
            return transcribe(model, *arguments)
        return encode(model, *arguments)

    return run
