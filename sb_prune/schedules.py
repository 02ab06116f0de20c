"""Schedules: which share of the target sparsity holds at which step."""


class ConstantSchedule:
    """The whole target from the first step.

    Arguments
    ---------
    steps : int
        Of no meaning here; taken so that schedules can be exchanged.

    Example
    -------
    >>> ConstantSchedule().share(0)
    1.0
    """

    def __init__(self, steps=0):
        self.steps = 0

    def share(self, step):
        """Share of the target at an optimizer step, in [0, 1]."""
        return 1.0


class LinearSchedule:
    """Rises linearly from 0 to the target.

    Arguments
    ---------
    steps : int
        Optimizer steps until the target is reached.

    Example
    -------
    >>> [LinearSchedule(steps=10).share(step) for step in (0, 5, 20)]
    [0.0, 0.5, 1.0]
    """

    def __init__(self, steps):
        if steps <= 0:
            raise ValueError(
                f"schedule_steps: {steps}; write a positive number of steps, "
                "or name ConstantSchedule"
            )
        self.steps = steps

    def share(self, step):
        """Share of the target at an optimizer step, in [0, 1]."""
        return min(step / self.steps, 1.0)


class CubicSchedule(LinearSchedule):
    """Fast at first, slow near the target (Zhu and Gupta, 2017, eq. 1).

    Arguments
    ---------
    steps : int
        Optimizer steps until the target is reached.

    Example
    -------
    >>> CubicSchedule(steps=10).share(5)
    0.875
    """

    def share(self, step):
        """Share of the target at an optimizer step, in [0, 1]."""
        return 1 - (1 - super().share(step)) ** 3
