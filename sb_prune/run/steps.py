"""What happens in every step of training, in each phase."""

import speechbrain as sb

from sb_prune.run.checks import check_trainable
from sb_prune.run.milestones import export_milestone
from sb_prune.run.resume import ResumePoint


class Steps:
    """Steps of a phase without gates; by default nothing happens.

    Arguments
    ---------
    point : ResumePoint, optional
        Of the checkpoints of this phase.
    distiller : Distiller, optional
        Adds a loss.
    surviving : callable, optional
        Says for each layer whether it is open. Takes no arguments.
    """

    pruner = None
    holds_weights = False  # whether optimizers wait in this step

    def __init__(self, point=None, distiller=None, surviving=None):
        self.point = point or ResumePoint()
        self.distiller = distiller
        self._surviving = surviving

    def start_(self, brain):
        """To be called when modules are wrapped and optimizers are made.

        Arguments
        ---------
        brain : Brain
        """
        if self.distiller is not None:
            self.distiller.teacher.listen_(brain.modules)

    def begin_stage_(self, stage):
        """To be called before training, validation and test.

        Arguments
        ---------
        stage : speechbrain.Stage
        """
        if self.distiller is not None:
            self.distiller.teacher.end_()

    def begin_batch_(self):
        """To be called before the forward of each training batch."""
        self.point.begin_batch_()
        if self._distils():
            self.distiller.teacher.begin_()

    def add_to_loss(self, loss):
        """Adds the distillation loss, if there is any, to the recipe's loss.

        Arguments
        ---------
        loss : torch.Tensor or None
            Scalar; None if the recipe had none to compute.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        if not self._distils():
            return loss
        return self.distiller.add(loss, self._surviving())

    def _distils(self):
        # as long as weights are held, the teacher would say the same
        return self.distiller is not None and not self.holds_weights

    def veto_(self):
        """Skips the next update of the gates, as the recipe skips its own."""

    def step_(self, scale):
        """To be called after each step of the recipe's optimizers.

        Arguments
        ---------
        scale : float
            Factor by which the GradScaler multiplied the loss.
        """

    def end_step_(self, brain, batch):
        """To be called after each optimizer step, with the batch it ended on.

        Arguments
        ---------
        brain : Brain
        batch : object
            As for `compute_forward`.
        """

    def end_epoch_(self, brain):
        """To be called at the end of each epoch of training.

        Arguments
        ---------
        brain : Brain

        Returns
        -------
        dict
            Name -> number, for the train logger.
        """
        return self.distiller.means() if self.distiller else {}


class PruneSteps(Steps):
    """Steps of the prune phase, in which gates mask the model.

    Arguments
    ---------
    run : Run
        Its model is declared and masked.
    settings : PruningSettings
    pruner : Pruner
    point : ResumePoint
    """

    def __init__(self, run, settings, pruner, point):
        layers = run.declaration.layers
        super().__init__(
            point, run.distiller, lambda: pruner.open_modules(layers)
        )
        self.pruner = pruner
        self._run, self._settings = run, settings
        self._sampled_step = None

    def start_(self, brain):
        """Refuses masked tensors that are not trained; hooks the teacher."""
        check_trainable(brain, self._settings.module, self._run.declaration)
        super().start_(brain)

    @property
    def holds_weights(self):
        """Whether optimizers wait, as the gates are not closing yet."""
        return self._settings.hold_weights and not self.pruner.rises()

    def begin_stage_(self, stage):
        """Sets the gates to the current plan, if the stage is not training."""
        super().begin_stage_(stage)
        self._sampled_step = None
        if stage != sb.Stage.TRAIN:
            self.pruner.binarise_()

    def begin_batch_(self):
        """Draws new gates before the first batch of each optimizer step."""
        super().begin_batch_()
        if self._sampled_step != self.pruner.step:
            self.pruner.sample_()
            self._sampled_step = self.pruner.step

    def veto_(self):
        """Skips the next update of the gates, as the recipe skips its own."""
        self.pruner.veto_step_()

    def step_(self, scale):
        """Updates the gates."""
        self.pruner.step_(scale)

    def end_step_(self, brain, batch):
        """Exports the milestones that the schedule has reached."""
        passed = self._settings.milestones.passed(*self.pruner.last_rise())
        if passed and self.distiller is not None:
            self.distiller.teacher.end_()  # the copies have its hooks, too
        for sparsity in passed:
            plan = self.pruner.binarise_(self.pruner.plan(sparsity))
            export_milestone(self._run, self._settings, batch, plan, sparsity)

    def end_epoch_(self, brain):
        """Numbers for the log; refuses gates that never moved.

        Raises
        ------
        RuntimeError
            If no optimizer step has been counted.
        """
        # with --debug there may be too few batches for one optimizer step
        if not self.pruner.step and not brain.debug:
            raise RuntimeError(
                "pruning: the gates never moved; the recipe's fit_batch must "
                "call self.optimizers_step()"
            )
        plan = self.pruner.plan()
        return {**super().end_epoch_(brain), **self.pruner.statistics(plan)}
