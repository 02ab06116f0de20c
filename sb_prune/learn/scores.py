"""Pruning by importance scores, as a baseline for learned gates.

A score is a function of the pruner that returns one number for each unit;
units with higher numbers stay longer. To add a score, write a function like
`magnitude_score` and name it in the YAML.

Shapes: N units of the whole declaration.
"""

import torch
from speechbrain.utils.logger import get_logger

from sb_prune.learn.base import BasePruner, scored
from sb_prune.support.values import Whole, checked

logger = get_logger(__name__)
NOISE = 1e-6  # gradients that rounding makes


def random_score(pruner):
    """Random scores, the same at every step; a baseline for other scores.

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
    """Root mean square of the weights that would be removed with a unit.

    This is their L2 norm (Li et al., "Pruning Filters for Efficient ConvNets",
    2017, with L2) divided by the square root of their number, so that units of
    all sizes can be compared.

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
        s.name: _mean_square(s, parameters)
        for s in declaration.structures
        if not s.holds
    }
    for holder in declaration.structures:
        if holder.holds:
            inside = [
                torch.stack(
                    [
                        piece.mean()
                        for piece in declaration.by_holder(s, found[s.name])
                    ]
                )
                for s in declaration.structures
                if s.parent == holder.name
            ]
            found[holder.name] = torch.stack(inside).mean(0)
    scores = torch.cat([found[s.name] for s in declaration.structures])
    return scores.sqrt().cpu()  # the only wait for the device


def taylor_score(pruner):
    """Squared first-order change of the loss, divided by the cost of a unit.

    Molchanov et al., "Importance Estimation for Neural Network Pruning"
    (2019), eq. 8: (sum of g w)^2 over the weights w of a unit and their
    gradients g, a mean over batches. The gradient of an open gate of the unit
    is this sum. It says nothing where the loss is at its minimum: a warning
    tells of a distillation that still compares a model with its exact copy.

    Arguments
    ---------
    pruner : BasePruner

    Returns
    -------
    torch.Tensor
        (N,)
    """
    largest = float(pruner.saliency.max()) ** 0.5
    if not pruner.step and pruner.rises():
        logger.warning_once(
            "taylor_score: units are chosen before a step has measured them; "
            "write a schedule that does not rise at once, e.g. LinearSchedule"
        )
    elif pruner.step and largest < NOISE:
        logger.warning_once(
            "taylor_score: the loss depends on no unit (largest gradient "
            f"{largest:.1e}), so their order is noise. A distillation from an "
            "exact copy has no gradient: let the loss of the task count too "
            "(task_weight), or write another score"
        )
    return pruner.saliency / pruner.prices


def local_score(pruner, score=magnitude_score):
    """Ranks of another score inside each structure, from 0 to 1.

    Then every structure loses about the same share of its units ("local" or
    "uniform" pruning), where a score by itself ranks the units of all layers
    together and may empty one of them. Units that lie in others (the dims of
    heads) are ranked inside each of these, so heads that stay lose that share
    of their dims. Whole modules, one unit each, stay.

    Arguments
    ---------
    pruner : BasePruner
    score : callable
        Pruner -> (N,) scores.

    Returns
    -------
    torch.Tensor
        (N,)
    """
    declaration = pruner.declaration
    scores = declaration.split(scored(pruner, score, "score"))
    ranks = []
    for structure in declaration.structures:
        pieces = [scores[structure.name]]
        if declaration.holder(structure):
            pieces = declaration.by_holder(structure, *pieces)
        ranks += [(p.argsort().argsort() + 1) / len(p) for p in pieces]
    return torch.cat(ranks).float()


def _mean_square(structure, parameters):
    """(units,) mean square of the weights that each unit would remove."""
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
    """Masks the units with the lowest scores, more as the target rises.

    This is Zhu and Gupta, "To prune, or not to prune" (2017), for structures.
    The plan is made anew every few steps, and a masked unit may be opened
    again.

    Arguments
    ---------
    declaration : Declaration
        Declares what can be pruned.
    budget : ParameterBudget or MACBudget
        The cost that is counted, and the target sparsity.
    schedule : LinearSchedule, CubicSchedule or ConstantSchedule, optional
        Fraction of the way to the target at each step.
    score : callable
        Pruner -> (N,) scores.
    every : int
        Number of optimizer steps from one plan to the next, once there is one.
    decay : float
        Decay of the running mean of squared gate gradients (`saliency`).
    min_keep : int
        Smallest number of units in a module that stays.
    seed : int
        Seed of the random numbers that scores draw.
    original : Declaration, optional
        Of the dense model, if the declared one was pruned before.

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
        original=None,
    ):
        super().__init__(
            declaration, budget, schedule, min_keep, seed, decay, original
        )
        self.score = score
        self.every = every
        self._chosen = torch.ones(declaration.total_units)

    def scores(self):
        """(N,) scores, by which units are ranked."""
        return scored(self, self.score, "score")

    def sample_(self):
        """Applies the current plan, which is made anew every few steps."""
        is_due = self.step % self.every == 0 or bool(self._chosen.all())
        if self.rises() and is_due:
            self._chosen = self.plan().values(self.declaration)
        self._apply(self._chosen, learn=True)

    def _learn(self, gradient):
        self._update_saliency(gradient)
        return True

    def state_dict(self):
        """Returns the state that a resumed run needs."""
        return {**super().state_dict(), "chosen": self._chosen.clone()}

    def load_state_dict(self, state):
        """Restores the state of `state_dict`."""
        super().load_state_dict(state)
        self._chosen.copy_(state["chosen"])
