"""Chooses which units go by what the layer that reads them loses.

Units that tell the same make each other needless, though the loss may need each
of them: a score of single units cannot see that. The least-squares problem of
the layer that reads them can.
"""

import torch

PER_STEP = 128  # of so many units one goes before all costs are found anew
NEAR = 4  # so many times as many are looked at meanwhile


def keep_best(gram, weights, units, group_of, counts):
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
    group_of : torch.Tensor
        (units,) int64, the group of each unit.
    counts : torch.Tensor
        (groups,) int64, how many units of each stay.

    Returns
    -------
    torch.Tensor
        (units,) bool, True for the units that stay.

    Example
    -------
    >>> gram = torch.tensor([[1.0, 0.9, 0], [0.9, 1.0, 0], [0, 0, 0.5]])
    >>> weights, units = torch.ones(3, 1), torch.arange(3).unsqueeze(1)
    >>> one = torch.zeros(3, dtype=torch.long)
    >>> keep_best(gram, weights, units, one, torch.tensor([2])).tolist()
    [False, True, True]
    """
    inverse, weights = torch.linalg.inv(gram), weights.clone()
    stays = torch.ones(len(units)).bool()
    spare = group_of.bincount(minlength=len(counts)) - counts
    while (spare > 0).any():
        may_go = stays & (spare[group_of] > 0)
        costs = _costs(inverse, weights, units).masked_fill(~may_go, torch.inf)
        few = max(int(may_go.sum()) // PER_STEP, 1)
        cheap = costs.argsort()[: min(NEAR * few, int(may_go.sum()))]
        gone = _in_turn(
            inverse, weights, units[cheap], group_of[cheap], spare, few
        )
        stays[cheap[gone]] = False
        _remove_(inverse, weights, units[cheap[gone]].flatten())
    return stays


def _in_turn(inverse, weights, units, group_of, spare, few):
    """Indices of the units that go, one after another, among some cheap ones.

    Twins are cheap as long as both are there, so costs are found anew after
    each; what happens to all others can wait. Counts down what is to spare.
    """
    entries = units.flatten()
    inverse, weights = inverse[entries][:, entries], weights[entries]
    units = torch.arange(len(entries)).view_as(units)
    gone = []
    for _ in range(few):
        may_go = spare[group_of] > 0
        may_go[gone] = False
        if not may_go.any():
            break
        costs = _costs(inverse, weights, units)
        unit = int(costs.masked_fill(~may_go, torch.inf).argmin())
        gone.append(unit)
        spare[group_of[unit]] -= 1
        _remove_(inverse, weights, units[unit])
    return gone


def _costs(inverse, weights, units):
    """(units,) what the squared error gains if one of them goes."""
    blocks = inverse[units.unsqueeze(2), units.unsqueeze(1)]
    read = weights[units]  # (units, entries, outputs)
    return (read * (torch.linalg.inv(blocks) @ read)).sum((1, 2))


def _remove_(inverse, weights, entries):
    """Leaves the solution, and the inverse, without some of the inputs."""
    step = torch.linalg.solve(
        inverse[entries][:, entries], inverse[entries]
    )  # (entries, inputs)
    weights.addmm_(step.T, weights[entries], alpha=-1)
    inverse.addmm_(inverse[:, entries], step, alpha=-1)
    inverse[entries, entries] = 1.0  # it is not asked for again
