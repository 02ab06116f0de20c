"""A cut Conformer streams what it computes offline under chunk masks.

As models that were trained with dynamic chunks do: attention sees its chunk
and some chunks before, convolution its chunk and the frames before.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from sb_prune import conformer_structures, cut_
from sb_prune.architectures.whole_layers import layer_plan, layer_structures
from sb_prune.declare.plan import full_plan

FRAMES = 22
TOLERANCE = 1e-5
ATTENTIONS = ("RelPosMHAXL", "RoPEMHA")


@pytest.fixture(scope="session")
def source():
    """(B, T, f)"""
    return torch.randn(2, FRAMES, 6, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def stream(model, source, config):
    """Chunk after chunk, (B, T, d)."""
    context = model.make_streaming_context(config)
    chunks = source.split(config.chunk_size, dim=1)
    return torch.cat([model.encode_streaming(c, context) for c in chunks], 1)


@torch.no_grad()
def offline(model, source, config):
    """All chunks at once, (B, T, d)."""
    return model.encode(source, dynchunktrain_config=config)


def assert_streams_alike(model, source, config):
    expected = offline(model, source, config)
    difference = stream(model, source, config) - expected
    assert difference.abs().max() <= TOLERANCE


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("left", [0, 2])
def test_the_dense_model_does(make_asr, source, attention, left):
    model, config = make_asr(attention), DynChunkTrainConfig(4, left)
    assert_streams_alike(model, source, config)
    whole = model.encode(source)
    assert (offline(model, source, config) - whole).abs().max() > 0.01


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    attention=st.sampled_from(ATTENTIONS),
    chunk=st.integers(2, 9),
    left=st.integers(0, 3),
    seed=st.integers(0, 10**6),
    keep=st.floats(0.2, 0.95),
)
def test_cut_at_random(
    make_asr,
    random_plan,
    masked_and_cut,
    source,
    attention,
    chunk,
    left,
    seed,
    keep,
):
    model, config = (
        make_asr(attention, layers=3),
        DynChunkTrainConfig(chunk, left),
    )
    declaration = conformer_structures(model)
    plan = random_plan(declaration, seed, keep)
    masked, cut = masked_and_cut(
        declaration, plan, lambda m: offline(m, source, config)
    )
    assert (masked - cut).abs().max() <= TOLERANCE
    assert_streams_alike(model, source, config)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "gone",
    [
        ("conv_modules",),
        ("attention_modules",),
        ("conv_modules", "attention_modules"),
        ("ffn_modules",),
        ("layers",),
        ("encoder.layers.0",),
        ("encoder.layers.1",),
    ],
    ids=" and ".join,
)
def test_without(make_asr, source, attention, gone):
    model = make_asr(attention)
    declaration = conformer_structures(model)
    plan = full_plan(declaration)
    for structure in declaration.structures:
        if {structure.kind, structure.name} & set(gone):
            plan.keep[structure.name][:] = False
    cut_(declaration, plan)
    assert_streams_alike(model, source, DynChunkTrainConfig(4, 1))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_with_a_layer_left_out(make_asr, source, attention):
    model, config = make_asr(attention, layers=3), DynChunkTrainConfig(4, 2)
    declaration = layer_structures(model, conformer_structures)
    cut_(declaration, layer_plan(declaration, [True, False, True]))
    assert_streams_alike(model, source, config)
