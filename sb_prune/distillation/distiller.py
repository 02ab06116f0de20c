"""The distiller: a teacher and a loss, over the batches of a run."""

from sb_prune.declare.roots import by_entry
from sb_prune.distillation.teacher import Teacher


class Distiller:
    """Adds a distillation loss to a recipe's own and keeps the books.

    Its `teacher` must listen to the modules when they are trained.

    Arguments
    ---------
    distillation : LayerwiseDistillation
        The loss.
    modules : dict
        Name -> module of the recipe, unmasked and uncut.
    module : str or list of str
        Which of them are pruned.
    declaration : Declaration
        Of those.

    Raises
    ------
    ValueError
        If an output is no module of the recipe, or layers may be skipped.
    """

    def __init__(self, distillation, modules, module, declaration):
        missing = set(distillation.outputs) - set(modules)
        if missing:
            raise ValueError(
                f"distillation: outputs: {sorted(missing)} are not in "
                f"`modules`; write some of {list(modules)}"
            )
        if declaration.layerdrop and distillation.hidden_weight:
            raise ValueError(
                f"layerdrop_prob: {declaration.layerdrop} skips layers that "
                "layerwise distillation needs; write layerdrop_prob: 0.0, or "
                "layerdrop: 0.0 under one of sb_prune.lobes"
            )
        self.distillation = distillation
        layers = by_entry(module, declaration.layers)
        self.teacher = Teacher(modules, layers=layers)
        self._sums = {}
        self._batches = 0

    def add(self, loss, surviving):
        """The recipe's loss plus the named parts.

        Arguments
        ---------
        loss : torch.Tensor
            Scalar, of the batch that the teacher just followed.
        surviving : list of bool
            Which student layers are still there.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        parts = self.distillation.losses(self.teacher, surviving)
        self._batches += 1
        for name, value in {"task": loss, **parts}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        return self.distillation.task_weight * loss + sum(parts.values())

    def means(self):
        """Mean of each part since the last call, for the train logger.

        Returns
        -------
        dict
            Name -> float.
        """
        means = {k: float(v) / self._batches for k, v in self._sums.items()}
        self._sums, self._batches = {}, 0
        return means
