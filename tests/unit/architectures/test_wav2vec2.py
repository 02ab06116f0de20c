"""What only encoders of waveforms have, and what is refused."""

import pytest
import torch
import transformers
from speechbrain.lobes.models.wav2vec import EncoderWrapper, W2VTargetQuantiser

from sb_prune import (
    MACBudget,
    ParameterBudget,
    attach_,
    cut_,
    mac_cost,
    parameter_cost,
    wav2vec2_structures,
)
from sb_prune.declare.plan import full_plan
from sb_prune.learn.fitting import fit_plan, leaf_prices

TEN_SECONDS = 160_000


@pytest.fixture(scope="module")
def base():
    """wav2vec2-base, without memory."""
    with torch.device("meta"):
        config = transformers.Wav2Vec2Config(attn_implementation="eager")
        return wav2vec2_structures(transformers.Wav2Vec2Model(config))


def test_cost_of_wav2vec2_base(base):
    parameters, macs = parameter_cost(base), mac_cost(base, TEN_SECONDS)
    assert parameters.dense() == 94_371_712
    assert macs.dense() == pytest.approx(74.1e9, rel=1e-3)
    front_end = "feature_extractor"
    of_parameters = parameter_cost(base, front_end).dense()
    of_macs = mac_cost(base, TEN_SECONDS, front_end).dense()
    assert of_parameters / parameters.dense() == pytest.approx(0.045, abs=1e-3)
    assert of_macs / macs.dense() == pytest.approx(0.33, abs=5e-3)
    assert base.output_frames(TEN_SECONDS) == 499


def test_macs_are_those_of_10_seconds_unless_told(base):
    assert (
        MACBudget(0.5).cost(base).dense() == mac_cost(base, TEN_SECONDS).dense()
    )
    one = MACBudget(0.5, frames=16_000).cost(base).dense()
    assert one == mac_cost(base, 16_000).dense()


VARIANTS = {
    "HJ-Size": ParameterBudget(0.6),
    "HJ-MAC": MACBudget(0.6, frames=5_000),
    "HJ-SepSize": ParameterBudget(
        {"feature_extractor": 0.4, "encoder": 0.6},
    ),
}


@pytest.mark.parametrize("budget", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("family", ["Wav2Vec2", "WavLM"])
def test_variants_land_within_one_unit_below(make_wav2vec2, family, budget):
    declaration = wav2vec2_structures(make_wav2vec2(family, layers=3))
    groups = budget.groups(declaration)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(declaration.total_units, generator=generator)
        plan = fit_plan(declaration, groups, scores)
        for group in groups:
            left = group.cost.of_kept(plan.kept_counts(declaration))
            short = group.dense * (1 - group.target) - float(left)
            prices = leaf_prices(declaration, group, plan)
            assert -1e-6 <= short < min(prices.values())


def test_channels_in_multiples(make_wav2vec2):
    model = make_wav2vec2()
    declaration = wav2vec2_structures(
        model, ["front_end_channels", "ffn_units"], channel_multiple=2
    )
    groups = ParameterBudget(0.3).groups(declaration)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(declaration.total_units, generator=generator)
        plan = fit_plan(declaration, groups, scores)
        for structure in declaration.structures:
            kept = plan.keep[structure.name]
            if structure.kind == "ffn_units":
                continue
            # 5 channels: two blocks of 2, and the worst one alone
            assert kept.sum() % 2 == 0 or kept.all()
            best = declaration.split(scores)[structure.name]
            if not kept.all():
                assert best[kept].min() > best[~kept].max()
    with pytest.raises(ValueError, match="channel_multiple: 0; write a whole"):
        wav2vec2_structures(model, channel_multiple=0)


def test_blocks_of_channels_limit_the_target(make_wav2vec2):
    """Of 6, 5 and 4 channels, one each is less than one block."""
    model = make_wav2vec2()
    for multiple in (1, 4):
        declaration = wav2vec2_structures(
            model, ["front_end_channels"], channel_multiple=multiple
        )
        counts = torch.tensor([float(multiple)] * 3)
        (group,) = ParameterBudget(0.01).groups(declaration)
        most = group.sparsity(float(group.cost.of_kept(counts)))
        ParameterBudget(most - 1e-6).groups(declaration)
        with pytest.raises(ValueError, match=f"at most {most:.3f}"):
            ParameterBudget(most + 1e-6).groups(declaration)


@torch.no_grad()
def test_wavlm_keeps_its_position_bias(make_wav2vec2, encode_waveform):
    """Layers above go on with it when the first one's attention is gone."""
    model = make_wav2vec2("WavLM", layers=3)
    declaration = wav2vec2_structures(model, ["attention_modules", "heads"])
    plan = full_plan(declaration)
    plan.keep["encoder.layers.0.attention"][:] = False
    plan.keep["encoder.layers.1.attention.heads"][:2] = False
    cut_(declaration, plan)
    before = encode_waveform(model)
    embedding = model.encoder.layers[0].attention.rel_attn_embed
    embedding.weight.mul_(2)
    after = encode_waveform(model)
    assert (before - after).abs().max() > 0.01
    embedding.weight[:, :2] = 0  # of heads that layer 1 lost, not layer 2
    assert (after - encode_waveform(model)).abs().max() > 0.01


def test_wavlm_says_what_it_attended_to(make_wav2vec2):
    model = make_wav2vec2("WavLM")
    declaration = wav2vec2_structures(model, ["heads"])
    plan = full_plan(declaration)
    plan.keep["encoder.layers.1.attention.heads"][0] = False
    cut_(declaration, plan)
    weights = model(torch.randn(2, 700), output_attentions=True).attentions
    assert [w.shape[1] for w in weights] == [4, 3]
    assert torch.allclose(weights[1].sum(-1), torch.ones(()))


def test_hidden_states_are_recorded_after_the_cut(make_wav2vec2, random_plan):
    model = make_wav2vec2(layers=3)
    declaration = wav2vec2_structures(model)
    cut_(declaration, random_plan(declaration, keep=0.5))
    states = model(torch.randn(1, 700), output_hidden_states=True)
    assert len(states.hidden_states) == 4


def test_layerdrop_is_declared(make_wav2vec2):
    model = make_wav2vec2()
    model.config.layerdrop = 0.1
    assert wav2vec2_structures(model).layerdrop == 0.1


def test_masks_follow_into_the_lobe(make_wav2vec2):
    """Names start at the root that was given."""
    root = torch.nn.ModuleDict({"model": make_wav2vec2()})
    declaration = wav2vec2_structures(root)
    assert all(s.name.startswith("model.") for s in declaration.structures)
    attach_(declaration)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torch.nn.Linear(1, 1), "0 encoders .* found in Linear; name"),
        (
            lambda: torch.nn.ModuleDict({"a": tiny("Data2VecAudio")}),
            "0 encoders .*Wav2Vec2Model.*HubertModel.*WavLMModel",
        ),
        (
            lambda: torch.nn.ModuleList([tiny(), tiny()]),
            "2 encoders that can be cut found",
        ),
        (lambda: tiny(add_adapter=True), "has adapters"),
        (
            lambda: tiny(do_stable_layer_norm=True, adapter_attn_dim=4),
            "has adapters, which cannot be cut; load it with",
        ),
    ],
)
def test_other_encoders_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        wav2vec2_structures(make())


