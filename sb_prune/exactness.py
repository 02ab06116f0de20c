"""Whether two states of a model compute the same."""

import torch


@torch.no_grad()
def first_outputs(modules, forward):
    """What some modules return when a forward first calls them.

    Later calls may depend on what a search decided in between, so that they
    cannot be compared.

    Arguments
    ---------
    modules : list of torch.nn.Module
        What to listen to.
    forward : callable
        Runs the model.

    Returns
    -------
    list of torch.Tensor or None
        Per module the tensor (of a tuple the first), None if it did not run.
    """
    outputs = {}

    def listen(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        outputs.setdefault(module, first.clone())

    handles = [module.register_forward_hook(listen) for module in modules]
    forward()
    for handle in handles:
        handle.remove()
    return [outputs.get(module) for module in modules]


def largest_difference(before, after):
    """Compares what `first_outputs` found in two states of a model.

    Arguments
    ---------
    before, after : list of torch.Tensor or None
        Of the same modules. An output that itself was cut has another shape;
        it is compared through what reads it.

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
    differences = [
        (a - b).abs().max().item()
        for a, b in zip(before, after)
        if a is not None and b is not None and a.shape == b.shape
    ]
    return max(differences, default=float("nan"))
