"""Pruners: masks on a model, moved towards a budget, made into a plan."""

from functools import cached_property

import torch

from sb_prune.cut.masking import attach_, detach_
from sb_prune.cut.surgery import cut_
from sb_prune.declare.cost import mac_cost, parameter_cost
from sb_prune.learn.controllers import ExactBudget
from sb_prune.learn.fitting import fit_plan
from sb_prune.learn.gates import HardConcrete
from sb_prune.learn.schedules import ConstantSchedule
from sb_prune.support.parallel import mean_over_processes
from sb_prune.support.values import call_named, shown


def check_first_order(gates, first_score):
    """Refuses two answers to how gates start.

    Arguments
    ---------
    gates : object or None
        Their `initial` is None where it was not given.
    first_score : callable or None

    Raises
    ------
    ValueError
    """
    initial = getattr(gates, "initial", None)
    if initial is not None and first_score is not None:
        raise ValueError(
            f"gates: initial: {initial} has no effect where `first_score` says "
            "how gates start; leave out one of them"
        )


def scored(pruner, score, key):
    """What a score gives for the units as they are now.

    Arguments
    ---------
    pruner : BasePruner
    score : callable
        Pruner -> (N,) numbers.
    key : str
        Under which a YAML names it.

    Returns
    -------
    torch.Tensor
        (N,)

    Raises
    ------
    ValueError
        If it gives anything else.
    """
    units = pruner.declaration.total_units
    scores = call_named(score, key, pruner)
    if getattr(scores, "shape", None) != (units,):
        raise ValueError(
            f"{key}: {shown(score)} gives {shown(scores)}; write a function "
            f"that gives a tensor of one number for each of {units} units"
        )
    return scores


