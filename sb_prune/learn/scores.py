"""Structures chosen by a score: the baselines that learned gates must beat.

A score is a function of the pruner that gives one number per unit, higher
stays longer. To add one, write a function like `magnitude_score` and name it
in YAML.

Shapes: N units of the whole declaration.
"""

import torch

from sb_prune.learn.pruner import BasePruner, scored
from sb_prune.support.values import Whole, checked


def random_score(pruner):
    """Random numbers, the same at every step.

    Arguments
    ---------
    pruner : BasePruner

    Returns
    -------
    torch.Tensor
        (N,)
    """
    generator = torch.Generator().manual_seed(pruner.seed)
    return torch.rand(pruner.declaration.total_units, generator=generator)


@torch.no_grad()
def magnitude_score(pruner):
    """L2 norm of the weights that leave with a unit, per square root of their
    number, so that structures of all sizes compare.

    Li et al., "Pruning Filters for Efficient ConvNets" (2017), with L2.

    Arguments
    ---------
    pruner : BasePruner

    Returns
    -------
    torch.Tensor
        (N,)
    """
    declaration = pruner.declaration
    parameters = dict(declaration.root.named_parameters())
    found = {
        s.name: _mean_square(s, parameters).cpu()
        for s in declaration.structures
        if not s.holds
    }
    for holder in declaration.structures:
        if holder.holds:
            inside = [
                found[s.name].view(holder.units, -1).mean(1)
                for s in declaration.structures
                if s.parent == holder.name
            ]
            found[holder.name] = torch.stack(inside).mean(0)
    return torch.cat([found[s.name] for s in declaration.structures]).sqrt()


def taylor_score(pruner):
    """Squared first-order change of the loss, per cost that it would free.

    Molchanov et al., "Importance Estimation for Neural Network Pruning"
    (2019), eq. 8: (sum of g w)^2 over the weights of a unit, a mean over
    batches. The gradient of a unit's gate *is* that sum.

    Arguments
    ---------
    pruner : BasePruner

    Returns
    -------
    torch.Tensor
        (N,)
    """
    return pruner.saliency / pruner.prices


def _mean_square(structure, parameters):
    """(units,) mean square of all that a structure would take away."""
    if structure.removes:
        gone = [
            parameter
            for name, parameter in parameters.items()
            if structure.takes(name)
        ]
        total = sum(p.square().sum() for p in gone)
        return (total / sum(p.numel() for p in gone)).view(1)
    total, count = 0, 0
    for cut in structure.cuts:
        if cut.tensor not in parameters:  # a buffer
            continue
        weights, dim = parameters[cut.tensor], cut.dim
        if dim is None:
            weights, dim = weights.flatten(), 0
        each = weights.movedim(dim, 0)[cut.index.to(weights.device)]
        each = each.reshape(structure.units, -1)
        total = total + each.square().sum(1)
        count += each.shape[1]
    return total / count


class ScorePruner(BasePruner):
    """Masks the units of the lowest score, more of them as the target rises.

    Zhu and Gupta, "To prune, or not to prune" (2017), for whole structures:
    the plan is chosen anew every few steps, and what is closed may return.

    Arguments
    ---------
    declaration : Declaration
        What can be cut.
    budget : ParameterBudget or MACBudget
        What is measured, and the target.
    schedule : LinearSchedule, CubicSchedule or ConstantSchedule, optional
        Fraction of the target that holds at each step.
    score : callable
        Pruner -> (N,) scores.
    every : int
        Optimizer steps from one choice to the next.
    decay : float
        Of the running mean of squared gate gradients (`saliency`).
    min_keep : int
        Units that stay where a module stays.
    seed : int
        Seed of the random numbers that scores draw.

    Example
    -------
    >>> from speechbrain.lobes.models.transformer.Conformer import (
    ...     ConformerEncoder,
    ... )
    >>> from sb_prune import ParameterBudget, conformer_structures
    >>> encoder = ConformerEncoder(2, d_model=8, d_ffn=16, nhead=2)
    >>> x, positions = torch.rand(1, 5, 8), torch.rand(1, 9, 8)
    >>> declaration = conformer_structures(encoder, kinds=["ffn_units"])
    >>> pruner = ScorePruner(declaration, ParameterBudget(0.2))
    >>> pruner.attach_()
    >>> pruner.sample_()
    >>> encoder(x, pos_embs=positions)[0].square().mean().backward()
    >>> pruner.step_()
    True
    >>> bool((pruner.saliency > 0).all())
    True
    """

    @checked
    def __init__(
        self,
        declaration,
        budget,
        schedule=None,
        score=taylor_score,
        every: Whole(1) = 10,
        decay=0.98,
        min_keep=1,
        seed=0,
    ):
        super().__init__(declaration, budget, schedule, min_keep, seed, decay)
        self.score = score
        self.every = every
        self._chosen = torch.ones(declaration.total_units)

    def scores(self):
        """Ranks the units, (N,)."""
        return scored(self, self.score, "score")

    def sample_(self):
        """Applies the plan of now, chosen anew every few steps."""
        if self.targets().any() and self.step % self.every == 0:
            self._chosen = self.plan().values(self.declaration)
        self._apply(self._chosen, learn=True)

    def _learn(self, gradient):
        self._listen(gradient)
        return True

    def state_dict(self):
        """What resuming needs."""
        return {**super().state_dict(), "chosen": self._chosen.clone()}

    def load_state_dict(self, state):
        """Takes what `state_dict` gave."""
        super().load_state_dict(state)
        self._chosen.copy_(state["chosen"])
