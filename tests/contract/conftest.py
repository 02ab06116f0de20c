"""Models of all architectures, and what they compute."""

import pytest


@pytest.fixture(scope="session")
def make_model(make_asr, make_wav2vec2):
    """Factory of a model of any family, by default a `TransformerASR`."""

    def make(family=None, **options):
        if family is None:
            return make_asr(**options)
        return make_wav2vec2(family, **options)

    return make


@pytest.fixture(scope="session")
def compute(encode, transcribe, encode_waveform):
    """Function: model -> all it outputs (B, steps, d) for fixed input."""

    def run(model, *arguments):
        if not hasattr(model, "custom_src_module"):
            return encode_waveform(model, *arguments)
        if hasattr(model, "decoder"):
            return transcribe(model, *arguments)
        return encode(model, *arguments)

    return run