class BasePruner:
    """What all ways to choose units have in common: budget, masks, plan, cut.

    A subclass says how units are ranked (`scores`), what one optimizer step
    of the recipe sees (`sample_`) and what is learned from it (`_learn`).

    Arguments
    ---------
    declaration : Declaration
        What can be cut.
    budget : ParameterBudget or MACBudget
        What is measured, and the target.
    schedule : LinearSchedule, CubicSchedule or ConstantSchedule, optional
        Fraction of the target that holds at each step.
    min_keep : int
        Units that stay where a module stays.
    seed : int
        Seed of the random numbers that scores draw.
    decay : float
        Of `saliency`, the running mean of squared gate gradients, (N,).
    """

    def __init__(
        self,
        declaration,
        budget,
        schedule=None,
        min_keep=1,
        seed=0,
        decay=0.98,
    ):
        self.declaration = declaration
        self.budget = budget
        self.groups = budget.groups(declaration, min_keep)
        self.schedule = schedule or ConstantSchedule()
        self.min_keep = min_keep
        self.seed = seed
        self.step = 0
        self._costs = {
            "parameters": parameter_cost(declaration),
            "MACs": mac_cost(
                declaration, budget.frames or declaration.usual_frames
            ),
        }
        self.saliency = torch.zeros(declaration.total_units)
        self._decay = decay
        self._values = self._sample = None

    @cached_property
    def prices(self):
        """(N,) what closing one unit alone frees, in the budget's unit."""
        structures = self.declaration.structures
        dense = torch.tensor([s.units for s in structures]).double()
        gone = torch.eye(len(structures)).double()
        for i, structure in enumerate(structures):
            holder = self.declaration.holder(structure)
            if holder:  # its unit takes along those that it holds
                gone[structures.index(holder), i] = dense[i] / holder.units
        one_less = dense - gone
        freed = sum(
            group.dense - group.cost.of_kept(one_less) for group in self.groups
        )
        return freed.repeat_interleave(dense.long()).float()

    def attach_(self):
        """Puts the masks on the model, all gates open."""
        self._values = attach_(self.declaration)
        self._drawn = torch.ones(self.declaration.total_units)

    def targets(self):
        """Sparsity that the schedule asks for now.

        Returns
        -------
        torch.Tensor
            (groups,), float64.
        """
        return self._targets(self.step)

    def last_rise(self):
        """What the schedule asked of the first group before the last step,
        and what it asks for now.

        Returns
        -------
        tuple of float
        """
        first = max(self.step - 1, 0)
        return tuple(float(self._targets(s)[0]) for s in (first, self.step))

    def _targets(self, step):
        fraction = self.schedule.fraction(step)
        targets = [group.target * fraction for group in self.groups]
        return torch.tensor(targets).double()

    def _apply(self, values, learn=False):
        pieces = self.declaration.split(values)
        is_open = [bool((p == 1).all()) for p in pieces.values()]
        self._drawn = values.detach()  # on the CPU: reading them is for free
        device = next(self.declaration.root.parameters()).device
        # a copy: the leaf that collects the gradient is not the source
        self._sample = values.to(device, copy=True).requires_grad_(learn)
        self._values.set_(self._sample, is_open)

    def veto_step_(self):
        """Lets the coming `step_` leave the gates where they are.

        One process decides for all.
        """
        self._sample.grad = torch.full_like(self._sample, torch.nan)

    def step_(self, scale=1.0):
        """Learns from the gradient that this step's sample received.

        In several processes each must call it; all then learn the same.

        Arguments
        ---------
        scale : float
            Factor that a GradScaler put on the loss.

        Returns
        -------
        bool
            Whether anything was learned: not from a gradient that is missing
            or not finite, and gates do not move before the schedule starts.
            The schedule goes on in either case.
        """
        self.step += 1
        gradient = self._gradient(scale)
        return gradient is not None and self._learn(gradient)

    def _gradient(self, scale):
        """What this step's sample received in all processes, unscaled: (N,).

        What one process lacks is missing in all, so that they stay alike.
        None if it is missing or not finite, or nothing is to be learned.
        """
        if self._sample is None or not self._sample.requires_grad:
            return None
        if self._sample.grad is None:
            self.veto_step_()
        mean = mean_over_processes(self._sample.grad).cpu() / scale
        return mean if torch.isfinite(mean).all() else None

    def _listen(self, gradient):
        self.saliency.lerp_(gradient.square(), 1 - self._decay)

    def plan(self, sparsity=None, final=False):
        """The plan that would be cut now.

        Arguments
        ---------
        sparsity : float, optional
            Of each group; by default what the schedule asks for.
        final : bool
            At the final target instead.

        Returns
        -------
        Plan
        """
        sparsities = self.targets().tolist()
        if final:
            sparsities = None
        elif sparsity is not None:
            sparsities = [sparsity] * len(self.groups)
        return fit_plan(
            self.declaration,
            self.groups,
            self.scores(),
            sparsities,
            self.min_keep,
        )

    def binarise_(self, plan=None):
        """Lets the model compute what it would compute after the cut.

        Arguments
        ---------
        plan : Plan, optional
            By default the plan that would be cut now.

        Returns
        -------
        Plan
        """
        plan = plan or self.plan()
        self._apply(plan.values(self.declaration))
        return plan

    def cut_(self, plan=None):
        """Takes the masks off and cuts the model, in place.

        Arguments
        ---------
        plan : Plan, optional
            By default the plan at the final target.

        Returns
        -------
        Plan
        """
        plan = plan or self.plan(final=True)
        detach_(self.declaration.root)
        self._values = None
        cut_(self.declaration, plan)
        return plan

    def open_modules(self, names):
        """Which of the modules the current sample leaves open.

        Arguments
        ---------
        names : list of str
            Module names; those that no structure removes stay open.

        Returns
        -------
        list of bool
        """
        gates = self.declaration.split(self._drawn)
        return [name not in gates or bool(gates[name].any()) for name in names]

    def realised_sparsity(self, plan):
        """Sparsity of a plan per group.

        Arguments
        ---------
        plan : Plan

        Returns
        -------
        torch.Tensor
            (groups,), float64.
        """
        counts = plan.kept_counts(self.declaration)
        return torch.stack(
            [g.sparsity(g.cost.of_kept(counts)) for g in self.groups]
        )

    def statistics(self, plan):
        """Named numbers for the train logger.

        Arguments
        ---------
        plan : Plan
            As returned by `binarise_`.

        Returns
        -------
        dict
            Target and realised sparsity, parameters and MACs (for the
            budget's `frames`) of the plan.
        """
        named = {
            **self._per_group("target_sparsity", self.targets()),
            **self._per_group(
                "realised_sparsity", self.realised_sparsity(plan)
            ),
        }
        counts = plan.kept_counts(self.declaration)
        for name, cost in self._costs.items():
            named[name] = float(cost.of_kept(counts))
        return named

    def _per_group(self, name, values):
        return {
            name + (f"[{group.prefix}]" if group.prefix else ""): value
            for group, value in zip(self.groups, values.tolist())
        }

    def state_dict(self):
        """What resuming needs."""
        return {
            "units": self._units(),
            "step": self.step,
            "saliency": self.saliency.clone(),
        }

    def _units(self):
        return {s.name: s.units for s in self.declaration.structures}

    def load_state_dict(self, state):
        """Takes what `state_dict` gave.

        Arguments
        ---------
        state : dict

        Raises
        ------
        ValueError
            If it was made for another architecture.
        """
        if state["units"] != self._units():
            raise ValueError(
                "the pruning checkpoint was made for another architecture or "
                "other `kinds`; use the YAML it was made with, or another "
                "output_folder"
            )
        self.step = state["step"]
        self.saliency.copy_(state["saliency"])


