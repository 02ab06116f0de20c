"""Schedules: the fraction of the way to the target sparsity at each step.

The way begins at what earlier prunings removed, 0 for a dense model.
"""

from sb_prune.support.values import Number, Whole, checked


class ConstantSchedule:
    """Asks for the whole target from the first step.

    Arguments
    ---------
    steps : int
        Unused; accepted so that schedules can be exchanged.

    Example
    -------
    >>> ConstantSchedule().fraction(0)
    1.0
    """

    def __init__(self, steps=0):
        self.steps = 0

    def fraction(self, step):
        """Fraction of the way at an optimizer step, in [0, 1]."""
        return 1.0


class LinearSchedule:
    """Rises linearly to the target.

    Arguments
    ---------
    steps : int
        Optimizer steps until the target is reached.
    start : float
        Fraction of them, in [0, 1), before it begins to rise.

    Example
    -------
    >>> [LinearSchedule(steps=10).fraction(step) for step in (0, 5, 20)]
    [0.0, 0.5, 1.0]
    >>> LinearSchedule(steps=8, start=0.5).fraction(6)
    0.5
    """

    @checked
    def __init__(self, steps: Whole(1), start: Number(least=0, below=1) = 0.0):
        self.steps = steps
        self.start = start

    def fraction(self, step):
        """Fraction of the way at an optimizer step, in [0, 1]."""
        done = step / self.steps
        return min(max((done - self.start) / (1 - self.start), 0.0), 1.0)


class CubicSchedule(LinearSchedule):
    """Rises fast first, slowly near the target (Zhu and Gupta, 2017, eq. 1).

    Arguments
    ---------
    steps : int
        Optimizer steps until the target is reached.
    start : float
        Fraction of them, in [0, 1), before it begins to rise.

    Example
    -------
    >>> CubicSchedule(steps=10).fraction(5)
    0.875
    """

    def fraction(self, step):
        """Fraction of the way at an optimizer step, in [0, 1]."""
        return 1 - (1 - super().fraction(step)) ** 3
