"""What every architecture file must fulfil. A new one adds rows to BUILDS."""

import gc
import weakref
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Callable
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import record_calls
from rounding import assert_exact, assert_same_but_for_rounding
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_architecture import KINDS as TOY_KINDS
from toy_architecture import toy_structures

from sb_prune import (
    branchformer_structures,
    conformer_structures,
    decoder_structures,
    encoder_decoder_structures,
    transformer_structures,
    wav2vec2_structures,
    whisper_structures,
)
from sb_prune.architectures import (
    branchformer,
    conformer,
    transformer,
    wav2vec2,
    whisper,
)
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.cut.masking import attach_, detach_
from sb_prune.cut.modules import heads as unequal_heads
from sb_prune.cut.surgery import cut_
from sb_prune.declare.cost import mac_cost, parameter_cost
from sb_prune.declare.plan import Plan, full_plan

FRAMES, TOKENS = 13, 6
SAMPLES = 700
MEL_FRAMES = 26
TOLERANCE = 1e-5

reproducible = settings(max_examples=60, derandomize=True, deadline=None)


@dataclass(frozen=True)
class Build:
    """One architecture, small.

    structures : module -> Declaration
    kinds : those it has
    left : parameters of the layers when all that may go has gone
    options : of `make_model`
    frames : length of the input
    unequal : whether dims inside heads are declared too
    probe : a parameter in front of all layers, which is not cut
    """

    structures: Callable
    kinds: tuple
    left: int
    options: dict = field(default_factory=dict)
    frames: int = FRAMES
    probe: str = "custom_src_module.layers.0.w.weight"
    unequal: bool = False

    def make(self, make_model, **more):
        return make_model(**self.options, **more)

    def declare(self, model, kinds=None):
        if self.unequal:
            kinds = self.kinds if kinds is None else kinds
            inside = {*INSIDE_HEADS} & {*kinds}
            kinds = list(dict.fromkeys([*kinds, *["heads"][: len(inside)]]))
        return self.structures(model, kinds=kinds)


NORM = 2 * 16  # parameters of one


def conformer_build(attention, causal):
    options = {"attention": attention, "causal": causal}
    return Build(conformer_structures, conformer.KINDS, 2 * NORM, options)


def transformer_build(attention, normalize_before, causal=False):
    options = {"attention": attention, "causal": causal}
    options["encoder_module"] = "transformer"
    options["normalize_before"] = normalize_before
    left = 0 if normalize_before else 4 * NORM
    return Build(transformer_structures, transformer.KINDS, left, options)


def branchformer_build(attention, linear=False):
    options = {"attention": attention, "encoder_module": "branchformer"}
    options |= {"csgu_linear_units": 24, "use_linear_after_conv": linear}
    return Build(branchformer_structures, branchformer.KINDS, 0, options)


def with_decoder(build, left=0):
    kinds = build.kinds + transformer.DECODER_KINDS
    return Build(
        partial(encoder_decoder_structures, tokens_per_frame=TOKENS / FRAMES),
        tuple(dict.fromkeys(kinds)),
        build.left + left,
        build.options | {"num_decoder_layers": 2},
    )


def decoder_of(build, left=0, **options):
    return Build(
        partial(decoder_structures, tokens_per_frame=TOKENS / FRAMES),
        transformer.DECODER_KINDS,
        left,
        build.options | {"num_decoder_layers": 2} | options,
    )


def wav2vec2_build(family, **options):
    left = 0 if options.get("norms_first") else 4 * NORM
    left += 8 * 4 * (family == "WavLM")  # the bias of 8 buckets for 4 heads
    return Build(
        wav2vec2_structures,
        wav2vec2.KINDS,
        left,
        {"family": family, **options},
        SAMPLES,
        "feature_projection.projection.bias",
    )


def whisper_build(kinds, attention, **options):
    return Build(
        partial(whisper_structures, tokens_per_frame=TOKENS / MEL_FRAMES),
        kinds,
        0,
        {"family": "Whisper", "attention": attention, **options},
        MEL_FRAMES,
        "encoder.conv2.bias",
    )


PRE_NORM = transformer_build("regularMHA", True)
POST_NORM = transformer_build("regularMHA", False)
CONFORMER = conformer_build("RelPosMHAXL", False)
BRANCHFORMER = branchformer_build("RelPosMHAXL")

