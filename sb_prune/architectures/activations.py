"""Activations between two layers of weights, whose units can only be cut where
the activation treats each of them separately."""

import copy

import torch


@torch.no_grad()
def acts_per_unit(activation, units):
    """Whether an activation treats each unit separately from the others.

    GELU and ReLU do, softmax and GLU do not. An activation with a parameter
    for each unit (PReLU) is refused too, since no structure cuts it.

    Arguments
    ---------
    activation : callable
        (..., units) -> (..., units). A copy of it is run on numbers.
    units : int
        Number of units.

    Returns
    -------
    bool

    Example
    -------
    >>> acts_per_unit(torch.nn.GELU(), 8), acts_per_unit(torch.nn.GLU(), 8)
    (True, False)
    """
    if isinstance(activation, torch.nn.Module):
        if any(p.numel() > 1 for p in activation.parameters()):
            return False
        activation = copy.deepcopy(activation).eval()
        for owner in activation.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                # the original may be on the meta device, without a value
                value = torch.full(parameter.shape, 0.5, device="cpu")
                setattr(owner, name, torch.nn.Parameter(value))
    one = torch.linspace(-3, 3, 2 * units, device="cpu").view(1, 2, units)
    other = one.clone()
    other[..., ::2] += 1  # every second unit changes
    try:
        first, second = activation(one.clone()), activation(other)
    except RuntimeError:  # it does not accept this shape
        return False
    same = torch.equal(first[..., 1::2], second[..., 1::2])
    return first.shape == one.shape and same


def refused_activation(kind, activation, units):
    """Makes the entry of `Part.refused` for an activation that mixes units.

    Arguments
    ---------
    kind : str
        Kind of the units.
    activation : callable
    units : int
        Number of units.

    Returns
    -------
    tuple of (str, str)
        Empty if the activation treats each unit separately.
    """
    if acts_per_unit(activation, units):
        return ()
    name = getattr(activation, "__name__", type(activation).__name__)
    why = (
        f"the activation {name} does not act on each unit alone; write one "
        "that does, e.g. torch.nn.GELU"
    )
    return ((kind, why),)
