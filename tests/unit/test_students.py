"""Students that reuse attention maps."""

import copy
from functools import partial

import pytest
import torch
from rounding import assert_same_but_for_rounding
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from sb_prune import (
    cut_,
    lobes,
    mac_cost,
    parameter_cost,
    wav2vec2_structures,
)
from sb_prune.architectures.whole_layers import layer_plan, layer_structures
from sb_prune.cut.edits import ENTRY, FORMAT
from sb_prune.export.hugging_face import build_model
from sb_prune.students import make_student, write_student

LOBES = {
    "Wav2Vec2": lobes.Wav2Vec2,
    "Hubert": lobes.HuBERT,
    "WavLM": lobes.WavLM,
}
LAYER = "encoder.layers"
CHAIN = [False, True, True, False]
ALTERNATE = [False, True, False, True]
BUILDS = [
    ("Wav2Vec2", "eager"),
    ("Wav2Vec2", "sdpa"),
    ("Hubert", "eager"),
    ("Hubert", "sdpa"),
    ("WavLM", "eager"),
]
each_build = pytest.mark.parametrize("family, attention", BUILDS)
either_norm = pytest.mark.parametrize("norms_first", [False, True])


@pytest.fixture
def make(make_wav2vec2):
    """Factory of a student of a small teacher, in eval mode."""

    def make(family="Hubert", attention="eager", norms_first=False, **options):
        teacher = make_wav2vec2(
            family, attention=attention, norms_first=norms_first, layers=4
        )
        torch.manual_seed(0)
        return make_student(teacher, **options).eval()

    return make


@torch.no_grad()
@each_build
@either_norm
def test_without_changes_it_is_the_teacher(
    make_wav2vec2, encode_waveform, family, attention, norms_first
):
    teacher = make_wav2vec2(
        family, attention=attention, norms_first=norms_first
    )
    student = make_student(teacher).eval()
    assert_same_but_for_rounding(
        encode_waveform(student), encode_waveform(teacher)
    )


@torch.no_grad()
@each_build
@either_norm
def test_making_a_map_computes_what_the_stock_layer_does(
    make, make_wav2vec2, encode_waveform, family, attention, norms_first
):
    """Layer 0 makes a map; its output is that of the teacher's layer."""
    student = make(family, attention, norms_first, reuse=ALTERNATE)
    teacher = make_wav2vec2(
        family, attention=attention, norms_first=norms_first, layers=4
    )
    outputs = []
    for model in (student, teacher):
        layer = model.encoder.layers[0]
        hook = layer.register_forward_hook(
            lambda *_, found=outputs: found.append(_[-1])
        )
        encode_waveform(model)
        hook.remove()
    ours, theirs = (o[0] if isinstance(o, tuple) else o for o in outputs)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_map_of_a_layer_that_did_not_run_is_missed(make):
    student = make(reuse=ALTERNATE)
    states = torch.randn(1, 5, student.config.hidden_size)
    with pytest.raises(RuntimeError, match="write layerdrop: 0.0, and no grad"):
        student.encoder.layers[1](states)