class Pruner(BasePruner):
    """Learns which structures of a model to keep.

    Gates, multipliers and their optimizer live here, on the CPU, never in the
    recipe's modules or optimizers. One optimizer step of the recipe is

        pruner.sample_()        # new gates multiply the weights
        ...                     # forward, backward, perhaps accumulated
        pruner.step_()          # gates learn from the gradient they received

    and evaluation calls `binarise_()` first: it always sees the plan that
    would be exported now.

    Arguments
    ---------
    declaration : Declaration
        What can be cut.
    budget : ParameterBudget or MACBudget
        What is measured, and the target.
    schedule : LinearSchedule, CubicSchedule or ConstantSchedule, optional
        Fraction of the target that holds at each step.
    gates : HardConcrete, optional
        The distribution of the gates.
    controller : ExactBudget or AugmentedLagrangian, optional
        Makes the expected sparsity follow the schedule.
    gate_optimizer : callable, optional
        Parameters -> optimizer of the logits.
    first_score : callable, optional
        Pruner -> (N,): in which order the gates start. As long as the
        schedule asks for nothing the gates stay open and `saliency` is
        gathered; then the logits are spread by the ranks of this score. By
        default all start alike.
    min_keep : int
        Units that stay where a module stays.
    seed : int
        Of the private generator that draws the gates.

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
    ):
        super().__init__(declaration, budget, schedule, min_keep, seed)
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
        """Ranks the units: the gates' logits, (N,)."""
        return self.logits.detach()

    def expected_sparsity(self, logits):
        """Expected sparsity per group, differentiable.

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
        """Draws the gates of this optimizer step and applies them."""
        if not self.targets().any():  # s' = 0 where nothing may be cut yet
            self._source = None
            listening = self._first_score is not None
            self._apply(torch.ones_like(self.logits), learn=listening)
            return
        self._spread_logits()
        with torch.enable_grad():
            logits, self._penalty = self._control()
            generator = torch.Generator().manual_seed(self._step_seed())
            self._source = self.gates.sample(logits, generator)
        self._apply(self._source.detach(), learn=True)

    def _spread_logits(self):
        """Once, when pruning begins: the first score's ranks as logits."""
        if self._first_score is None:
            return
        scores = scored(self, self._first_score, "first_score")
        ranks = scores.argsort().argsort()
        position = ranks / (len(ranks) - 1)  # 0 to 1
        with torch.no_grad():
            self.logits.copy_(self.gates.bound * (2 * position - 1))
        self._first_score = None

    def _step_seed(self):
        return (self.seed * 1_000_003 + self.step) % 2**63

    def _control(self):
        return self.controller(
            self.logits, self.expected_sparsity, self._members, self.targets()
        )

    def _learn(self, gradient):
        """Moves the gates, unless they are still held open."""
        if self._source is None:
            self._listen(gradient)
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
        """As every pruner's, with expected sparsity and the controller's."""
        with torch.no_grad():
            logits = self.logits
        if self.targets().any():
            logits, _ = self._control()
        expected = self.expected_sparsity(logits).detach()
        return {
            **self._per_group("expected_sparsity", expected),
            **super().statistics(plan),
            **self.controller.multipliers(),
        }

    def state_dict(self):
        """What resuming needs."""
        return {
            **super().state_dict(),
            "logits": self.logits.detach().clone(),
            "spread": self._first_score is None,
            "optimizer": self.optimizer.state_dict(),
            "controller": self.controller.state_dict(),
        }

    def load_state_dict(self, state):
        """Takes what `state_dict` gave."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        if state["spread"]:
            self._first_score = None
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.load_state_dict(state["controller"])
