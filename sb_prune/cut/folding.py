"""Parametrized weights (weight norm) as plain ones.

wav2vec 2.0's positional convolution trains under weight norm. An export has
its weight as it is multiplied by, on a skeleton without parametrizations.
"""

import torch
from torch.nn.utils import parametrize


def fold_(root):
    """Makes every parametrized tensor below a module a plain parameter.

    Not on a model that has copies: torch gives copies one class.

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
    """What `state_dict` would hold after `fold_`; the module stays as it is.

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
