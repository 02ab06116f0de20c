"""Folds parametrized weights, such as those under weight norm, into plain ones.

The positional convolution of wav2vec 2.0 is trained under weight norm. An
export stores its resulting weight, for a model without parametrizations.
"""

import torch
from torch.nn.utils import parametrize


def fold_(root):
    """Turns every parametrized tensor below a module into a plain parameter.

    Must not be called on a model of which there are copies: torch gives a
    parametrized module and its copies one class, which this changes.

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
            for tensor in list(module.parametrizations):
                parametrize.remove_parametrizations(module, tensor)


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
