"""Calls of some modules, recorded to be made again."""

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
