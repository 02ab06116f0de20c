"""Whisper's published shapes, and what its declaration refuses."""

import pytest
import torch
import transformers

from sb_prune import ParameterBudget, parameter_cost, whisper_structures
from sb_prune.architectures import whisper
from sb_prune.cut.surgery import cut_
from sb_prune.learn.fitting import fit_plan
from sb_prune.support.measure import count_parameters

# name -> width, layers, heads, mels, vocabulary, parameters (proj_out is tied)
SHAPES = {
    "tiny": (384, 4, 6, 80, 51865, 37_760_640),
    "base": (512, 6, 8, 80, 51865, 72_593_920),
    "small": (768, 12, 12, 80, 51865, 241_734_912),
    "medium": (1024, 24, 16, 80, 51865, 763_857_920),
    "large-v3": (1280, 32, 20, 128, 51866, 1_543_490_560),
}


@pytest.fixture
def make():
    """Function: name -> model on the meta device."""

    def build(name, **options):
        width, layers, heads, mels, vocabulary, _ = SHAPES[name]
        config = transformers.WhisperConfig(
            vocab_size=vocabulary,
            num_mel_bins=mels,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            pad_token_id=0,
            **options,
        )
        with torch.device("meta"):
            return transformers.WhisperModel(config)

    return build


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes(make, name):
    model = make(name)
    width, layers, heads, *_, parameters = SHAPES[name]
    declaration = whisper_structures(model)
    assert parameter_cost(declaration).dense() == parameters
    kinds = [s.kind for s in declaration.structures]
    assert kinds.count("layers") == 2 * layers
    assert {s.units for s in declaration.structures if s.kind == "heads"} == {
        heads
    }
    assert declaration.usual_frames == 3000
    assert declaration.output_frames(3000) == 1500
    generator = torch.Generator().manual_seed(0)
    units = sum(structure.units for structure in declaration.structures)
    (group,) = ParameterBudget(0.3).groups(declaration)
    scores = torch.rand(units, generator=generator)
    plan = fit_plan(declaration, [group], scores)
    cut_(declaration, plan)
    left = count_parameters([model])
    assert left == float(group.cost.of_kept(plan.kept_counts(declaration)))
    assert 0.69 * parameters < left <= 0.7 * parameters


def test_one_side(make):
    model = make("tiny")
    encoder = whisper_structures(model, sides=["encoder"])
    assert encoder.scope == ("encoder",)
    assert len(encoder.layers) == 4
    decoder = whisper_structures(model, sides=["decoder"])
    assert {s.kind for s in decoder.structures} == {*whisper.DECODER_KINDS}
    both = parameter_cost(whisper_structures(model)).dense()
    assert both == sum(parameter_cost(d).dense() for d in (encoder, decoder))


def test_wrong_models(make):
    model = make("tiny")
    with pytest.raises(ValueError, match="sides: 'both'; write encoder or d"):
        whisper_structures(model, sides=["both"])
    with pytest.raises(ValueError, match="0 encoders of Whisper found in Lin"):
        whisper_structures(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="2 encoders of Whisper found in Mod"):
        whisper_structures(torch.nn.ModuleList([model, make("tiny")]))
    model.decoder = None
    assert whisper_structures(model).scope == ("encoder",)
    with pytest.raises(ValueError, match="0 decoders of Whisper found in Whi"):
        whisper_structures(model, sides=["encoder", "decoder"])
    with pytest.raises(ValueError, match=r"\['cross_heads'\] match nothing"):
        whisper_structures(model, kinds=["cross_heads"])
