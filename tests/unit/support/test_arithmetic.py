"""Arithmetic is exact inside the context, and as before after it."""

import pytest
import torch
from rounding import new_switch

from sb_prune.support.arithmetic import exact_arithmetic


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
