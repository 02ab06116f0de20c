"""What modules return."""

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
