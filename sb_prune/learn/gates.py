"""Gates: random variables in [0, 1], one per unit, with learnable logits.

A gate class defines two functions of a vector of logits, `sample` and
`keep_probability`, and the logits at the start. It owns no parameters. To add
one, write a class with the members of `HardConcrete` and name it in the YAML.
"""

import math

import torch

from sb_prune.support.values import Number, OneOrMapping, YesNo, checked

_EPSILON = 1e-6
INITIAL = 0.99  # keep probability where none is given


class HardConcrete:
    """The hard concrete distribution (Louizos et al., 2018, eqs. 10 to 12).

    Arguments
    ---------
    straight_through : bool
        Whether gates are exactly 0 or 1 in the forward pass, as they are in the
        exported model, while the gradient is that of the continuous gate (Wang
        et al., 2023, 2306.01385). By default gates lie in [0, 1].
    temperature : float
        Called beta in the paper.
    lower : float
        Called gamma in the paper, below 0.
    upper : float
        Called zeta in the paper, above 1.
    initial : float or dict, optional
        Keep probability at the start, by default 0.99 or what the bound allows;
        a dict gives one per kind, with the key `default` for the others.
    bound : float
        Logits are kept within +-bound, so that a closed gate can open again.

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

    @checked
    def __init__(
        self,
        straight_through: YesNo() = False,
        temperature: Number(above=0) = 2 / 3,
        lower: Number(below=0) = -0.1,
        upper: Number(above=1) = 1.1,
        initial: OneOrMapping(Number(above=0, below=1), "kind") = None,
        bound: Number(above=0) = 4.6,
    ):
        self.straight_through = straight_through
        self.temperature = temperature
        self.lower = lower
        self.upper = upper
        self.initial = initial
        self.bound = bound
        self._shift = temperature * math.log(-lower / upper)
        given = initial.values() if isinstance(initial, dict) else [initial]
        for probability in given:
            self._logit(probability)  # is refused now, not after training

    def initial_logits(self, declaration):
        """Logits with which every gate has its initial keep probability.

        Arguments
        ---------
        declaration : Declaration
            Declares the structures, which have one gate per unit.

        Returns
        -------
        torch.Tensor
            (N,)

        Raises
        ------
        ValueError
            If the kind of a probability is not declared.
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
                self._logit(table.get(s.kind, table.get("default"))),
            )
            for s in declaration.structures
        ]
        return torch.cat(logits)

    def _logit(self, probability):
        given = INITIAL if probability is None else probability
        logit = math.log(given / (1 - given)) + self._shift
        if probability is None:
            return min(logit, self.bound)
        if abs(logit) > self.bound:
            raise ValueError(
                f"initial: {probability} lies beyond bound: {self.bound}; "
                "raise the bound, or start less extreme"
            )
        return logit

    def keep_probability(self, logits):
        """Probability that a gate is above 0 (eq. 12).

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
        """Draws the value of every gate.

        Arguments
        ---------
        logits : torch.Tensor
            (N,)
        generator : torch.Generator
            On the CPU, so that all devices and processes draw the same values.

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
