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
    start : int
        Those of them before it begins to rise.

    Example
    -------
    >>> [LinearSchedule(steps=10).share(step) for step in (0, 5, 20)]
    [0.0, 0.5, 1.0]
    """

    def __init__(self, steps, start=0):
        if steps <= 0:
            raise ValueError(
                f"schedule_steps: {steps}; write a positive number of steps, "
                "or name ConstantSchedule"
            )
        if not 0 <= start < steps:
            raise ValueError(
                f"schedule: start: {start} must be at least 0 and below "
                f"schedule_steps: {steps}"
            )
        self.steps = steps
        self.start = start

    def share(self, step):
        """Share of the target at an optimizer step, in [0, 1]."""
        risen = (step - self.start) / (self.steps - self.start)
        return min(max(risen, 0.0), 1.0)


class CubicSchedule(LinearSchedule):
    """Fast at first, slow near the target (Zhu and Gupta, 2017, eq. 1).

    Arguments
    ---------
    steps : int
        Optimizer steps until the target is reached.
    start : int
        Those of them before it begins to rise.

    Example
    -------
    >>> CubicSchedule(steps=10).share(5)
    0.875
    """

    def share(self, step):
        """Share of the target at an optimizer step, in [0, 1]."""
        return 1 - (1 - super().share(step)) ** 3
