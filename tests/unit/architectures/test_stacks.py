"""Models that are refused whatever their architecture."""

import pytest
import torch
from speechbrain.nnet.adapters import AdaptedModel, HoulsbyAdapterLinear, LoRA

from sb_prune import (
    branchformer_structures,
    conformer_structures,
    front_end_structures,
    wav2vec2_structures,
)


@pytest.mark.parametrize(
    "adapter, options",
    [(LoRA, {"rank": 2}), (HoulsbyAdapterLinear, {"projection_size": 2})],
)
def test_adapters_are_refused_by_name(make_asr, adapter, options):
    model = make_asr()
    adapted = AdaptedModel(
        model,
        adapter,
        target_layers=["encoder.layers.*.ffn_module1.1.ffn.0"],
        adapter_kwargs=options,
    )
    with pytest.raises(ValueError, match=r"adapters \(AdaptedModel\).*merge"):
        conformer_structures(adapted)
    linear = r"encoder\.layers\.0\.ffn_module1\.1\.ffn\.0"
    with pytest.raises(
        ValueError, match=rf"{linear} has.*\({adapter.__name__}\)"
    ):
        conformer_structures(model)


def test_adapters_of_other_encoders(make_wav2vec2, make_front_end):
    encoder = make_wav2vec2()
    attention = encoder.encoder.layers[0].attention
    attention.out_proj = LoRA(attention.out_proj, rank=2)
    with pytest.raises(
        ValueError, match=r"attention.out_proj has adapters \(LoRA"
    ):
        wav2vec2_structures(encoder)
    root = make_front_end()
    root["Transformer"] = AdaptedModel(root["Transformer"], LoRA)
    with pytest.raises(ValueError, match="Transformer has adapters"):
        front_end_structures(root)


def test_a_branchformer_is_not_told_to_take_what_it_lacks(make_asr):
    model = make_asr(
        "hypermixing", encoder_module="branchformer", csgu_linear_units=24
    )
    refusal = (
        "mha_layer is a HyperMixing; write attention_type: RelPosMHAXL or "
        r"regularMHA, or kinds: \[conv_modules, conv_channels\]"
    )
    with pytest.raises(ValueError, match=refusal):
        branchformer_structures(model)
    left = branchformer_structures(model, ["conv_modules", "conv_channels"])
    assert {s.kind for s in left.structures} == {
        "conv_modules",
        "conv_channels",
    }


def test_old_weight_norm_is_refused(make_asr):
    model = make_asr()
    linear = model.encoder.layers[1].ffn_module2[1].ffn[3]
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(linear)
    with pytest.raises(ValueError, match=r"ffn\.3\.weight cannot be cut"):
        conformer_structures(model)
