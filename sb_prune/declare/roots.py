"""The root of a declaration: one of the recipe's modules, or several.

The `pruning` block names one entry of `modules`, and names start inside it
(`encoder.layers.0`); or it lists several, side by side, and names start with
the entry (`Transformer.encoder.layers.0`).
"""

import torch


def entries_of(module):
    """The entries of `modules` that the `pruning` block names.

    Arguments
    ---------
    module : str or list of str
        Its key `module`.

    Returns
    -------
    list of str

    Example
    -------
    >>> entries_of("Transformer"), entries_of(["CNN", "Transformer"])
    (['Transformer'], ['CNN', 'Transformer'])
    """
    return [module] if isinstance(module, str) else list(module)


def root_of(modules, module):
    """The module below which structures are declared.

    Arguments
    ---------
    modules : dict
        Name -> module of the recipe.
    module : str or list of str
        Which of them.

    Returns
    -------
    torch.nn.Module

    Example
    -------
    >>> modules = {"CNN": torch.nn.Identity(), "lin": torch.nn.Linear(1, 1)}
    >>> [name for name, _ in root_of(modules, "lin").named_parameters()]
    ['weight', 'bias']
    >>> [name for name, _ in root_of(modules, ["lin"]).named_parameters()]
    ['lin.weight', 'lin.bias']
    """
    if isinstance(module, str):
        return modules[module]
    return torch.nn.ModuleDict({entry: modules[entry] for entry in module})


def by_entry(module, names):
    """Names from the root, as names from the entry in which each lies.

    Arguments
    ---------
    module : str or list of str
        What the root was made of.
    names : iterable of str

    Returns
    -------
    dict
        Entry -> list of str.

    Example
    -------
    >>> by_entry(["CNN", "Transformer"], ["Transformer.encoder.layers.0"])
    {'Transformer': ['encoder.layers.0']}
    """
    if isinstance(module, str):
        return {module: list(names)}
    found = {}
    for name in names:
        entry, _, inside = name.partition(".")
        found.setdefault(entry, []).append(inside)
    return found


def side_by_side(**factories):
    """Makes several modules, as a root of which names start with the entry.

    Arguments
    ---------
    **factories : callable
        Entry -> what makes its module.

    Returns
    -------
    torch.nn.ModuleDict

    Example
    -------
    >>> list(side_by_side(CNN=torch.nn.Identity, norm=torch.nn.Identity))
    ['CNN', 'norm']
    """
    return torch.nn.ModuleDict(
        {entry: factory() for entry, factory in factories.items()}
    )
