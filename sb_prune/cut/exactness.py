"""Whether two states of a model compute the same."""

import torch


def first_tensor(output):
    """The tensor that a module returns, or the first of several.

    Arguments
    ---------
    output : torch.Tensor, tuple or dict
        The output; dicts are those of transformers too.

    Returns
    -------
    torch.Tensor

    Example
    -------
    >>> first_tensor({"masked": None, "embeddings": torch.ones(1)})
    tensor([1.])
    """
    if torch.is_tensor(output):
        return output
    values = output.values() if isinstance(output, dict) else output
    return next(value for value in values if torch.is_tensor(value))


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
        Per module the `first_tensor`, None if it did not run.
    """
    outputs = {}

    def listen(module, args, output):
        outputs.setdefault(module, first_tensor(output).clone())

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