@torch.no_grad()
@each_build
@pytest.mark.parametrize(
    "reuse", [ALTERNATE, [False, True, True, True], [False, False, True, False]]
)
def test_a_reused_map_is_its_source_bit_for_bit(
    make, encode_waveform, family, attention, reuse
):
    student = make(family, attention, reuse=reuse)
    maps, values = [], []

    def note(module, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        maps.append(output[1])
        values.append((module, hidden, output[0]))

    for layer in student.encoder.layers:
        layer.attention.register_forward_hook(note, with_kwargs=True)
    encode_waveform(student)
    for i, reads in enumerate(reuse):
        if not reads:
            continue
        assert torch.equal(maps[i], maps[i - 1])
        module, hidden, output = values[i]
        split = module.v_proj(hidden).unflatten(-1, (4, 4)).transpose(1, 2)
        expected = (maps[i] @ split).transpose(1, 2).flatten(2)
        assert torch.allclose(output, module.out_proj(expected), atol=1e-6)
        names = {name.split(".")[0] for name, _ in module.named_parameters()}
        assert names == {"v_proj", "out_proj"}
    assert not any(
        getattr(layer.attention, "attention_map", None) is not None
        for layer in student.encoder.layers
    )


@torch.no_grad()
@each_build
def test_a_batch_equals_its_utterances(make, family, attention):
    student = make(family, attention, reuse=ALTERNATE)
    wavs = torch.randn(3, 700, generator=torch.Generator().manual_seed(0))
    batch = student(wavs).last_hidden_state
    for wav, together in zip(wavs, batch):
        alone = student(wav[None]).last_hidden_state[0]
        assert torch.allclose(alone, together, atol=1e-5)


@torch.no_grad()
@each_build
def test_padding_is_not_looked_at(make, family, attention):
    student = make(family, attention, norms_first=True, reuse=ALTERNATE)
    wavs = torch.randn(2, 700, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(700) < torch.tensor([[700], [400]])
    frames = int(student._get_feat_extract_output_lengths(torch.tensor(400)))
    noisy = wavs.clone()
    noisy[1, 400:] += 1
    first, second = (
        student(x, attention_mask=mask).last_hidden_state for x in (wavs, noisy)
    )
    assert torch.allclose(first[1, :frames], second[1, :frames], atol=1e-5)
    assert not torch.allclose(
        first[1, :frames], student(noisy).last_hidden_state[1, :frames]
    )


@each_build
def test_gradients_reach_the_map_through_its_reader(make, family, attention):
    student = make(family, attention, reuse=ALTERNATE).train()
    wavs = torch.randn(2, 700)
    student.encoder.layers[0].attention.v_proj.requires_grad_(False)
    with torch.no_grad():  # the map acts through the reader only
        student.encoder.layers[0].attention.out_proj.weight.zero_()
    student(wavs).last_hidden_state.square()[..., :3].sum().backward()
    gradient = student.encoder.layers[0].attention.k_proj.weight.grad
    assert gradient.abs().max() > 0
    missing = {
        name
        for name, p in student.named_parameters()
        if p.requires_grad and p.grad is None
    }
    assert all("masked_spec_embed" in name for name in missing)


@torch.no_grad()
def test_copies_read_their_own_maps(make, encode_waveform):
    student = make(reuse=ALTERNATE)
    before = encode_waveform(student)
    twin = copy.deepcopy(student)
    student.encoder.layers[0].attention.q_proj.weight.zero_()
    assert torch.equal(encode_waveform(twin), before)


@torch.no_grad()
@each_build
def test_built_anew_from_its_config(make, encode_waveform, family, attention):
    student = make(
        family,
        attention,
        hidden_size=8,
        intermediate_size=12,
        conv=[[4, 10, 5], [6, 3, 2], [8, 2, 2]],
        reuse=ALTERNATE,
    )
    config = type(student.config).from_dict(student.config.to_dict())
    edits = [{"student": {"reuse": ALTERNATE}}]
    assert getattr(config, ENTRY) == {"format": FORMAT, "edits": edits}
    again = build_model(config, attn_implementation=attention).eval()
    again.load_state_dict(student.state_dict(), assign=True)
    assert_same_but_for_rounding(
        encode_waveform(again), encode_waveform(student)
    )


@torch.no_grad()
@pytest.mark.parametrize("family", LOBES)
def test_the_lobes_load_a_saved_student(make, tmp_path, family):
    student = make(family, hidden_size=8, reuse=ALTERNATE)
    student.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    lobe = LOBES[family](str(tmp_path), str(tmp_path)).eval()
    wavs = torch.randn(2, 700)
    expected = student(wavs).last_hidden_state
    assert_same_but_for_rounding(lobe.model(wavs).last_hidden_state, expected)
    assert not lobe.model.encoder.layers[1].attention._hands_on


def test_a_student_has_no_students(make, tmp_path):
    make(reuse=ALTERNATE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is pruned, or a student itself"):
        write_student(str(tmp_path / "new"), str(tmp_path))


def test_a_torn_student_is_refused(make, tmp_path):
    student = make(reuse=ALTERNATE)
    student.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="does not fit the encoder"):
        lobes.HuBERT(str(tmp_path), str(tmp_path))


ARM = [[128, 10, 5], [256, 1, 1], *[[256, 3, 2]] * 4]
REUSE = [False, True] * 6
PUBLISHED = {  # Jang et al. (2023), Table 1: in millions
    "ARMHuBERT": (480, 864, REUSE, 26.45),
    "ARMHuBERT-S": (432, 816, REUSE, 22.39),
    "MaskHuBERT": (480, 640, None, 26.64),
}


@pytest.fixture(scope="module")
def hubert_base():
    with torch.device("meta"):
        return HubertModel(HubertConfig())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(hubert_base, name):
    """They count the heads that distillation puts on all twelve layers."""
    width, hidden, reuse, millions = PUBLISHED[name]
    conv = [*ARM, [width, 1, 1], *[[width, 2, 2]] * 2]
    with torch.device("meta"):
        student = make_student(hubert_base, width, hidden, conv, reuse)
    size = sum(p.numel() for p in student.parameters())
    heads = 12 * (width * 768 + 768)
    assert (size + heads) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reuse": [True, False, True, False]}, "first layer has none below"),
        ({"reuse": [False, True]}, "2 entries for 4 layers; write one each"),
        ({"hidden_size": 18}, "18 is not divisible by the 4 heads.*16"),
        (
            {"conv": [[4, 10, 5], [8, 3, 2]]},
            "make 15999 frames of 10 s, the teacher's 7999",
        ),
        ({"depth": 3}, "depth: no entry of the teacher's config"),
    ],
)
def test_what_cannot_be_built(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_teacher_of_another_class():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, vocab_size=4)
    config.num_attention_heads, config.intermediate_size = 2, 8
    with pytest.raises(ValueError, match="BertModel has no students here"):
        make_student(BertModel(config))