BUILDS = {
    **{
        f"conformer {attention}{' causal' * causal}": conformer_build(
            attention, causal
        )
        for attention in ("RelPosMHAXL", "RoPEMHA", "regularMHA")
        for causal in (False, True)
    },
    "transformer": PRE_NORM,
    "transformer post-norm": POST_NORM,
    "transformer RelPosMHAXL": transformer_build("RelPosMHAXL", True, True),
    "transformer RoPEMHA": transformer_build("RoPEMHA", False),
    "branchformer RelPosMHAXL": BRANCHFORMER,
    "branchformer linear": branchformer_build("regularMHA", linear=True),
    "decoder": decoder_of(PRE_NORM),
    "decoder post-norm": decoder_of(POST_NORM, 6 * NORM),
    "decoder RelPosMHAXL": decoder_of(PRE_NORM, relative_decoder=True),
    "conformer + decoder": with_decoder(CONFORMER),
    "branchformer + decoder": with_decoder(BRANCHFORMER),
    "transformer + decoder post-norm": with_decoder(POST_NORM, 6 * NORM),
    **{
        f"{family} {attention}{' large' * large}": wav2vec2_build(
            family, attention=attention, norms_first=large
        )
        for family, attentions in (
            ("Wav2Vec2", ("eager", "sdpa")),
            ("Hubert", ("eager", "sdpa")),
            ("WavLM", ("eager",)),
        )
        for attention in attentions
        for large in (False, True)
    },
    "toy": Build(
        toy_structures,
        TOY_KINDS,
        left=0,
        options={"family": "toy"},
        probe="inputs.weight",
    ),
    **{
        f"Whisper + decoder {attention}": whisper_build(
            whisper.KINDS, attention
        )
        for attention in ("eager", "sdpa")
    },
    "Whisper encoder": whisper_build(
        whisper.ENCODER_KINDS, "sdpa", decoder=False
    ),
    "Whisper's decoder": replace(
        whisper_build(whisper.DECODER_KINDS, "sdpa"),
        structures=partial(
            whisper_structures,
            sides=["decoder"],
            tokens_per_frame=TOKENS / MEL_FRAMES,
        ),
    ),
    "SpeechBrain wav2vec2": replace(
        wav2vec2_build("SpeechBrain", norms_first=True),
        probe="latent_encoder.input_projector.bias",
    ),
}
for row in (
    "conformer RelPosMHAXL",
    "conformer RelPosMHAXL causal",
    "transformer",
    "transformer post-norm",
    "Wav2Vec2 eager",
    "Wav2Vec2 sdpa large",
    "Hubert sdpa",
    "Hubert eager large",
    "WavLM eager",
    "WavLM eager large",
    "Whisper + decoder eager",
    "Whisper + decoder sdpa",
    "SpeechBrain wav2vec2",
):
    kinds = BUILDS[row].kinds + INSIDE_HEADS
    BUILDS[f"{row} unequal"] = replace(BUILDS[row], kinds=kinds, unequal=True)
ROWS = list(BUILDS)
KINDS_OF = [
    (row, kind)
    for row, build in BUILDS.items()
    # what is outside of heads is declared as where they are equal
    for kind in (INSIDE_HEADS if build.unequal else build.kinds)
]

each_build = pytest.mark.parametrize(
    "build", BUILDS.values(), ids=BUILDS.keys()
)


@st.composite
def builds_and_kinds(draw):
    """A build and some of its kinds."""
    build = BUILDS[draw(st.sampled_from(ROWS))]
    kinds = draw(st.sets(st.sampled_from(build.kinds), min_size=1))
    return build, sorted(kinds)


@pytest.mark.parametrize("row, kind", KINDS_OF)
def test_each_kind_alone(
    make_model, compute, random_plan, masked_and_cut, row, kind
):
    build = BUILDS[row]
    model = build.make(make_model, layers=3)
    dense = compute(model)
    declaration = build.declare(model, [kind])
    plan = random_plan(declaration, seed=1)
    masked, cut = masked_and_cut(declaration, plan, compute)
    assert_exact(masked, cut)
    assert (dense - cut).abs().max() > 0.01  # the plan does cut something


@reproducible
@given(
    build_and_kinds=builds_and_kinds(),
    seed=st.integers(0, 10**6),
    keep=st.floats(0.1, 0.95),
    batch=st.integers(1, 3),
    padded=st.booleans(),
)
def test_combinations(
    make_model,
    compute,
    random_plan,
    masked_and_cut,
    build_and_kinds,
    seed,
    keep,
    batch,
    padded,
):
    build, kinds = build_and_kinds
    declaration = build.declare(build.make(make_model, seed=seed), kinds)
    plan = random_plan(declaration, seed, keep)
    masked, cut = masked_and_cut(
        declaration, plan, lambda m: compute(m, batch, build.frames, padded)
    )
    assert_exact(masked, cut)


