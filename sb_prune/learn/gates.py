"""Gates: random variables in [0, 1], one per unit, with learnable logits.

A gate class is two functions of a logit vector, `sample` and
`keep_probability`, and where the logits start; it owns no parameters. To add
one, write a class with the members of `HardConcrete` and name it in YAML.
"""

import math

import torch

_EPSILON = 1e-6


class HardConcrete:
    """The hard concrete distribution (Louizos et al., 2018, eqs. 10 to 12).

    Arguments
    ---------
    straight_through : bool
        Whether the forward pass sees exactly 0 or 1, as the exported model
        will, while the gradient flows through the relaxation (Wang et al.,
        2023, 2306.01385). False: the gates themselves lie in [0, 1].
    temperature : float
        b of the paper.
    lower : float
        gamma of the paper, below 0.
    upper : float
        zeta of the paper, above 1.
    initial : float or dict
        Keep probability at the start; a dict gives one per kind, with the
        key `default` for the others.
    bound : float
        Logits are kept within +-bound, so that a closed gate can return.

    Example
    -------
    >>> gates = HardConcrete(straight_through=True)
    >>> generator = torch.Generator().manual_seed(0)
    >>> logits = torch.tensor([4.6, -4.6, 0.0])
    >>> gates.sample(logits, generator)
    tensor([1., 0., 0.])
    >>> [round(p, 3) for p in gates.keep_probability(logits).tolist()]
    [0.998, 0.047, 0.832]
    """

    def __init__(
        self,
        straight_through=False,
        temperature=2 / 3,
        lower=-0.1,
        upper=1.1,
        initial=0.99,
        bound=4.6,
    ):
        if not lower < 0 < 1 < upper:
            raise ValueError(
                f"lower={lower}, upper={upper}: write lower < 0 and upper > 1"
            )
        self.straight_through = straight_through
        self.temperature = temperature
        self.lower = lower
        self.upper = upper
        self.initial = initial
        self.bound = bound
        self._shift = temperature * math.log(-lower / upper)

    def initial_logits(self, declaration):
        """Logits at which every gate has its initial keep probability.

        Arguments
        ---------
        declaration : Declaration
            Whose gates to start.

        Returns
        -------
        torch.Tensor
            (N,)

        Raises
        ------
        ValueError
            If a probability is not inside (0, 1) or beyond the bound, or its
            kind is not declared.
        """
        table = self.initial
        if not isinstance(table, dict):
            table = {"default": table}
        unknown = set(table) - {s.kind for s in declaration.structures}
        unknown -= {"default"}
        if unknown:
            raise ValueError(
                f"initial: unknown kind {sorted(unknown)}; declared are "
                f"{sorted({s.kind for s in declaration.structures})}"
            )
        logits = [
            torch.full(
                (s.units,),
                self._logit(table.get(s.kind, table.get("default", 0.99))),
            )
            for s in declaration.structures
        ]
        return torch.cat(logits)

    def _logit(self, probability):
        if not 0 < probability < 1:
            raise ValueError(
                f"initial: {probability} is no keep probability; write a "
                "number between 0 and 1, e.g. 0.99"
            )
        logit = math.log(probability / (1 - probability)) + self._shift
        if abs(logit) > self.bound:
            raise ValueError(
                f"initial: {probability} lies beyond bound: {self.bound}; "
                "raise the bound, or start less extreme"
            )
        return logit

    def keep_probability(self, logits):
        """P(gate > 0) (eq. 12).

        Arguments
        ---------
        logits : torch.Tensor
            (N,)

        Returns
        -------
        torch.Tensor
            (N,)
        """
        return torch.sigmoid(logits - self._shift)

    def sample(self, logits, generator):
        """Draws every gate once.

        Arguments
        ---------
        logits : torch.Tensor
            (N,)
        generator : torch.Generator
            On the CPU, so that every device and rank draws the same.

        Returns
        -------
        torch.Tensor
            (N,), differentiable in the logits.
        """
        uniform = torch.rand(logits.shape, generator=generator)
        uniform = uniform.clamp(_EPSILON, 1 - _EPSILON)
        noise = (uniform.log() - (1 - uniform).log()).to(logits)
        stretched = torch.sigmoid((noise + logits) / self.temperature)
        stretched = stretched * (self.upper - self.lower) + self.lower
        soft = stretched.clamp(0, 1)
        if not self.straight_through:
            return soft
        return (soft > 0).to(soft) + (soft - soft.detach())
