"""How alike two computations of the same thing are."""

from contextlib import contextmanager

import torch


def assert_same_but_for_rounding(found, expected):
    """Fails if two tensors differ by more than kernels may round apart.

    The same weights give the same bits on the same path only: gradients
    that are wanted or not, weights that are trained or mapped from a file
    choose other kernels on some processors. Anything that is missing, left
    over or out of place shows above 1e-5 of the largest value.

    Arguments
    ---------
    found, expected : torch.Tensor
        Of the same shape.
    """
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


def assert_exact(masked, cut):
    """Fails if the cut model computes something else than the masked one.

    Within 1e-5, relative to the largest value where that exceeds 1.

    Arguments
    ---------
    masked, cut : torch.Tensor
        Of the same shape.
    """
    assert torch.isfinite(masked).all()
    largest = cut.abs().max().clamp_min(1)
    assert (masked - cut).abs().max() <= 1e-5 * largest


@contextmanager
def new_switch(operation):
    """Context in which a new switch for TF32 contradicts the old ones.

    As in a process where a user has set that switch alone.

    Arguments
    ---------
    operation : object
        Such as `torch.backends.cudnn.conv`.

    Returns
    -------
    str
        What it is set to.
    """
    old = torch.backends.cudnn.allow_tf32  # cannot be read in the context
    before = operation.fp32_precision
    operation.fp32_precision = "ieee" if before == "tf32" else "tf32"
    try:
        yield operation.fp32_precision
    finally:
        torch.backends.cudnn.allow_tf32 = old
        operation.fp32_precision = before
