"""Models of all architectures, and what they compute."""

import pytest
import torch
import transformers
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


MELS, TOKENS, VOCABULARY = 5, 6, 11


def make_whisper(
    attention="sdpa", layers=2, seed=0, dropout=0.0, frames=26, decoder=True
):
    """A small Whisper in eval mode, every weight random."""
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=MELS,
        d_model=16,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
        max_source_positions=frames // 2,
        max_target_positions=2 * TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation=attention,
    )
    model = transformers.WhisperModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    if not decoder:
        model.decoder = None
    return model.eval()


def encode_mel(model, batch=3, frames=26, padded=True):
    """(B, S + T, d): encoder and decoder, of fixed random input."""
    generator = torch.Generator().manual_seed(99)
    mel = torch.randn(4, MELS, frames, generator=generator)[:batch]
    tokens = torch.randint(3, VOCABULARY, (4, TOKENS), generator=generator)
    mask = None
    if padded:
        ends = torch.linspace(1, 0.5, batch)[:, None]
        over = torch.arange(frames) / frames >= ends
        mel = mel.masked_fill(over[:, None], -1.0)  # silence; it has no mask
        mask = (torch.arange(TOKENS) / TOKENS < ends).long()
    encoded = model.encoder(mel).last_hidden_state
    if model.decoder is None:
        return encoded
    decoded = model.decoder(
        tokens[:batch],
        attention_mask=mask,
        encoder_hidden_states=encoded,
        use_cache=False,
    ).last_hidden_state
    if padded:  # what follows an utterance depends on nothing
        decoded = decoded * mask[..., None]
    return torch.cat([encoded, decoded], dim=1)


@pytest.fixture(scope="session")
def make_model(make_asr, make_wav2vec2):
    """Factory of a model of any family, by default a `TransformerASR`."""
    own = {"toy": make_toy, "Whisper": make_whisper}

    def make(family=None, **options):
        if family in own:
            return own[family](**options)
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
        if isinstance(model, transformers.WhisperModel):
            return encode_mel(model, *arguments)
        if not hasattr(model, "custom_src_module"):
            return encode_waveform(model, *arguments)
        if hasattr(model, "decoder"):
            return transcribe(model, *arguments)
        return encode(model, *arguments)

    return run
