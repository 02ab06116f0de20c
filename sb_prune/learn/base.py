"""What all pruners share: masks, the plan within a budget, the cut."""

from functools import cached_property

import torch

from sb_prune.cut.masking import attach_, detach_
from sb_prune.cut.surgery import cut_
from sb_prune.declare.cost import mac_cost, parameter_cost
from sb_prune.learn.fitting import fit_plan
from sb_prune.learn.schedules import ConstantSchedule
from sb_prune.support.messages import shown
from sb_prune.support.parallel import mean_over_processes
from sb_prune.support.values import call_named


def scored(pruner, score, key):
    """Calls a score and checks what it returns.

    Arguments
    ---------
    pruner : BasePruner
    score : callable
        Pruner -> (N,) scores.
    key : str
        Key of the YAML that names the score, for the error message.

    Returns
    -------
    torch.Tensor
        (N,)

    Raises
    ------
    ValueError
        If the score returns anything but a tensor of this shape.
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
    """Base of pruners: budget, masks, plan and cut.

    A subclass defines how units are ranked (`scores`), which gate values the
    model has during an optimizer step (`sample_`), and what is learned from the
    gradient of these values (`_learn`).

    Arguments
    ---------
    declaration : Declaration
        Declares what can be pruned.
    budget : ParameterBudget or MACBudget
        The cost that is counted, and the target sparsity.
    schedule : LinearSchedule, CubicSchedule or ConstantSchedule, optional
        Fraction of the way to the target at each step.
    min_keep : int
        Smallest number of units in a module that stays.
    seed : int
        Seed of the random numbers that scores draw.
    decay : float
        Decay of the running mean of squared gate gradients, the attribute
        `saliency`, (N,).
    original : Declaration, optional
        Of the dense model, if the declared one was pruned before. The target
        counts from it (see the `groups` of a budget).
    """

    def __init__(
        self,
        declaration,
        budget,
        schedule=None,
        min_keep=1,
        seed=0,
        decay=0.98,
        original=None,
    ):
        self.declaration = declaration
        self.budget = budget
        self.groups = budget.groups(declaration, min_keep, original)
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
        """(N,) cost saved by removing each unit alone, in the budget's unit."""
        structures = self.declaration.structures
        units = torch.tensor([s.units for s in structures]).double()
        removed = torch.cat([self._removed_with(s) for s in structures])
        freed = sum(
            group.cost.of_kept(units) - group.cost.of_kept(units - removed)
            for group in self.groups
        )
        equal = [[1] * s.units if s.holds else [s.units] for s in structures]
        return freed.repeat_interleave(torch.tensor(sum(equal, []))).float()

    def _removed_with(self, structure):
        """How many units of each structure go with one unit of this one.

        (units, structures) if the unit holds others, of which there may be
        more or less in each; else (1, structures), as all units are alike.
        """
        structures = self.declaration.structures
        rows = structure.units if structure.holds else 1
        removed = torch.zeros(rows, len(structures)).double()
        for i, other in enumerate(structures):
            if other is structure:
                removed[:, i] = 1
            elif self.declaration.holder(other) is structure:
                inside = self.declaration.inside(other)
                removed[:, i] = torch.tensor(inside).double()
        return removed

    def attach_(self):
        """Masks the model, with all gates open."""
        self._values = attach_(self.declaration)
        self._drawn = torch.ones(self.declaration.total_units)

    def targets(self):
        """Sparsity of each group that the schedule asks for now.

        Returns
        -------
        torch.Tensor
            (groups,), float64.
        """
        return self._targets(self.step)

    def last_rise(self):
        """Sparsity of the first group before the last step, and now.

        Both are what the schedule asks for.

        Returns
        -------
        (float, float)
        """
        first = max(self.step - 1, 0)
        return tuple(float(self._targets(s)[0]) for s in (first, self.step))

    def _targets(self, step):
        fraction = self.schedule.fraction(step)
        targets = [group.scheduled(fraction) for group in self.groups]
        return torch.tensor(targets, dtype=torch.float64)

    def rises(self):
        """Whether the schedule asks for more than what is gone already.

        Returns
        -------
        bool
            False as long as all gates are open.
        """
        return bool((self.targets() > self._gone()).any())

    def _gone(self):
        gone = [group.gone for group in self.groups]
        return torch.tensor(gone, dtype=torch.float64)

    def _apply(self, values, learn=False):
        pieces = self.declaration.split(values)
        is_open = [bool((p == 1).all()) for p in pieces.values()]
        self._drawn = values.detach()  # on the CPU, where reading does not wait
        device = next(self.declaration.root.parameters()).device
        # a copy, as this leaf tensor collects the gradient of the gates
        self._sample = values.to(device, copy=True).requires_grad_(learn)
        self._values.set_(self._sample, is_open)

    def veto_step_(self):
        """Makes the next `step_` leave the gates unchanged.

        Of several processes, one is enough to decide this for all.
        """
        self._sample.grad = torch.full_like(self._sample, torch.nan)

    def step_(self, scale=1.0):
        """Learns from the gradient of the gate values, and counts the step.

        If there are several processes, each must call this; all learn the same.

        Arguments
        ---------
        scale : float
            Factor by which a GradScaler multiplied the loss.

        Returns
        -------
        bool
            Whether anything was learned. Nothing is learned if a gradient is
            missing or not finite, or before the schedule starts to rise; the
            step is counted nevertheless.
        """
        self.step += 1
        gradient = self._gradient(scale)
        return gradient is not None and self._learn(gradient)

    def _gradient(self, scale):
        """Mean gradient (N,) of the gate values over processes, unscaled.

        It is None if nothing is to be learned, or if the gradient of any
        process is missing or not finite; so all processes learn the same.
        """
        if self._sample is None or not self._sample.requires_grad:
            return None
        if self._sample.grad is None:
            self.veto_step_()
        mean = mean_over_processes(self._sample.grad).cpu() / scale
        return mean if torch.isfinite(mean).all() else None

    def _update_saliency(self, gradient):
        self.saliency.lerp_(gradient.square(), 1 - self._decay)

    def plan(self, sparsity=None, final=False):
        """Makes a plan from the current scores.

        Arguments
        ---------
        sparsity : float, optional
            Sparsity of each group; by default what the schedule asks for now.
        final : bool
            Whether to make the plan for the final target instead.

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
        """Sets the gates to a plan: the model computes what the cut one would.

        Arguments
        ---------
        plan : Plan, optional
            By default that of `plan()`.

        Returns
        -------
        Plan
        """
        plan = plan or self.plan()
        self._apply(plan.values(self.declaration))
        return plan

    def cut_(self, plan=None):
        """Removes the masks and cuts the model, in place.

        Arguments
        ---------
        plan : Plan, optional
            By default the plan for the final target.

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
        """Whether modules are open with the current gate values.

        Arguments
        ---------
        names : list of str
            Module names. A module without a gate is always open.

        Returns
        -------
        list of bool
        """
        gates = self.declaration.split(self._drawn)
        return [name not in gates or bool(gates[name].any()) for name in names]

    def realised_sparsity(self, plan):
        """Sparsity that a plan has in each group.

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
        """Numbers for the train logger.

        Arguments
        ---------
        plan : Plan
            From `binarise_`.

        Returns
        -------
        dict
            Name -> number: target and realised sparsity, parameters and MACs
            (for the `frames` of the budget) of the plan.
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
        """Returns the state that a resumed run needs."""
        return {
            "units": self._units(),
            "step": self.step,
            "saliency": self.saliency.clone(),
        }

    def _units(self):
        return {s.name: s.units for s in self.declaration.structures}

    def load_state_dict(self, state):
        """Restores the state of `state_dict`.

        Arguments
        ---------
        state : dict

        Raises
        ------
        ValueError
            If it belongs to another architecture or other kinds.
        """
        if state["units"] != self._units():
            raise ValueError(
                "the pruning checkpoint was made for another architecture or "
                "other `kinds`; use the YAML it was made with, or another "
                "output_folder"
            )
        self.step = state["step"]
        self.saliency.copy_(state["saliency"])
