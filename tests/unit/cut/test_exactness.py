"""What masked and cut model are compared by."""

import math

import pytest
import torch
from rounding import new_switch

from sb_prune import cut_, front_end_structures, wav2vec2_structures
from sb_prune.cut.exactness import (
    exact_arithmetic,
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


# ------------------------------------------------------------- arithmetic


def settings():
    """All that can make arithmetic on fp32 tensors less exact."""
    backends = torch.backends
    operations = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    )
    return {
        "autocast": torch.is_autocast_enabled("cpu"),
        "matmul": torch.get_float32_matmul_precision(),
        "cuda": backends.cuda.matmul.allow_tf32,
        "cudnn": backends.cudnn.allow_tf32,
        "operations": [o.fp32_precision for o in operations],
    }


EXACT = {
    "autocast": False,
    "matmul": "highest",
    "cuda": False,
    "cudnn": False,
    "operations": ["ieee"] * 6,
}


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request):
    """How exact products of fp32 matrices are, outside of the comparison."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("autocast", [False, True])
def test_settings_are_exact_inside_and_back_after(precision, autocast):
    with torch.autocast("cpu", enabled=autocast):
        before = settings()
        assert (before["matmul"], before["autocast"]) == (precision, autocast)
        with exact_arithmetic():
            assert settings() == EXACT
            with exact_arithmetic():
                assert settings() == EXACT
            assert settings() == EXACT
        assert settings() == before


def test_settings_are_back_after_an_exception(precision):
    with torch.autocast("cpu"):
        before = settings()
        with pytest.raises(KeyError), exact_arithmetic():
            raise KeyError
        assert settings() == before


@pytest.mark.parametrize(
    "switch", ["cuda.matmul", "cudnn.conv", "mkldnn.conv", "mkldnn.matmul"]
)
def test_new_switches_alone_are_back_after(switch):
    """The old ones then contradict them, and torch refuses to read those."""
    backend, operation = switch.split(".")
    operation = getattr(getattr(torch.backends, backend), operation)
    with new_switch(operation) as precision:
        with exact_arithmetic():
            assert settings() == EXACT
        assert operation.fp32_precision == precision


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
