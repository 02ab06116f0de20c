"""The root of a declaration: one module of the recipe, or several.

The key `module` of the `pruning` block names one entry of the recipe's
`modules`, or lists several. The names of structures are paths from there: below
one entry `encoder.layers.0.ffn`, below several with the entry in front,
`Transformer.encoder.layers.0.ffn`.
"""

import torch


def entries_of(module):
    """Lists the entries of `modules` that the `pruning` block names.

    Arguments
    ---------
    module : str or list of str
        Value of the key `module`.

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
    """The module in which structures are declared.

    Arguments
    ---------
    modules : dict
        Entry -> module of the recipe.
    module : str or list of str
        The entry, or several of them.

    Returns
    -------
    torch.nn.Module
        The module itself, or a ModuleDict of several.

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
    """Groups names by entry.

    Arguments
    ---------
    module : str or list of str
        The entries of which `root_of` made the root.
    names : iterable of str
        Paths from the root.

    Returns
    -------
    dict
        Entry -> list of paths from the module of this entry.

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
    """Builds several modules into one root, each under the name of its entry.

    Arguments
    ---------
    **factories : callable
        Entry -> function without arguments that makes the module.

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
