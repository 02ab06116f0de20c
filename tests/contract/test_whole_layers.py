"""Layers left out: every architecture, exactly, one plan for all of it."""

from functools import partial

import pytest
import torch
from test_architectures import BUILDS, count

from sb_prune import (
    encoder_decoder_structures,
    front_end_structures,
    wav2vec2_structures,
)
from sb_prune.architectures.whole_layers import layer_plan, layer_structures
from sb_prune.cut.surgery import cut_
from sb_prune.declare.cost import mac_cost, parameter_cost
from sb_prune.declare.plan import full_plan

LAYERS = 4
ENCODERS = {name: b for name, b in BUILDS.items() if "decoder" not in name}

each_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
each_encoder = pytest.mark.parametrize("build", ENCODERS.values(), ids=ENCODERS)


def outputs_of(names, model, compute):
    """What modules give: the first of their outputs, by name."""
    found = {}

    def keep(name, module, args, output):
        found[name] = output[0] if isinstance(output, tuple) else output

    handles = [
        model.get_submodule(name).register_forward_hook(partial(keep, name))
        for name in names
    ]
    with torch.no_grad():
        final = compute(model)
    for handle in handles:
        handle.remove()
    return found, final


def some_layers(declaration):
    """Which layers stay: the first of each stack, and every second."""
    return [
        int(name.rpartition(".")[2]) % 2 == 0 for name in declaration.layers
    ]


@each_encoder
@pytest.mark.parametrize("depth", [1, 3])
def test_the_first_layers_give_what_they_gave(
    make_model, compute, build, depth
):
    model = build.make(make_model, layers=LAYERS)
    declaration = layer_structures(model, build.structures)
    layers = declaration.layers
    dense, _ = outputs_of(layers, model, compute)
    cut_(declaration, layer_plan(declaration, [i < depth for i in range(4)]))
    small, final = outputs_of(layers[:depth], model, compute)
    for name in layers[:depth]:
        assert (small[name] - dense[name]).abs().max() <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize("norms_first", [False, True])
@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert", "WavLM"])
def test_the_encoder_ends_with_the_hidden_state(
    make_wav2vec2, family, norms_first
):
    """Where norms come first, behind the norm that the encoder ends with."""
    model = make_wav2vec2(family, layers=LAYERS, norms_first=norms_first)
    wavs = torch.randn(2, 700)
    states = model(wavs, output_hidden_states=True).hidden_states
    declaration = layer_structures(model, wav2vec2_structures)
    cut_(declaration, layer_plan(declaration, [True, True, False, False]))
    found = model(wavs, output_hidden_states=True)
    expected = states[2]
    if norms_first:
        expected = model.encoder.layer_norm(expected)
    assert (found.last_hidden_state - expected).abs().max() <= 1e-6
    assert len(found.hidden_states) == 3


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert"])
def test_layers_of_the_middle(make_wav2vec2, family):
    """What the second gives enters the fourth."""
    model = make_wav2vec2(family, layers=LAYERS)
    first, second, _, last = model.encoder.layers
    declaration = layer_structures(model, wav2vec2_structures)
    cut_(declaration, layer_plan(declaration, [True, True, False, True]))
    assert list(model.encoder.layers) == [first, second, last]
    assert model.encoder.layers[-1] is last
    assert list(model.encoder.layers[1:]) == [second, last]


def test_wavlm_keeps_its_first_layer(make_wav2vec2):
    model = make_wav2vec2("WavLM", layers=2)
    declaration = layer_structures(model, wav2vec2_structures)
    assert [s.name for s in declaration.structures] == [
        "encoder.layers.1.whole"
    ]
    with pytest.raises(ValueError, match="layers.0 must stay: it shares a pos"):
        layer_plan(declaration, [False, True])


@pytest.mark.parametrize("keep", [[False, False], [True], []])
def test_no_layers_left(make_wav2vec2, keep):
    model = make_wav2vec2(layers=2)
    declaration = layer_structures(model, wav2vec2_structures)
    with pytest.raises(ValueError, match="keep at least one of the 2"):
        layer_plan(declaration, keep)


def test_every_stack_keeps_a_layer(make_asr):
    model = make_asr(layers=2, num_decoder_layers=2)
    declaration = layer_structures(model, encoder_decoder_structures)
    with pytest.raises(ValueError, match="keep at least one of the 4 .* stack"):
        layer_plan(declaration, [True, True, False, False])
    cut_(declaration, layer_plan(declaration, [True, False, False, True]))
    assert len(model.encoder.layers) == len(model.decoder.layers) == 1


def test_nothing_that_has_layers(make_front_end):
    with pytest.raises(ValueError, match="declare no layers to choose from"):
        layer_structures(make_front_end(), front_end_structures)


@each_build
def test_one_plan_for_layers_and_what_is_inside(
    make_model, compute, random_plan, build
):
    """Leaving out first and pruning then is one cut of the dense model."""
    model = build.make(make_model, layers=LAYERS)
    declaration = layer_structures(model, build.structures)
    layers = layer_plan(declaration, some_layers(declaration))
    cut_(declaration, layers)
    left = build.declare(model)
    plan = random_plan(left)
    cut_(left, plan)

    whole = build.make(make_model, layers=LAYERS)
    declaration = layer_structures(whole, build.declare, inside=True)
    both = full_plan(declaration)
    both.keep.update({**layers.keep, **plan.keep})
    kept = both.kept_counts(declaration)
    parameters = float(parameter_cost(declaration).of_kept(kept))
    cut_(declaration, both)
    assert parameters == count(declaration)
    assert whole.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(compute(whole), compute(model))


@each_build
def test_meta_tensors_are_left_out_alike(make_model, build):
    real = build.make(make_model, layers=LAYERS)
    meta = build.make(make_model, layers=LAYERS).to("meta")
    for model in (real, meta):
        declaration = layer_structures(model, build.structures)
        keep = some_layers(declaration)
        cut_(declaration, layer_plan(declaration, keep))
    meta.load_state_dict(real.state_dict(), strict=True, assign=True)


@each_build
def test_layers_cost_what_they_cost(make_model, build):
    model = build.make(make_model, layers=LAYERS)
    declaration = layer_structures(model, build.structures)
    plan = layer_plan(declaration, some_layers(declaration))
    kept = plan.kept_counts(declaration)
    share = mac_cost(declaration, build.frames).of_kept(kept)
    assert float(share) < mac_cost(declaration, build.frames).dense()
    parameters = float(parameter_cost(declaration).of_kept(kept))
    cut_(declaration, plan)
    assert parameters == count(declaration)
