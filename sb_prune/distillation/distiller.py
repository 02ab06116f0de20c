"""Combines a teacher with a distillation loss during a run."""

from sb_prune.declare.roots import by_entry
from sb_prune.distillation.teacher import Teacher


class Distiller:
    """Adds a distillation loss to the loss of a recipe, and averages its parts.

    Before training, `teacher.listen_` must be called with the modules.

    Arguments
    ---------
    distillation : LayerwiseDistillation
        The distillation loss. Without `outputs` it compares none, and its
        `hidden_weight` and `task_weight` are 1.
    modules : dict
        Name -> module of the recipe, neither masked nor cut yet.
    module : str or list of str
        Names of the modules that are pruned.
    declaration : Declaration
        Declares what can be pruned in these.
    teacher : dict, optional
        Name -> module of another model that is to be the teacher. Names are
        those of `modules`; layers have the names that they have in the student.
        By default the teacher is the model itself, as it is now.
    weights : dict, optional
        Parameter or buffer of the teacher's modules -> its value, which is
        copied once it is needed (see `Teacher`); {} if nobody else changes
        these modules. By default all modules are copied at once.

    Attributes
    ----------
    teacher : Teacher
    layers : int
        Number of layers of the student.

    Raises
    ------
    ValueError
        If the loss names an output that is not a module of the recipe or the
        teacher, if the teacher lacks a layer of the student, or if training
        skips layers at random (layerdrop).
    """

    def __init__(
        self,
        distillation,
        modules,
        module,
        declaration,
        teacher=None,
        weights=None,
    ):
        outputs = set(getattr(distillation, "outputs", ()))
        hidden_weight = getattr(distillation, "hidden_weight", 1.0)
        missing = outputs - set(modules)
        if missing:
            raise ValueError(
                f"distillation: outputs: {sorted(missing)} are not in "
                f"`modules`; write some of {list(modules)}"
            )
        if declaration.layerdrop and hidden_weight:
            raise ValueError(
                f"layerdrop_prob: {declaration.layerdrop} skips layers that "
                "layerwise distillation needs; write layerdrop_prob: 0.0, or "
                "layerdrop: 0.0 under one of sb_prune.lobes"
            )
        self.distillation = distillation
        self.layers = len(declaration.layers)
        layers = by_entry(module, declaration.layers)
        teacher = modules if teacher is None else teacher
        missing = outputs - set(teacher)
        if missing:
            raise ValueError(
                f"teacher: {sorted(missing)} of distillation: outputs are not "
                f"among its `modules` {list(teacher)}; leave them out, or "
                "write another teacher"
            )
        self.teacher = Teacher(teacher, layers=layers, weights=weights)
        self._sums = {}  # part of the loss -> (sum, batches)

    def reads(self, module, position=None):
        """Whether the loss reads an output of a module.

        Arguments
        ---------
        module : str
            Key of `modules`.
        position : int, optional
            Which of several outputs.

        Returns
        -------
        bool
            True if the distillation does not say (it has no `reads`).
        """
        reads = getattr(self.distillation, "reads", None)
        return reads is None or reads(module, position)

    def compares(self, module, position=None):
        """Whether an output of a module is compared with the teacher's.

        Arguments
        ---------
        module : str
            Key of `modules`.
        position : int, optional
            Which of several outputs.

        Returns
        -------
        bool
            False if the distillation does not say (it has no `compares`).
        """
        compares = getattr(self.distillation, "compares", None)
        return compares is not None and compares(module, position)

    def add(self, loss, surviving):
        """Adds the distillation loss to the loss of the recipe.

        Arguments
        ---------
        loss : torch.Tensor or None
            Scalar, for the batch that the student was just called with; None
            if it weighs nothing or the batch has no targets.
        surviving : list of bool
            For each layer of the student, whether it is open.

        Returns
        -------
        torch.Tensor
            Scalar.

        Raises
        ------
        RuntimeError
            If nothing counts in this batch.
        """
        parts = self.distillation.losses(self.teacher, surviving)
        task = {} if loss is None else {"task": loss}
        for name, value in {**task, **parts}.items():
            value = value.detach()
            total, batches = self._sums.get(name, (0, 0))
            self._sums[name] = (total + value, batches + 1)
        weight = getattr(self.distillation, "task_weight", 1.0)
        weighted = [*parts.values()]
        if weight and loss is not None:
            weighted.append(weight * loss)
        if not weighted:
            raise RuntimeError(
                "distillation: nothing is compared in this batch, and the "
                "recipe has no loss that counts; return one from "
                "compute_objectives, with a task_weight above 0"
            )
        return sum(weighted)

    def means(self):
        """Mean of each part of the loss since the last call, for the log.

        It is that of the batches that had this part.

        Returns
        -------
        dict
            Name -> float.
        """
        means = {k: float(v) / n for k, (v, n) in self._sums.items()}
        self._sums = {}
        return means