@pytest.mark.parametrize(
    "model, config",
    [
        (Wav2Vec2Model, Wav2Vec2Config),
        (HubertModel, HubertConfig),
        (WavLMModel, WavLMConfig),
    ],
)
def test_weights_that_fit_are_the_teachers(model, config):
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8, 16],
        "conv_kernel": [10, 3],
        "conv_stride": [5, 2],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }
    teacher = model(config(**shape))
    student = make_student(teacher, intermediate_size=8, reuse=[False, True])
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert ours.keys() < theirs.keys()  # no query and key, no projection
    for name, tensor in ours.items():
        same = torch.equal(tensor, theirs[name])
        assert same == ("dense" not in name or "output_dense.bias" in name)


@torch.no_grad()
@either_norm
@pytest.mark.parametrize("family, attention", BUILDS)
def test_students_are_pruned_twice(
    make,
    encode_waveform,
    random_plan,
    masked_and_cut,
    family,
    attention,
    norms_first,
):
    """Units and modules without attention, and heads of the last layer."""
    student = make(family, attention, norms_first, reuse=CHAIN)
    kinds = ["front_end_channels", "ffn_modules", "ffn_units"]
    for seed, more in enumerate(([], ["heads", "attention_modules"])):
        declaration = wav2vec2_structures(student, [*kinds, *more])
        heads = {s.name for s in declaration.structures if s.kind == "heads"}
        assert heads == {f"{LAYER}.3.attention.heads"} if more else not heads
        plan = random_plan(declaration, seed, keep=0.8)
        kept = plan.kept_counts(declaration)
        parameters, macs = (
            float(cost.of_kept(kept))
            for cost in (
                parameter_cost(declaration),
                mac_cost(declaration, 700),
            )
        )
        masked, cut = masked_and_cut(declaration, plan, encode_waveform)
        assert (masked - cut).abs().max() <= 1e-5
        assert parameters == sum(p.numel() for p in student.parameters())
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as c:
            encode_waveform(student, 1, 700, False)
        assert macs == pytest.approx(c.get_total_flops() / 2, rel=1e-6)


@pytest.mark.parametrize("kinds", [None, ["heads"], ["layers"]])
def test_layers_that_share_a_map_are_refused_by_name(make, kinds):
    student = make(reuse=ALTERNATE)
    refused = "layers.0.attention is a HubertMapMaker; write no `reuse` where"
    with pytest.raises(ValueError, match=refused):
        wav2vec2_structures(student, kinds)


def test_layers_that_share_a_map_are_not_left_out(make, encode_waveform):
    student = make(reuse=CHAIN)
    structures = partial(wav2vec2_structures, kinds=["ffn_units"])
    declaration = layer_structures(student, structures)
    names = [s.name for s in declaration.structures]
    assert names == [f"{LAYER}.3.whole"]
    with pytest.raises(ValueError, match="layers.2 must stay: it shares a p"):
        layer_plan(declaration, [True, True, False, True])
    cut_(declaration, layer_plan(declaration, [True, True, True, False]))
    encode_waveform(student)
    again = wav2vec2_structures(student, ["ffn_units"])
    assert len(again.structures) == 3


def test_channels_that_are_the_width_of_a_student_stay(
    make, encode_waveform, random_plan, masked_and_cut
):
    """Without a projection the last convolution makes the residual stream."""
    conv = [[4, 10, 5], [6, 3, 2], [8, 2, 2]]
    student = make(hidden_size=8, conv=conv, reuse=ALTERNATE)
    declaration = wav2vec2_structures(student, ["front_end_channels"])
    assert [s.units for s in declaration.structures] == [4, 6]
    macs = mac_cost(declaration, 700).dense()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode_waveform(student, 1, 700, False)
    assert macs == counter.get_total_flops() / 2
    plan = random_plan(declaration)
    masked, cut = masked_and_cut(declaration, plan, encode_waveform)
    assert (masked - cut).abs().max() <= 1e-5