def one_unit_each(declaration):
    """One unit per module, every module open."""
    plan = full_plan(declaration)
    for structure in declaration.structures:
        if structure.is_leaf:
            kept = plan.keep[structure.name]
            for inside in declaration.by_holder(structure, kept):
                inside[1:] = False
    return plan


def modules_of_a_layer_gone(declaration):
    """All modules of the first layer of each stack gone, one by one."""
    plan = full_plan(declaration)
    for structure in declaration.structures:
        if structure.parent in first_layers(declaration):
            plan.keep[structure.name][:] = False
    return plan


def whole_layer_gone(declaration):
    """The first layer of each stack gone."""
    plan = full_plan(declaration)
    for name in first_layers(declaration):
        plan.keep[name][:] = False
    return plan


def everything_gone(declaration):
    """Every layer gone, and one unit left of what no layer holds."""
    plan = full_plan(declaration)
    for structure in declaration.structures:
        outside = structure.is_leaf and structure.parent is None
        plan.keep[structure.name][int(outside) :] = False
    return plan


def first_layers(declaration):
    return [name for name in declaration.layers if name.endswith("layers.0")]


@each_build
@pytest.mark.parametrize(
    "extreme", [one_unit_each, modules_of_a_layer_gone, whole_layer_gone]
)
def test_extremes(make_model, compute, masked_and_cut, build, extreme):
    model = build.make(make_model)
    declaration = build.declare(model)
    plan = extreme(declaration)
    expected = int(
        parameter_cost(declaration).of_kept(plan.kept_counts(declaration))
    )
    assert_exact(*masked_and_cut(declaration, plan, compute))
    assert count(declaration) == expected
    assert all(p.numel() for p in model.parameters())


@each_build
def test_everything_gone(make_model, compute, masked_and_cut, build):
    declaration = build.declare(build.make(make_model))
    plan = everything_gone(declaration)
    assert_exact(*masked_and_cut(declaration, plan, compute))
    layers = [declaration.root.get_submodule(n) for n in declaration.layers]
    left = [p.numel() for layer in layers for p in layer.parameters()]
    assert sum(left) == build.left


@each_build
@pytest.mark.parametrize("extreme", [modules_of_a_layer_gone, whole_layer_gone])
def test_every_parameter_stays_in_use(make_model, compute, build, extreme):
    """So DistributedDataParallel needs no `find_unused_parameters`."""
    declaration = build.declare(build.make(make_model))
    plan, model = extreme(declaration), declaration.root

    def unused():
        model.zero_grad()
        compute(model).sum().backward()
        return [
            name
            for scope in declaration.scope
            for name, tensor in model.get_submodule(scope).named_parameters()
            if tensor.grad is None
        ]

    in_dense = unused()
    attach_(declaration).set_(plan.values(declaration))
    assert unused() == in_dense
    detach_(model)
    cut_(declaration, plan)
    assert unused() == in_dense


