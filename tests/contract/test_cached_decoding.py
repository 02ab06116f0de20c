"""Whisper's decoder with a cache of keys and values, after all kinds of cuts.

It asks its first layer how many tokens there are already, so nothing that goes
may take this answer along.
"""

import pytest
import torch
import transformers
from conftest import MELS, TOKENS, VOCABULARY, make_whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from sb_prune import whisper_structures
from sb_prune.architectures import whisper
from sb_prune.architectures.whole_layers import layer_plan, layer_structures
from sb_prune.cut.masking import attach_, detach_
from sb_prune.cut.surgery import cut_
from sb_prune.declare.plan import full_plan

FRAMES, LAYERS = 26, 3


@pytest.fixture
def encoded():
    """(3, S, d), what the decoder attends to."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, FRAMES // 2, 16, generator=generator)


@pytest.fixture
def tokens():
    """(3, T)"""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(3, VOCABULARY, (3, TOKENS), generator=generator)


@torch.no_grad()
def at_once(model, encoded, tokens):
    """(B, T, d) without a cache."""
    return model.decoder(
        tokens, encoder_hidden_states=encoded, use_cache=False
    ).last_hidden_state


@torch.no_grad()
def token_by_token(model, encoded, tokens, order=None):
    """(B, T, d) with a cache, whose utterances are put in another order."""
    cache, outputs = None, []
    for t in range(tokens.shape[1]):
        found = model.decoder(
            tokens[:, t : t + 1],
            encoder_hidden_states=encoded,
            past_key_values=cache,
            use_cache=True,
        )
        cache = found.past_key_values
        outputs.append(found.last_hidden_state)
        if order is not None and t == 1:
            cache.reorder_cache(order)
            tokens, encoded = tokens[order], encoded[order]
            outputs = [output[order] for output in outputs]
    return torch.cat(outputs, dim=1)


def gone(model, *endings):
    """Cuts structures of the decoder whose names end like this."""
    declaration = whisper_structures(model, sides=["decoder"])
    plan = full_plan(declaration)
    for structure in declaration.structures:
        if structure.name.endswith(endings):
            plan.keep[structure.name][:] = False
    cut_(declaration, plan)


CUTS = {
    "first self-attention": ["layers.0.self_attn"],
    "all self-attention": ["self_attn"],
    "all cross-attention": ["encoder_attn"],
    "first layer": ["layers.0"],
    "all layers": ["layers.0", "layers.1", "layers.2"],
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("endings", CUTS.values(), ids=CUTS)
def test_modules_that_go(attention, endings, encoded, tokens):
    model = make_whisper(attention, layers=LAYERS)
    gone(model, *endings)
    whole = at_once(model, encoded, tokens)
    cached = token_by_token(model, encoded, tokens)
    assert (whole - cached).abs().max() <= 1e-5


@pytest.mark.parametrize("kept", [[0, 2], [1, 2], [2], [1]])
def test_layers_left_out(kept, encoded, tokens):
    model = make_whisper(layers=LAYERS)
    declaration = layer_structures(model, whisper_structures)
    cut_(
        declaration,
        layer_plan(declaration, 2 * [i in kept for i in range(LAYERS)]),
    )
    whole = at_once(model, encoded, tokens)
    cached = token_by_token(model, encoded, tokens)
    assert (whole - cached).abs().max() <= 1e-5
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    model.decoder(tokens, encoder_hidden_states=encoded, past_key_values=cache)
    assert len(cache.self_attention_cache) == len(kept)  # without holes


@settings(max_examples=40, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), keep=st.floats(0.2, 0.95))
def test_beams_change_places(random_plan, seed, keep):
    generator = torch.Generator().manual_seed(seed)
    encoded = torch.randn(3, FRAMES // 2, 16, generator=generator)
    tokens = torch.randint(3, VOCABULARY, (3, TOKENS), generator=generator)
    model = make_whisper(layers=LAYERS, seed=seed)
    declaration = whisper_structures(model)
    cut_(declaration, random_plan(declaration, seed, keep))
    order = torch.tensor([2, 0, 0])
    whole = at_once(model, encoded[order], tokens[order])
    cached = token_by_token(model, encoded, tokens, order)
    assert (whole - cached).abs().max() <= 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("seed", range(3))
def test_masked_and_cut_with_a_cache(
    random_plan, seed, attention, encoded, tokens
):
    model = make_whisper(attention, layers=LAYERS, seed=seed)
    declaration = whisper_structures(
        model, kinds=[*whisper.KINDS, "value_dims", "query_key_dims"]
    )
    plan = random_plan(declaration, seed, keep=0.7)
    attach_(declaration).set_(plan.values(declaration))
    masked = token_by_token(model, encoded, tokens)
    detach_(model)
    cut_(declaration, plan)
    cut = token_by_token(model, encoded, tokens)
    assert (masked - cut).abs().max() <= 1e-5 * masked.abs().max()


@pytest.mark.parametrize("beams, attention", [(1, "sdpa"), (3, "eager")])
@pytest.mark.parametrize("seed", range(5))
def test_masked_and_cut_generate_the_same(random_plan, seed, beams, attention):
    """`generate` of transformers: 10 utterances each, 50 in all."""
    model = make_whisper(attention, layers=LAYERS, seed=seed)
    torch.nn.init.zeros_(model.decoder.layer_norm.bias)  # else it says one word
    with torch.no_grad():  # words are told apart by what it hears
        model.decoder.embed_tokens.weight.mul_(0.3)
    speaker = transformers.WhisperForConditionalGeneration(model.config)
    speaker.model = model
    speaker.proj_out.weight = model.decoder.embed_tokens.weight
    speaker.eval()
    generator = torch.Generator().manual_seed(seed)
    mel = 4 * torch.randn(10, MELS, FRAMES, generator=generator)

    def generate():
        return speaker.generate(
            mel,
            max_length=2 * TOKENS,
            num_beams=beams,
            do_sample=False,
            suppress_tokens=[0, 2],  # it goes on
            begin_suppress_tokens=None,
        )

    declaration = whisper_structures(model)
    plan = random_plan(declaration, seed, keep=0.7)
    dense = generate()
    attach_(declaration).set_(plan.values(declaration))
    masked = generate()
    detach_(model)
    cut_(declaration, plan)
    assert torch.equal(masked, generate())
    assert len({*map(tuple, masked.tolist())}) > 1  # it does hear
    assert dense.shape != masked.shape or not torch.equal(dense, masked)
