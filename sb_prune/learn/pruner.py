"""The pruner that learns which units stay, with random gates."""

import torch

from sb_prune.learn.base import BasePruner, scored
from sb_prune.learn.controllers import ExactBudget
from sb_prune.learn.gates import INITIAL, HardConcrete


def check_first_order(gates, first_score):
    """Refuses `initial` together with `first_score`: both say how gates start.

    Arguments
    ---------
    gates : object or None
        The gates. Their attribute `initial` is None if it was not given.
    first_score : callable or None

    Raises
    ------
    ValueError
        If both are given.
    """
    initial = getattr(gates, "initial", None)
    if initial is not None and first_score is not None:
        raise ValueError(
            f"gates: initial: {initial} has no effect where `first_score` says "
            "how gates start; leave out one of them"
        )


class Pruner(BasePruner):
    """Learns which units of a model to keep, with random gates.

    Gates, multipliers and their optimizer are kept here, on the CPU, apart from
    the modules and optimizers of the recipe. An optimizer step of the recipe is

        pruner.sample_()        # draws gates, which multiply the weights
        ...                     # forward and backward, of one or more batches
        pruner.step_()          # the gates learn from their gradient

    Before evaluation, `binarise_()` sets the gates to the plan that would be
    exported now.

    Arguments
    ---------
    declaration : Declaration
        Declares what can be pruned.
    budget : ParameterBudget or MACBudget
        The cost that is counted, and the target sparsity.
    schedule : LinearSchedule, CubicSchedule or ConstantSchedule, optional
        Fraction of the way to the target at each step.
    gates : HardConcrete, optional
        The distribution of the gates.
    controller : ExactBudget or AugmentedLagrangian, optional
        Makes the expected sparsity follow the schedule.
    gate_optimizer : callable, optional
        Parameters -> optimizer of the logits; by default Adam.
    first_score : callable, optional
        Pruner -> (N,) importance scores for the start. Until the schedule
        rises, gates stay open and `saliency` is collected; then the logits are
        spread out by the ranks of these scores. By default all gates of a kind
        start with the same logit.
    min_keep : int
        Smallest number of units in a module that stays.
    seed : int
        Seed of the private random generator that draws the gates.
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
    >>> pruner = Pruner(conformer_structures(encoder), ParameterBudget(0.5))
    >>> pruner.attach_()
    >>> pruner.sample_()
    >>> encoder(x, pos_embs=positions)[0].square().mean().backward()
    >>> pruner.step_()
    True
    >>> plan = pruner.cut_()
    >>> float(pruner.realised_sparsity(plan)[0]) >= 0.5
    True
    """

    def __init__(
        self,
        declaration,
        budget,
        schedule=None,
        gates=None,
        controller=None,
        gate_optimizer=None,
        first_score=None,
        min_keep=1,
        seed=0,
        original=None,
    ):
        super().__init__(
            declaration, budget, schedule, min_keep, seed, original=original
        )
        check_first_order(gates, first_score)
        self.gates = gates or HardConcrete()
        self.controller = controller or ExactBudget()
        self.logits = self.gates.initial_logits(declaration).requires_grad_()
        make = gate_optimizer or torch.optim.Adam
        self.optimizer = make([self.logits])
        self._members = torch.stack([g.members for g in self.groups])
        self._first_score = first_score
        self._source = self._penalty = None

    def scores(self):
        """(N,) logits of the gates, by which units are ranked.

        Until these are spread out, the scores that they will be spread by.
        """
        if self._first_score is not None:
            return scored(self, self._first_score, "first_score")
        return self.logits.detach()

    def expected_sparsity(self, logits):
        """Expected sparsity of each group, differentiable.

        Arguments
        ---------
        logits : torch.Tensor
            (N,)

        Returns
        -------
        torch.Tensor
            (groups,), float64.
        """
        kept = self.gates.keep_probability(logits)
        counts = self.groups[0].cost.sum_units(kept)
        return torch.stack(
            [g.sparsity(g.cost.of_kept(counts)) for g in self.groups]
        )

    def sample_(self):
        """Draws the gates of this optimizer step and applies them.

        Gates are open until the schedule rises.
        """
        if not self.rises():  # no shift of the logits opens all gates
            self._source = None
            collects = self._first_score is not None
            self._apply(torch.ones_like(self.logits), learn=collects)
            return
        self._spread_logits()
        with torch.enable_grad():
            logits, self._penalty = self._control()
            generator = torch.Generator().manual_seed(self._step_seed())
            self._source = self.gates.sample(logits, generator)
        self._apply(self._source.detach(), learn=True)

    def _spread_logits(self):
        """Sets the logits by ranks of the first score, once, at the start."""
        if self._first_score is None:
            return
        ranks = self.scores().argsort().argsort()
        behind = 1 - ranks / max(len(ranks) - 1, 1)  # 0: the best, 1: the last
        bound, width = self.gates.bound, 2 * self.gates.bound
        if not getattr(self.controller, "shifts", False):
            width = self._widest(behind)
        with torch.no_grad():
            self.logits.copy_(bound - width * behind)
        self._first_score = None

    @torch.no_grad()
    def _widest(self, behind):
        """How far logits may be spread without exceeding what is asked for.

        A hundredth may always be expected to be gone, as where all gates start
        alike: even at the bound a gate may be drawn closed.
        """
        most = torch.maximum(self.targets(), self._gone() + 1 - INITIAL)
        low, high = 0.0, 2 * self.gates.bound
        for _ in range(50):
            middle = (low + high) / 2
            found = self.expected_sparsity(self.gates.bound - middle * behind)
            exceeds = bool((found > most).any())
            low, high = (low, middle) if exceeds else (middle, high)
        return low

    def _step_seed(self):
        return (self.seed * 1_000_003 + self.step) % 2**63

    def _control(self):
        return self.controller(
            self.logits, self.expected_sparsity, self._members, self.targets()
        )

    def _learn(self, gradient):
        """Updates the logits, or only `saliency` while gates are held open."""
        if self._source is None:
            self._update_saliency(gradient)
            return False
        self.optimizer.zero_grad()
        loss = (self._source * gradient).sum() + self._penalty
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.logits.clamp_(-self.gates.bound, self.gates.bound)
            expected = self.expected_sparsity(self.logits)
        self.controller.step_(expected, self.targets())
        self._source = self._penalty = None
        return True

    def statistics(self, plan):
        """Numbers for the train logger; adds expected sparsity and multipliers.

        Arguments and returns as in `BasePruner`.
        """
        expected = self._gone()
        if self.rises():  # else all gates are open
            logits, _ = self._control()
            expected = self.expected_sparsity(logits).detach()
        return {
            **self._per_group("expected_sparsity", expected),
            **super().statistics(plan),
            **self.controller.multipliers(),
        }

    def state_dict(self):
        """Returns the state that a resumed run needs."""
        return {
            **super().state_dict(),
            "logits": self.logits.detach().clone(),
            "spread": self._first_score is None,
            "optimizer": self.optimizer.state_dict(),
            "controller": self.controller.state_dict(),
        }

    def load_state_dict(self, state):
        """Restores the state of `state_dict`."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        if state["spread"]:
            self._first_score = None
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.load_state_dict(state["controller"])
