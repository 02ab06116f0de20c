"""Compares what a model computes before and after the cut."""

import torch


def first_tensor(output):
    """Selects the tensor that a module returns, or the first of several.

    Arguments
    ---------
    output : torch.Tensor, tuple or dict
        The output. Model outputs of transformers are dicts.

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
    """Records what modules return when they are first called in a forward.

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
    forward()
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
    differences = [
        (a - b).abs().max().item()
        for a, b in zip(before, after)
        if a is not None and b is not None and a.shape == b.shape
    ]
    return max(differences, default=float("nan"))
