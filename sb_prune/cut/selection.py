"""Chooses which units go by what the layer that reads them loses.

Units that tell the same make each other needless, though the loss may need each
of them: a score of single units cannot see that. The least-squares problem of
the layer that reads them can.
"""

import torch

PER_STEP = 128  # of so many units one goes before costs are found anew


def keep_best(gram, weights, units, groups):
    """Removes the units that a layer misses least, with all others refitted.

    The layer is linear. While one unit after another goes, its weights stay
    the least-squares solution for the units that are left. What the squared
    error gains if the inputs u of a unit go is, as in the "optimal brain
    surgeon" (Kurtic et al., "ZipLM", NeurIPS 2023, 2302.04089, eq. 2),

        sum over outputs of w_u^T ((G^-1)_uu)^-1 w_u

    Arguments
    ---------
    gram : torch.Tensor
        (inputs, inputs) float64, the matrix G of the problem, X^T X and the
        ridge; positive definite.
    weights : torch.Tensor
        (inputs, outputs) float64, the solution that reads all inputs.
    units : torch.Tensor
        (units, entries) int64, the inputs of each unit.
    groups : list of (torch.Tensor, int)
        (units,) bool, the units of a group, and how many of them stay. All
        others stay.

    Returns
    -------
    torch.Tensor
        (units,) bool, True for the units that stay.

    Example
    -------
    >>> gram = torch.tensor([[1.0, 0.9, 0], [0.9, 1.0, 0], [0, 0, 0.5]])
    >>> weights, units = torch.ones(3, 1), torch.arange(3).unsqueeze(1)
    >>> everything = torch.ones(3).bool()
    >>> keep_best(gram, weights, units, [(everything, 2)]).tolist()
    [False, True, True]
    """
    inverse, weights = torch.linalg.inv(gram), weights.clone()
    stays = torch.ones(len(units)).bool()
    while True:
        spare = {i: int(stays[m].sum()) - n for i, (m, n) in enumerate(groups)}
        if not any(count > 0 for count in spare.values()):
            return stays
        most = max(int(stays.sum()) // PER_STEP, 1)
        gone = _cheapest(inverse, weights, units, stays, groups, spare, most)
        stays[gone] = False
        entries = units[gone].flatten()
        step = torch.linalg.solve(
            inverse[entries][:, entries], inverse[entries]
        )  # (entries, inputs)
        weights -= step.T @ weights[entries]
        inverse -= inverse[:, entries] @ step
        inverse[entries, entries] = 1.0  # it is not asked for again


def _cheapest(inverse, weights, units, stays, groups, spare, most):
    """Indices of the units that cost the least, at most so many."""
    blocks = inverse[units.unsqueeze(2), units.unsqueeze(1)]  # (units, e, e)
    read = weights[units]  # (units, e, outputs)
    costs = (read * torch.linalg.solve(blocks, read)).sum((1, 2))
    group_of = torch.full((len(units),), -1)
    for i, (members, _) in enumerate(groups):
        group_of[members] = i
    found = []
    for unit in costs.argsort().tolist():
        group = int(group_of[unit])
        if group >= 0 and stays[unit] and spare[group] > 0:
            spare[group] -= 1
            found.append(unit)
            if len(found) == most:
                break
    return torch.tensor(found)
