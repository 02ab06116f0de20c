"""What masked and cut model are compared by."""

import math

import pytest
import torch

from sb_prune import cut_, front_end_structures, wav2vec2_structures
from sb_prune.cut.exactness import (
    first_outputs,
    is_rounding,
    largest_difference,
    tolerance,
)
from sb_prune.cut.masking import attach_, detach_


def test_cut_outputs_are_compared_through_what_reads_them(
    make_front_end, encode_features, random_plan
):
    root = make_front_end()
    declaration = front_end_structures(root)
    modules = [root.get_submodule(name) for name in declaration.scope]

    def outputs():
        return first_outputs(modules, lambda: encode_features(root))

    plan = random_plan(declaration)
    with torch.no_grad():
        attach_(declaration).set_(plan.values(declaration))
        masked = outputs()
        detach_(root)
        dense = outputs()
        cut_(declaration, plan)
        cut = outputs()
        assert masked[0].shape != cut[0].shape
        assert largest_difference(masked, cut) <= 1e-5
        assert largest_difference(dense, cut) > 0.1
        modules[1].bias[0] += 3
        assert abs(largest_difference(masked, outputs()) - 3) < 1e-5


def test_the_first_call_counts():
    module = torch.nn.Identity()

    def forward(last):
        for value in (1.0, last):
            module((torch.tensor(value), None))

    before, after = (
        first_outputs([module], lambda last=last: forward(last))
        for last in (2.0, 3.0)
    )
    assert largest_difference(before, after) == 0


def test_nothing_to_compare_is_no_number():
    quiet = first_outputs([torch.nn.Identity()], lambda: None)
    assert math.isnan(largest_difference(quiet, quiet))


def test_outputs_are_exact_under_autocast():
    linear = torch.nn.Linear(64, 64)
    x = torch.randn(8, 64)
    with torch.autocast("cpu"):
        rough = linear(x)
        (found,) = first_outputs([linear], lambda: linear(x))
    assert rough.dtype == torch.bfloat16
    assert torch.equal(found, linear(x))


def test_hooks_are_gone_after_an_exception():
    module = torch.nn.Identity()
    with pytest.raises(ZeroDivisionError):
        first_outputs([module], lambda: 1 / 0)
    assert not module._forward_hooks


# -------------------------------------------------------------- tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [0.01, 1.0, 50.0])
def test_tolerance_is_that_of_the_invariant(dtype, size):
    output = torch.tensor([0.0, -size], dtype=dtype)
    assert tolerance(output) == pytest.approx(1e-5 * max(1.0, size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tolerance_in_half_precision_is_a_few_roundings(dtype):
    value = torch.tensor([3.0], dtype=dtype)
    up = torch.nextafter(value, value + 1)
    assert is_rounding([value], [up])
    assert not is_rounding([value], [value + 0.3])
    assert not is_rounding([value.float()], [up.float()])


def test_each_output_has_its_own_tolerance():
    large, small = torch.tensor([1000.0]), torch.tensor([1.0])
    off = torch.tensor([5e-3])
    assert is_rounding([large, small], [large + off, small])
    assert not is_rounding([large, small], [large, small + off])


@pytest.mark.parametrize("first", [True, False])
def test_nan_is_no_rounding(first):
    fine, nan = torch.zeros(2), torch.tensor([0.0, torch.nan])
    before, after = [fine, fine], [nan, fine] if first else [fine, nan]
    assert math.isnan(largest_difference(before, after))
    assert not is_rounding(before, after)


def test_nothing_to_compare_is_no_rounding():
    assert not is_rounding([], [])
    assert not is_rounding([None], [None])
    assert not is_rounding([torch.zeros(2)], [torch.zeros(3)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_cut_in_half_precision(make_wav2vec2, random_plan, dtype, seed):
    root = make_wav2vec2(layers=4).to(dtype)
    declaration = wav2vec2_structures(root)
    wavs = torch.randn(2, 700, generator=torch.Generator().manual_seed(5))
    plan = random_plan(declaration, seed)

    def outputs():
        return first_outputs([root.encoder], lambda: root(wavs.to(dtype)))

    attach_(declaration).set_(plan.values(declaration).to(dtype))
    masked = outputs()
    detach_(root)
    dense = outputs()
    cut_(declaration, plan)
    cut = outputs()
    assert cut[0].dtype == dtype
    assert is_rounding(masked, cut)
    assert not is_rounding(dense, cut)
