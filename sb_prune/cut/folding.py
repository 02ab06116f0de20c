"""Folds parametrized weights, such as those under weight norm, into plain ones.

The positional convolution of wav2vec 2.0 is trained under weight norm. An
export stores its resulting weight, for a model without parametrizations.
"""

import torch
from torch.nn.utils import parametrize


def fold_(root):
    """Turns every parametrized tensor below a module into a plain parameter.

    Copies of the model stay parametrized.

    Arguments
    ---------
    root : torch.nn.Module

    Example
    -------
    >>> linear = torch.nn.utils.parametrizations.weight_norm(
    ...     torch.nn.Linear(2, 1)
    ... )
    >>> fold_(linear)
    >>> sorted(linear.state_dict())
    ['bias', 'weight']
    """
    for module in list(root.modules()):
        if parametrize.is_parametrized(module):
            _give_class_of_its_own_(module)
            for tensor in list(module.parametrizations):
                parametrize.remove_parametrizations(module, tensor)


def _give_class_of_its_own_(module):
    """Torch gives a parametrized module and its copies one class.

    Removing parametrizations changes that class, which would leave the copies
    without their tensors.
    """
    shared = type(module)
    own = {
        name: value
        for name, value in vars(shared).items()
        if name not in ("__dict__", "__weakref__")
    }
    module.__class__ = type(shared.__name__, shared.__bases__, own)


@torch.no_grad()
def folded_state(root):
    """State dict of a module as it would be after `fold_`.

    The module itself is not changed.

    Arguments
    ---------
    root : torch.nn.Module

    Returns
    -------
    dict
        Name -> tensor.

    Example
    -------
    >>> linear = torch.nn.utils.parametrizations.weight_norm(
    ...     torch.nn.Linear(2, 1)
    ... )
    >>> sorted(folded_state(linear))
    ['bias', 'weight']
    """
    state = dict(root.state_dict())
    for name, module in root.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        prefix = f"{name}." if name else ""
        for tensor, parts in module.parametrizations.items():
            for part in parts.state_dict():
                del state[f"{prefix}parametrizations.{tensor}.{part}"]
            state[prefix + tensor] = getattr(module, tensor)
    return state
