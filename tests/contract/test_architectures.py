"""What every architecture file must fulfil. A new one adds rows to BUILDS."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sb_prune.cost import mac_cost, parameter_cost
from sb_prune.masking import attach_, detach_
from sb_prune.plan import Plan, full_plan
from sb_prune.structures.conformer import KINDS, conformer_structures
from sb_prune.surgery import cut_

ATTENTIONS = ("RelPosMHAXL", "RoPEMHA", "regularMHA")
BUILDS = [(kind, causal) for kind in ATTENTIONS for causal in (False, True)]
FRAMES = 13
TOLERANCE = 1e-5

reproducible = settings(max_examples=40, derandomize=True, deadline=None)


def assert_exact(masked, cut):
    assert torch.isfinite(masked).all()
    assert (masked - cut).abs().max() <= TOLERANCE


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone(
    make_asr, encode, random_plan, masked_and_cut, build, kind
):
    model = make_asr(*build, layers=3)
    dense = encode(model)
    declaration = conformer_structures(model, kinds=[kind])
    plan = random_plan(declaration, seed=1)
    masked, cut = masked_and_cut(declaration, plan, encode)
    assert_exact(masked, cut)
    assert (dense - cut).abs().max() > 0.01  # the plan does cut something


@reproducible
@given(
    build=st.sampled_from(BUILDS),
    kinds=st.sets(st.sampled_from(KINDS), min_size=1).map(sorted),
    seed=st.integers(0, 10**6),
    keep=st.floats(0.1, 0.95),
    batch=st.integers(1, 3),
    padded=st.booleans(),
)
def test_combinations(
    make_asr,
    encode,
    random_plan,
    masked_and_cut,
    build,
    kinds,
    seed,
    keep,
    batch,
    padded,
):
    declaration = conformer_structures(make_asr(*build, seed=seed), kinds)
    plan = random_plan(declaration, seed, keep)
    masked, cut = masked_and_cut(
        declaration, plan, lambda m: encode(m, batch, FRAMES, padded)
    )
    assert_exact(masked, cut)


def one_unit_each(declaration):
    """One unit per module, every module open."""
    plan = full_plan(declaration)
    for structure in declaration.structures:
        if structure.is_leaf:
            plan.keep[structure.name][1:] = False
    return plan


def modules_of_a_layer_gone(declaration):
    """All four modules of the first layer gone, one by one."""
    plan = full_plan(declaration)
    first = declaration.structures[0].name
    for structure in declaration.structures:
        if structure.parent == first and not structure.is_leaf:
            plan.keep[structure.name][:] = False
    return plan


def whole_layer_gone(declaration):
    """The first layer gone."""
    plan = full_plan(declaration)
    plan.keep[declaration.layers[0]][:] = False
    return plan


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    "extreme", [one_unit_each, modules_of_a_layer_gone, whole_layer_gone]
)
def test_extremes(make_asr, encode, masked_and_cut, build, extreme):
    model = make_asr(*build)
    declaration = conformer_structures(model)
    plan = extreme(declaration)
    expected = int(
        parameter_cost(declaration).of_kept(plan.kept_counts(declaration))
    )
    assert_exact(*masked_and_cut(declaration, plan, encode))
    assert count(model.encoder) == expected
    assert all(p.numel() for p in model.parameters())


@pytest.mark.parametrize("build", BUILDS)
def test_everything_gone(make_asr, encode, masked_and_cut, build):
    model = make_asr(*build)
    declaration = conformer_structures(model)
    closed = {s.name: torch.zeros(s.units) > 0 for s in declaration.structures}
    assert_exact(*masked_and_cut(declaration, Plan(closed), encode))
    norms = 2 * model.encoder.norm.norm.weight.numel()
    assert count(model.encoder) == norms * (1 + len(declaration.layers))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("extreme", [modules_of_a_layer_gone, whole_layer_gone])
def test_every_parameter_stays_in_use(make_asr, encode, build, extreme):
    """So DistributedDataParallel needs no `find_unused_parameters`."""
    declaration = conformer_structures(make_asr(*build))
    plan, model = extreme(declaration), declaration.root

    def unused():
        model.zero_grad()
        encode(model).sum().backward()
        found = model.encoder.named_parameters()
        return [name for name, tensor in found if tensor.grad is None]

    attach_(declaration).set_(plan.values(declaration))
    assert not unused()
    detach_(model)
    cut_(declaration, plan)
    assert not unused()


@pytest.mark.parametrize("build", BUILDS)
def test_cut_model_is_batch_invariant(
    make_asr, encode, random_plan, masked_and_cut, build
):
    declaration = conformer_structures(make_asr(*build))
    plan = random_plan(declaration, keep=0.8)
    _, four = masked_and_cut(
        declaration, plan, lambda m: encode(m, 4, FRAMES, False)
    )
    one = encode(declaration.root, 1, FRAMES, False)
    assert (four[:1] - one).abs().max() <= TOLERANCE


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kinds", [KINDS, ("ffn_modules", "conv_channels")])
def test_gradients_of_what_stays_are_exact(
    make_asr, encode, random_plan, masked_and_cut, build, kinds
):
    declaration = conformer_structures(make_asr(*build), kinds)
    plan = random_plan(declaration, keep=0.8)

    @torch.enable_grad()
    def gradient(model):
        weight = next(model.custom_src_module.parameters())
        (found,) = torch.autograd.grad(
            encode(model).square()[..., :3].sum(), weight
        )
        return found / found.abs().max()

    masked, cut = masked_and_cut(declaration, plan, gradient)
    assert (masked - cut).abs().max() <= 1e-4


def count(module):
    return sum(p.numel() for p in module.parameters())


def counted_macs(model, encode):
    """MACs of the encoder at op level, for one utterance."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        encode(model, 1, FRAMES, False)
    counts = counter.get_flop_counts().get("ConformerEncoder", {})
    return sum(counts.values()) / 2


@pytest.mark.parametrize("build", BUILDS)
def test_dense_cost(make_asr, encode, build):
    model = make_asr(*build)
    declaration = conformer_structures(model)
    assert parameter_cost(declaration).dense() == count(model.encoder)
    macs = mac_cost(declaration, FRAMES).dense()
    assert macs == pytest.approx(counted_macs(model, encode), rel=1e-3)


@reproducible
@given(
    build=st.sampled_from(BUILDS),
    kinds=st.sets(st.sampled_from(KINDS), min_size=1).map(sorted),
    seed=st.integers(0, 10**6),
    keep=st.floats(0.1, 0.95),
)
def test_cut_cost(
    make_asr, encode, random_plan, masked_and_cut, build, kinds, seed, keep
):
    model = make_asr(*build)
    declaration = conformer_structures(model, kinds)
    plan = random_plan(declaration, seed, keep)
    kept = plan.kept_counts(declaration)
    parameters = float(parameter_cost(declaration).of_kept(kept))
    macs = float(mac_cost(declaration, FRAMES).of_kept(kept))
    masked_and_cut(declaration, plan, lambda m: None)
    assert math.isclose(parameters, count(model.encoder), abs_tol=1e-6)
    assert math.isclose(macs, counted_macs(model, encode), rel_tol=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", BUILDS)
def test_open_gates_change_nothing(make_asr, encode, build, training):
    model = make_asr(*build, dropout=0.1).train(training)

    def step():
        torch.manual_seed(0)
        model.zero_grad()
        output = encode(model)
        output.square()[..., :3].sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        return [output.detach(), *gradients]

    stock = step()
    attach_(conformer_structures(model))
    for before, after in zip(stock, step()):
        assert torch.equal(before, after)
