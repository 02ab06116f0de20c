"""Controllers make the expected sparsity follow the scheduled target.

A controller is called in every optimizer step with the logits of all gates. It
returns the logits from which the gates are drawn, and a penalty to add to the
loss. To add one, write a class with the members of `ExactBudget`.

Shapes: N gates, G groups of the budget.
"""

import torch

from sb_prune.support.values import Number, checked


class ExactBudget:
    """Shifts the logits of each group so that the target is met at every step.

    The shift tau is a scalar that solves s(tau) = t, where s is the expected
    sparsity and t the target. Newton steps within a bracket find it. One more
    step at the solution, tau - (s(tau) - t) / s'(tau), makes it differentiable
    in the logits. So units compete within a fixed budget, and no multipliers
    need to be learned.

    Arguments
    ---------
    tolerance : float
        Largest deviation of the expected sparsity from the target.

    Attributes
    ----------
    shifts : bool
        Whether the target is met wherever the logits begin. A pruner spreads
        them out less for a controller that does not.
    """

    shifts = True

    @checked
    def __init__(self, tolerance: Number(above=0) = 1e-5):
        self.tolerance = tolerance
        self._shifts = {}

    def __call__(self, logits, sparsity, members, targets):
        """Computes the logits and the penalty of one optimizer step.

        Arguments
        ---------
        logits : torch.Tensor
            (N,)
        sparsity : callable
            logits (N,) -> expected sparsity (G,), differentiable.
        members : torch.Tensor
            (G, N) bool, True for the gates of each group. The sparsity of a
            group may depend on the gates of groups before it.
        targets : torch.Tensor
            (G,)

        Returns
        -------
        logits : torch.Tensor
            (N,) logits from which gates are drawn.
        penalty : torch.Tensor
            Scalar to add to the loss, here 0.
        """
        shifted = logits
        for group, target in enumerate(targets.tolist()):
            inside = members[group].to(logits)
            tau, slope = self._solve(shifted, sparsity, inside, target, group)
            expected = sparsity(shifted + tau * inside)[group]
            tau = tau - (expected - target) / slope
            shifted = shifted + tau.to(logits) * inside
        return shifted, logits.new_zeros(())

    def _solve(self, logits, sparsity, inside, target, group):
        logits = logits.detach()
        low, high, tau = -60.0, 60.0, self._shifts.get(group, 0.0)
        for _ in range(100):
            value, slope = _value_and_slope(
                lambda t: sparsity(logits + t * inside)[group], tau
            )
            if abs(value - target) <= self.tolerance and slope < 0:
                break
            low, high = (tau, high) if value > target else (low, tau)
            newton = tau - (value - target) / slope if slope else high
            inner = low < newton < high
            tau = newton if inner else (low + high) / 2
        else:
            raise ValueError(
                f"target: an expected sparsity of {target:.4f} cannot be "
                f"reached by shifting the gates (got {value:.4f})"
            )
        self._shifts[group] = tau
        return tau, slope

    def step_(self, sparsity, targets):
        """Does nothing, as there is nothing to learn.

        Arguments
        ---------
        sparsity : torch.Tensor
            (G,) expected sparsity.
        targets : torch.Tensor
            (G,)
        """

    def multipliers(self):
        """Returns numbers for the log: the shift of each group."""
        return {f"shift_{i}": tau for i, tau in self._shifts.items()}

    def state_dict(self):
        """Returns the state that a resumed run needs."""
        return {"shifts": dict(self._shifts)}

    def load_state_dict(self, state):
        """Restores the state of `state_dict`."""
        self._shifts = dict(state["shifts"])


class AugmentedLagrangian:
    """Adds the penalty l1 (s - t) + l2 (s - t)^2 with learnt multipliers.

    s is the expected sparsity, t the target; l1 and l2 are learnt by gradient
    ascent (Wang et al., "Structured Pruning of Large Language Models", 2020).
    The published systems that this package implements use it. It overshoots
    the target; the benchmark `budget` shows by how much.

    Arguments
    ---------
    lr : float
        Learning rate of the multipliers (Adam).
    """

    shifts = False

    @checked
    def __init__(self, lr: Number(above=0) = 0.02):
        self.lr = lr
        self._multipliers = None

    def __call__(self, logits, sparsity, members, targets):
        """Computes logits and penalty, with the arguments of `ExactBudget`."""
        if self._multipliers is None:
            self._start(len(targets))
        gap = sparsity(logits) - targets
        first, second = self._multipliers.detach()
        return logits, (first * gap + second * gap.square()).sum()

    def _start(self, groups):
        self._multipliers = torch.zeros(2, groups, dtype=torch.float64)
        self._multipliers.requires_grad_()
        self._optimizer = torch.optim.Adam(
            [self._multipliers], lr=self.lr, maximize=True
        )

    def step_(self, sparsity, targets):
        """Updates the multipliers by gradient ascent.

        Arguments
        ---------
        sparsity : torch.Tensor
            (G,) expected sparsity.
        targets : torch.Tensor
            (G,)
        """
        gap = (sparsity - targets).detach()
        self._multipliers.grad = torch.stack([gap, gap.square()])
        self._optimizer.step()

    def multipliers(self):
        """Returns numbers for the log: l1 and l2 of each group."""
        if self._multipliers is None:
            return {}
        return {
            f"lambda{order}_{group}": value
            for order, row in enumerate(self._multipliers.tolist(), start=1)
            for group, value in enumerate(row)
        }

    def state_dict(self):
        """Returns the state that a resumed run needs."""
        if self._multipliers is None:
            return {}
        return {
            "multipliers": self._multipliers.detach().clone(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state):
        """Restores the state of `state_dict`."""
        if state:
            self._start(state["multipliers"].shape[1])
            self._multipliers.data.copy_(state["multipliers"])
            self._optimizer.load_state_dict(state["optimizer"])


def _value_and_slope(function, x):
    x = torch.tensor(x, requires_grad=True)
    with torch.enable_grad():
        value = function(x)
        (slope,) = torch.autograd.grad(value, x)
    return value.item(), slope.item()
