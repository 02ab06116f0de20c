"""The pruner: gates on a model, moved towards a budget, made into a plan."""

import torch

from sb_prune.controllers import ExactBudget
from sb_prune.cost import mac_cost, parameter_cost
from sb_prune.fitting import fit_plan
from sb_prune.gates import HardConcrete
from sb_prune.masking import attach_, detach_
from sb_prune.parallel import mean_over_processes
from sb_prune.schedules import ConstantSchedule
from sb_prune.surgery import cut_


class Pruner:
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
        Share of the target over the steps.
    gates : HardConcrete, optional
        The distribution of the gates.
    controller : ExactBudget or AugmentedLagrangian, optional
        Makes the expected sparsity follow the schedule.
    gate_optimizer : callable, optional
        Parameters -> optimizer of the logits.
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
        min_keep=1,
        seed=0,
    ):
        self.declaration = declaration
        self.budget = budget
        self.groups = budget.groups(declaration, min_keep)
        self.schedule = schedule or ConstantSchedule()
        self.gates = gates or HardConcrete()
        self.controller = controller or ExactBudget()
        self.min_keep = min_keep
        self.seed = seed
        self.step = 0
        self.logits = self.gates.initial_logits(declaration).requires_grad_()
        make = gate_optimizer or torch.optim.Adam
        self.optimizer = make([self.logits])
        self._costs = {
            "parameters": parameter_cost(declaration),
            "MACs": mac_cost(declaration, budget.frames),
        }
        self._members = torch.stack([g.members for g in self.groups])
        self._values = None
        self._source = self._sample = self._penalty = None

    def attach_(self):
        """Puts the masks on the model, all gates open."""
        self._values = attach_(self.declaration)

    def targets(self):
        """Sparsity that the schedule asks for now.

        Returns
        -------
        torch.Tensor
            (groups,), float64.
        """
        share = self.schedule.share(self.step)
        return torch.tensor([g.target * share for g in self.groups]).double()

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
            self._apply(torch.ones_like(self.logits))
            return
        with torch.enable_grad():
            logits, self._penalty = self._control()
            generator = torch.Generator().manual_seed(self._step_seed())
            self._source = self.gates.sample(logits, generator)
        self._apply(self._source.detach(), learn=True)

    def _step_seed(self):
        return (self.seed * 1_000_003 + self.step) % 2**63

    def _control(self):
        return self.controller(
            self.logits, self.expected_sparsity, self._members, self.targets()
        )

    def _apply(self, values, learn=False):
        pieces = self.declaration.split(values)
        is_open = [bool((p == 1).all()) for p in pieces.values()]
        device = next(self.declaration.root.parameters()).device
        # a copy: the leaf that collects the gradient is not the source
        self._sample = values.to(device, copy=True).requires_grad_(learn)
        self._values.set_(self._sample, is_open)

    def veto_step_(self):
        """Lets the coming `step_` leave the gates where they are.

        One process decides for all.
        """
        self._sample.grad = torch.full_like(self._sample, torch.nan)

    def _gradient(self, scale):
        """What this step's sample received in all processes, unscaled: (N,).

        What one process lacks makes it NaN in all, so that they stay alike.
        """
        if self._sample.grad is None:
            self.veto_step_()
        mean = mean_over_processes(self._sample.grad)
        return mean.to(self.logits.device) / scale

    def step_(self, scale=1.0):
        """Moves the gates by the gradient that this step's sample received.

        In several processes each must call it; all then have the same gates.

        Arguments
        ---------
        scale : float
            Factor that a GradScaler put on the loss.

        Returns
        -------
        bool
            Whether the gates moved: not before the schedule starts, and not
            on a gradient that is missing or not finite. The schedule goes on
            in either case.
        """
        self.step += 1
        if self._source is None:
            return False
        gradient = self._gradient(scale)
        if not torch.isfinite(gradient).all():
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

    def plan(self, final=False):
        """The plan that would be cut now.

        Arguments
        ---------
        final : bool
            At the final target instead of the scheduled one.

        Returns
        -------
        Plan
        """
        shares = None if final else self.targets().tolist()
        return fit_plan(
            self.declaration,
            self.groups,
            self.logits.detach(),
            shares,
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
        known = self.declaration.by_name
        return [
            name not in known or bool(self._values[name].any())
            for name in names
        ]

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
            Target, expected and realised sparsity, parameters and MACs
            (for the budget's `frames`) of the plan, state of the controller.
        """
        targets = self.targets()
        with torch.no_grad():
            logits = self.logits
        if targets.any():
            logits, _ = self._control()
        rows = {
            "target_sparsity": targets,
            "expected_sparsity": self.expected_sparsity(logits).detach(),
            "realised_sparsity": self.realised_sparsity(plan),
        }
        named = {}
        for name, values in rows.items():
            for group, value in zip(self.groups, values.tolist()):
                suffix = f"[{group.prefix}]" if group.prefix else ""
                named[name + suffix] = value
        counts = plan.kept_counts(self.declaration)
        for name, cost in self._costs.items():
            named[name] = float(cost.of_kept(counts))
        return {**named, **self.controller.multipliers()}

    def state_dict(self):
        """What resuming needs."""
        return {
            "names": [s.name for s in self.declaration.structures],
            "logits": self.logits.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "controller": self.controller.state_dict(),
            "step": self.step,
        }

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
        names = [s.name for s in self.declaration.structures]
        same_size = state["logits"].shape == self.logits.shape
        if state["names"] != names or not same_size:
            raise ValueError(
                "the pruning checkpoint was made for another architecture or "
                "other `kinds`; use the YAML it was made with, or another "
                "output_folder"
            )
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.load_state_dict(state["controller"])
        self.step = state["step"]
