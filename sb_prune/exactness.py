"""Whether two states of a model compute the same, call by call."""

from dataclasses import dataclass

import torch


@dataclass
class Call:
    """One call of a module and what it returned.

    Arguments
    ---------
    module : torch.nn.Module
    args : tuple
    kwargs : dict
    output : object
        A tensor, or a tuple whose first value is the tensor that counts.
    """

    module: torch.nn.Module
    args: tuple
    kwargs: dict
    output: object


def record_calls(modules, forward):
    """Records every call of some modules in one forward.

    Arguments
    ---------
    modules : list of torch.nn.Module
        What to listen to.
    forward : callable
        Runs the model.

    Returns
    -------
    list of Call
    """
    calls = []
    handles = [
        module.register_forward_hook(
            lambda *call: calls.append(Call(*call)), with_kwargs=True
        )
        for module in modules
    ]
    forward()
    for handle in handles:
        handle.remove()
    return calls


@torch.no_grad()
def largest_difference(calls):
    """Repeats recorded calls and compares with what was returned then.

    Arguments
    ---------
    calls : list of Call

    Returns
    -------
    float
        Largest absolute difference of any output value.

    Example
    -------
    >>> linear, x = torch.nn.Linear(1, 1), torch.ones(1, 1)
    >>> calls = record_calls([linear], lambda: linear(x))
    >>> with torch.no_grad():
    ...     _ = linear.bias.add_(2.0)
    >>> round(largest_difference(calls), 3)
    2.0
    """
    return max(
        (_first(call.module(*call.args, **call.kwargs)) - _first(call.output))
        .abs()
        .max()
        .item()
        for call in calls
    )


def _first(output):
    return output[0] if isinstance(output, tuple) else output