def tiny(family="Wav2Vec2", **options):
    """A Hugging Face model without memory."""
    config = getattr(transformers, f"{family}Config")(
        num_hidden_layers=1, **options
    )
    with torch.device("meta"):
        return getattr(transformers, f"{family}Model")(config)


def test_speechbrains_own_needs_both_modules(make_wav2vec2):
    root = make_wav2vec2("SpeechBrain")
    with pytest.raises(ValueError, match="0 EncoderWrapper .* list both"):
        wav2vec2_structures(root["latent_extractor"])
    other = EncoderWrapper(4, 16, torch.nn.Identity())
    root["latent_encoder"] = other
    with pytest.raises(ValueError, match="latent_encoder is a Identity"):
        wav2vec2_structures(root)


@pytest.mark.parametrize("kind", ["query_key_dims", "value_dims"])
@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert"])
def test_only_some_attentions_have_unequal_heads(make_wav2vec2, family, kind):
    model = make_wav2vec2(family)
    for implementation in ("flex_attention", "flash_attention_2"):
        model.config._attn_implementation = implementation
        with pytest.raises(
            ValueError,
            match=f"kinds: {kind} .*attn_implementation: {implementation} has "
            "no heads of unequal widths; write sdpa",
        ):
            wav2vec2_structures(model, ["heads", kind])
        wav2vec2_structures(model, ["heads"])


def pretraining(make_wav2vec2):
    """A model in pre-training, whose quantizer reads the front-end too."""
    config = make_wav2vec2().config
    config.num_codevectors_per_group, config.num_codevector_groups = 4, 2
    config.codevector_dim, config.proj_codevector_dim = 8, 6
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForPreTraining(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.2, 0.3)
    x = torch.randn(2, 700)

    def run(model):
        output = model(x)
        return torch.cat([t.flatten() for t in output.values()])

    return model, run


def speechbrains_pretraining(make_wav2vec2):
    """That of SpeechBrain, with every module listed."""
    root = make_wav2vec2("SpeechBrain")
    torch.manual_seed(0)
    root["target_quantiser"] = W2VTargetQuantiser(
        in_dim=4, out_dim=6, num_vars=4
    ).eval()
    x = torch.randn(2, 700)

    def run(root):
        latents = root["latent_extractor"](x)
        embeddings = root["latent_encoder"](latents)["embeddings"]
        targets, meta = root["target_quantiser"](latents)
        found = [embeddings, targets, meta["prob_perplex"]]
        return torch.cat([t.flatten() for t in found])

    return root, run


@pytest.mark.parametrize("make", [pretraining, speechbrains_pretraining])
def test_quantizers_read_the_front_end_too(
    make_wav2vec2, random_plan, masked_and_cut, make
):
    model, run = make(make_wav2vec2)
    declaration = wav2vec2_structures(model)
    plan = random_plan(declaration, seed=2, keep=0.7)
    assert not plan.keep[last_channels(declaration).name].all()
    masked, cut = masked_and_cut(declaration, plan, run)
    assert (masked - cut).abs().max() <= 1e-5


def last_channels(declaration):
    kind = "front_end_channels"
    return [s for s in declaration.structures if s.kind == kind][-1]
