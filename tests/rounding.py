"""How alike two computations of the same thing are."""

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
