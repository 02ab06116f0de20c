"""What the front-end's structures must fulfil, alone and with a Conformer.

Another front-end is a row of FRONT_ENDS.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_exact, assert_same_but_for_rounding
from speechbrain.nnet.CNN import Conv2d
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sb_prune import (
    attach_,
    conformer_structures,
    front_end_structures,
    joined_structures,
    mac_cost,
    parameter_cost,
)
from sb_prune.architectures.conformer import KINDS

FRAMES = 23
TOLERANCE = 1e-5
FRONT_ENDS = {
    "two blocks": {},
    "residual": {"residuals": (True, True)},
    "two layers": {"num_layers_per_block": 2, "residuals": (False, True)},
    "three blocks": {
        "num_blocks": 3,
        "out_channels": (5, 6, 7),
        "kernel_sizes": (5, 5, 1),
        "strides": (2, 2, 1),
        "residuals": (False, False, True),
    },
    "dilated": {"strides": (1, 2), "dilations": (2, 1)},
    "valid": {"padding": "valid"},
    "causal": {"padding": "causal"},
    "bare": {"norm": None, "conv_bias": False},
    "one channel": {"out_channels": (3, 1)},
    "one channel first": {"out_channels": (1, 4), "residuals": (True, False)},
}

reproducible = settings(max_examples=40, derandomize=True, deadline=None)
front_ends = pytest.mark.parametrize(
    "front", FRONT_ENDS.values(), ids=FRONT_ENDS
)
kinds = st.sets(st.sampled_from(KINDS)).map(sorted)
fronts = st.sampled_from(list(FRONT_ENDS.values()))


def declare(root, kinds=()):
    """The front-end, with some kinds of the Conformer."""
    parts = [front_end_structures]
    if kinds:
        parts.append(lambda root: conformer_structures(root, kinds))
    return joined_structures(root, parts)


@front_ends
def test_channels_alone(
    make_front_end, encode_features, random_plan, masked_and_cut, front
):
    root = make_front_end(**front)
    dense = encode_features(root)
    declaration = front_end_structures(root)
    plan = random_plan(declaration, seed=1, keep=0.5)
    masked, cut = masked_and_cut(declaration, plan, encode_features)
    assert_exact(masked, cut)
    assert (dense - cut).abs().max() > 0.01  # the plan does cut something


@reproducible
@given(
    front=fronts,
    attention=st.sampled_from(("RelPosMHAXL", "RoPEMHA", "regularMHA")),
    kinds=kinds,
    seed=st.integers(0, 10**6),
    keep=st.floats(0.05, 0.95),
    padded=st.booleans(),
)
def test_together_with_the_conformer(
    make_front_end,
    encode_features,
    random_plan,
    masked_and_cut,
    front,
    attention,
    kinds,
    seed,
    keep,
    padded,
):
    root = make_front_end(attention, seed=seed, **front)
    declaration = declare(root, kinds)
    plan = random_plan(declaration, seed, keep)
    masked, cut = masked_and_cut(
        declaration, plan, lambda r: encode_features(r, 2, FRAMES, padded)
    )
    assert_exact(masked, cut)


@front_ends
def test_one_channel_left_of_each(
    make_front_end, encode_features, random_plan, masked_and_cut, front
):
    declaration = front_end_structures(make_front_end(**front))
    plan = random_plan(declaration, keep=0.0)
    assert all(kept.sum() == 1 for kept in plan.keep.values())
    assert_exact(*masked_and_cut(declaration, plan, encode_features))


@front_ends
def test_cut_model_is_batch_invariant(
    make_front_end, encode_features, random_plan, masked_and_cut, front
):
    declaration = declare(make_front_end(**front), KINDS)
    plan = random_plan(declaration, keep=0.7)
    _, four = masked_and_cut(
        declaration, plan, lambda r: encode_features(r, 4, FRAMES, False)
    )
    one = encode_features(declaration.root, 1, FRAMES, False)
    assert (four[:1] - one).abs().max() <= TOLERANCE


@front_ends
def test_gradients_of_what_stays_are_exact(
    make_front_end, encode_features, random_plan, masked_and_cut, front
):
    """At the bias of the reader, behind every channel, and at the features."""
    declaration = declare(make_front_end(**front), ["heads"])
    plan = random_plan(declaration, keep=0.6)

    @torch.enable_grad()
    def gradient(root):
        features = torch.randn(
            2, FRAMES, 12, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        bias = root["Transformer"].custom_src_module.layers[0].w.bias
        output = root["Transformer"].encode(root["CNN"](features))
        found = torch.autograd.grad(
            output.square()[..., :3].sum(), [features, bias]
        )
        return torch.cat([(g / g.abs().max()).flatten() for g in found])

    masked, cut = masked_and_cut(declaration, plan, gradient)
    assert (masked - cut).abs().max() <= 1e-4


def counted_modules(root):
    """What the budget counts: front-end, the Linear behind it, encoder."""
    transformer = root["Transformer"]
    reader = transformer.custom_src_module.layers[0].w
    return root["CNN"], reader, transformer.encoder


def count(modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def counted_macs(root, encode_features, encoder=True):
    """MACs of one utterance at op level, with or without the encoder's."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        encode_features(root, 1, FRAMES, False)
    total = counter.get_total_flops()
    if not encoder:
        counts = counter.get_flop_counts()
        total -= sum(counts.get("ConformerEncoder", {}).values())
    return total / 2


