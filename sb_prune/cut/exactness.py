"""Compares what a model computes before and after the cut."""

import torch

from sb_prune.support.arithmetic import exact_arithmetic
from sb_prune.support.outputs import first_tensor


@torch.no_grad()
def first_outputs(modules, forward):
    """Records what modules return when they are first called in a forward.

    It runs in `exact_arithmetic`.

    Further calls are ignored: in a beam search they depend on its earlier
    decisions, so that they cannot be compared.

    Arguments
    ---------
    modules : list of torch.nn.Module
        The modules to observe.
    forward : callable
        Runs the model. Takes no arguments.

    Returns
    -------
    list of torch.Tensor or None
        For each module the `first_tensor` of its output, None if it was not
        called.
    """
    outputs = {}

    def listen(module, args, output):
        outputs.setdefault(module, first_tensor(output).clone())

    handles = [module.register_forward_hook(listen) for module in modules]
    try:
        with exact_arithmetic():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return [outputs.get(module) for module in modules]


def largest_difference(before, after):
    """Compares what `first_outputs` returned for two states of a model.

    Arguments
    ---------
    before, after : list of torch.Tensor or None
        Outputs of the same modules. Outputs of different shapes are skipped:
        they were cut themselves, and the modules that read them are compared.

    Returns
    -------
    float
        Largest absolute difference of any output value; NaN if there is
        nothing to compare.

    Example
    -------
    >>> linear, x = torch.nn.Linear(1, 1), torch.ones(1, 1)
    >>> before = first_outputs([linear], lambda: linear(x))
    >>> with torch.no_grad():
    ...     _ = linear.bias.add_(2.0)
    >>> after = first_outputs([linear], lambda: linear(x))
    >>> round(largest_difference(before, after), 3)
    2.0
    """
    found = [difference for difference, _ in _pairs(before, after)]
    # of torch, as Python's max may pass over a NaN
    return torch.tensor(found).max().item() if found else float("nan")


def is_rounding(before, after):
    """Whether two states of a model differ by no more than rounding.

    Arguments
    ---------
    before, after : list of torch.Tensor or None
        As for `largest_difference`.

    Returns
    -------
    bool
        False also if there is nothing to compare.

    Example
    -------
    >>> exact = [torch.tensor([1.0, 300.0])]
    >>> is_rounding(exact, [torch.tensor([1.0, 300.002])])
    True
    >>> is_rounding(exact, [torch.tensor([1.0, 300.02])])
    False
    """
    pairs = _pairs(before, after)
    within = [difference <= allowed for difference, allowed in pairs]
    return bool(within) and all(within)


def tolerance(output):
    """Largest difference from an output that counts as rounding.

    Arguments
    ---------
    output : torch.Tensor
        Of a module in the masked model.

    Returns
    -------
    float

    Example
    -------
    >>> tolerance(torch.tensor([0.5, -20.0]))
    0.0002
    >>> tolerance(torch.tensor([0.5]).bfloat16())
    0.0625
    """
    # Each value is rounded relative to itself, but sums of large values may
    # cancel, so small ones have errors of the large ones. In fp32, 1e-5 is 84
    # times the machine epsilon. In bf16 and fp16 sums are in fp32 within an
    # operation, and only its result is rounded: 24 such models of 2 and 12
    # layers differed by 0 to 2.6 epsilons.
    largest = output.abs().max().item()
    return max(1e-5, 8 * torch.finfo(output.dtype).eps) * max(1.0, largest)


def _pairs(before, after):
    """(difference, tolerance) of each output that both states have alike."""
    return [
        ((_exact(a) - _exact(b)).abs().max().item(), tolerance(a))
        for a, b in zip(before, after)
        if a is not None and b is not None and a.shape == b.shape
    ]


def _exact(output):
    return output.cpu().double()  # not every device has doubles