@pytest.fixture(scope="module")
def few_objects():
    """Makes the collection of garbage look at new objects alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@each_build
def test_declarations_keep_nothing_alive(make_model, build, few_objects):
    """They outlive the cut; the dense weights must not."""
    declaration = build.declare(build.make(make_model))
    root = declaration.root
    operations = declaration.operations(build.frames)
    gone = [
        weakref.ref(root.get_submodule(name))
        for structure in declaration.structures
        for name, _ in structure.removes
    ]
    cut_(declaration, everything_gone(declaration))
    gc.collect()
    assert not any(module() for module in gone)
    assert declaration.operations(build.frames) == operations


@each_build
def test_cut_model_is_batch_invariant(
    make_model, compute, random_plan, masked_and_cut, build
):
    declaration = build.declare(build.make(make_model))
    plan = random_plan(declaration, keep=0.8)
    _, four = masked_and_cut(
        declaration, plan, lambda m: compute(m, 4, build.frames, False)
    )
    with torch.no_grad():
        one = compute(declaration.root, 1, build.frames, False)
    # other batches take other kernels, so compare what is large relatively
    largest = one.abs().max().clamp_min(1)
    assert (four[:1] - one).abs().max() <= TOLERANCE * largest


@each_build
@pytest.mark.parametrize("leaves", [False, True])
def test_gradients_of_what_stays_are_exact(
    make_model, compute, random_plan, masked_and_cut, build, leaves
):
    declaration = build.declare(build.make(make_model))
    plan = random_plan(declaration, keep=0.8)
    if leaves:  # every module open: norms over what is left of their axis
        for structure in declaration.structures:
            if not structure.is_leaf:
                plan.keep[structure.name][:] = True

    @torch.enable_grad()
    def gradient(model):
        weight = model.get_parameter(build.probe)
        (found,) = torch.autograd.grad(
            compute(model).square()[..., :3].sum(), weight
        )
        return found / found.abs().max()

    masked, cut = masked_and_cut(declaration, plan, gradient)
    assert (masked - cut).abs().max() <= 1e-4


@each_build
def test_meta_tensors_are_cut_alike(make_model, random_plan, build):
    real, meta = build.make(make_model), build.make(make_model).to("meta")
    for model in (real, meta):
        declaration = build.declare(model)
        cut_(declaration, random_plan(declaration, keep=0.8))
    assert all(p.is_meta for p in meta.parameters())
    meta.load_state_dict(real.state_dict(), strict=True, assign=True)


def scope(declaration):
    return [declaration.root.get_submodule(n) for n in declaration.scope]


def count(declaration):
    """Parameters of what the budget counts."""
    return sum(
        p.numel() for module in scope(declaration) for p in module.parameters()
    )


@torch.no_grad()
def counted_macs(declaration, compute, frames):
    """MACs of the scope at op level, for one utterance."""
    model = declaration.root
    calls = record_calls(
        scope(declaration), lambda: compute(model, 1, frames, False)
    )
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        for call in calls:
            call.module(*call.args, **call.kwargs)
    return counter.get_total_flops() / 2


@each_build
def test_dense_cost(make_model, compute, build):
    declaration = build.declare(build.make(make_model))
    assert parameter_cost(declaration).dense() == count(declaration)
    macs = mac_cost(declaration, build.frames).dense()
    assert macs == pytest.approx(
        counted_macs(declaration, compute, build.frames), rel=1e-6
    )


@reproducible
@given(
    build_and_kinds=builds_and_kinds(),
    seed=st.integers(0, 10**6),
    keep=st.floats(0.1, 0.95),
)
def test_cut_cost(
    make_model,
    compute,
    random_plan,
    masked_and_cut,
    build_and_kinds,
    seed,
    keep,
):
    build, kinds = build_and_kinds
    declaration = build.declare(build.make(make_model), kinds)
    plan = random_plan(declaration, seed, keep)
    kept = plan.kept_counts(declaration)
    parameters = float(parameter_cost(declaration).of_kept(kept))
    # The narrower of queries and values is padded with zeros to the other:
    # what that costs is counted, not priced. Else both bounds are the same.
    padded = heads_as_wide_as_before(declaration, plan)
    macs, most = (
        float(mac_cost(declaration, build.frames).of_kept(counts))
        for counts in (kept, padded.kept_counts(declaration))
    )
    with patch.object(unequal_heads, "WIDTH_STEP", 1):  # no more padding
        masked_and_cut(declaration, plan, lambda m: None)
    assert parameters == pytest.approx(count(declaration), abs=1e-6)
    counted = counted_macs(declaration, compute, build.frames)
    assert macs * (1 - 1e-6) <= counted <= most * (1 + 1e-6)


def heads_as_wide_as_before(declaration, plan):
    """The plan, with all the dims of each head that stays."""
    wide = Plan(dict(plan.keep))
    for structure in declaration.structures:
        if structure.kind in INSIDE_HEADS:
            wide.keep[structure.name] = torch.ones(structure.units) > 0
    return wide


@pytest.mark.parametrize("training", [False, True])
@each_build
def test_open_gates_change_nothing(make_model, compute, build, training):
    model = build.make(make_model, dropout=0.1).train(training)

    def step():
        torch.manual_seed(0)
        model.zero_grad()
        output = compute(model)
        output.square()[..., :3].sum().backward()
        gradients = [
            p.grad.clone() for p in model.parameters() if p.grad is not None
        ]
        return [output.detach(), *gradients]

    stock = step()
    attach_(build.declare(model))
    for before, after in zip(stock, step()):
        assert_same_but_for_rounding(before, after)