@front_ends
def test_dense_cost(make_front_end, encode_features, front):
    root = make_front_end(**front)
    declaration = declare(root, KINDS)
    assert parameter_cost(declaration).dense() == count(counted_modules(root))
    macs = mac_cost(declaration, FRAMES).dense()
    assert macs == pytest.approx(counted_macs(root, encode_features), rel=1e-9)


@reproducible
@given(
    front=fronts,
    kinds=kinds,
    seed=st.integers(0, 10**6),
    keep=st.floats(0.05, 0.95),
)
def test_cut_cost(
    make_front_end,
    encode_features,
    random_plan,
    masked_and_cut,
    front,
    kinds,
    seed,
    keep,
):
    root = make_front_end(**front)
    declaration = declare(root, kinds)
    plan = random_plan(declaration, seed, keep)
    kept = plan.kept_counts(declaration)
    parameters = float(parameter_cost(declaration).of_kept(kept))
    macs = float(mac_cost(declaration, FRAMES).of_kept(kept))
    masked_and_cut(declaration, plan, lambda r: None)
    counted = counted_modules(root)[: 3 if kinds else 2]
    assert math.isclose(parameters, count(counted), abs_tol=1e-6)
    real = counted_macs(root, encode_features, encoder=bool(kinds))
    assert math.isclose(macs, real, rel_tol=1e-9)


@front_ends
@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_is_declared_and_cut_again(
    make_front_end, encode_features, random_plan, masked_and_cut, front, seed
):
    root = make_front_end(**front)
    for kinds in (KINDS, ["layers"]):
        declaration = declare(root, kinds)
        plan = random_plan(declaration, seed, keep=0.7)
        plan.keep["Transformer.encoder.layers.0"][:] = True
        masked, cut = masked_and_cut(declaration, plan, encode_features)
        assert (masked - cut).abs().max() <= TOLERANCE


@front_ends
@pytest.mark.parametrize("frames", [7, 24, 101])
def test_frames_behind_the_front_end(make_front_end, front, frames):
    root = make_front_end(**front)
    declaration = front_end_structures(root)
    made = root["CNN"](torch.zeros(1, frames, 12)).shape[1]
    assert declaration.output_frames(frames) == made


@pytest.mark.parametrize("training", [False, True])
@front_ends
def test_open_gates_change_nothing(
    make_front_end, encode_features, front, training
):
    root = make_front_end(dropout=0.1, **front).train(training)

    def step():
        torch.manual_seed(0)
        root.zero_grad()
        output = encode_features(root)
        output.square()[..., :3].sum().backward()
        gradients = [p.grad.clone() for p in root.parameters()]
        return [output.detach(), *gradients]

    stock = step()
    attach_(declare(root, KINDS))
    for before, after in zip(stock, step()):
        assert_same_but_for_rounding(before, after)


def test_sizes_that_layers_report(make_front_end, random_plan, masked_and_cut):
    root = make_front_end(num_layers_per_block=2, residuals=(True, True))
    declaration = front_end_structures(root)
    plan = random_plan(declaration, keep=0.5)
    masked_and_cut(declaration, plan, lambda r: None)
    for module in root["CNN"].modules():
        if isinstance(module, Conv2d):
            made, read = module.conv.weight.shape[:2]
            assert module.in_channels == module.conv.in_channels == read
            assert module.conv.out_channels == made
        elif isinstance(module, torch.nn.LayerNorm):
            assert module.normalized_shape == module.weight.shape
    reader = counted_modules(root)[1]
    assert reader.in_features == reader.weight.shape[1]
