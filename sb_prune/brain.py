"""A mixin with which the Brain of any recipe prunes its model."""

import speechbrain as sb
import torch

from sb_prune.run.data import Data
from sb_prune.run.run import Run
from sb_prune.support.parallel import end_with_idle_threads, unwrap_


class PruningMixin:
    """Prunes, cuts, fine-tunes and exports within the recipe's own `fit`.

    List it *before* the recipe's Brain,

        class PrunedASR(PruningMixin, ASR):
            '''The same recipe, pruned.'''

    and add a block to the YAML: `pruning` (the arguments of
    `PruningSettings`), `layer_pruning` (those of `LayerSettings`), or both;
    layers are removed first. Without a block the class behaves like the
    recipe's own.

    Raises
    ------
    TypeError
        If a subclass lists the mixin after the recipe's Brain, or has no Brain
        with a `compute_objectives`.

    Example
    -------
    >>> class ASR(sb.Brain):
    ...     def compute_objectives(self, predictions, batch, stage):
    ...         return predictions
    >>> class PrunedASR(PruningMixin, ASR):
    ...     '''The same recipe, pruned.'''
    >>> PrunedASR().pruning.has_phases
    False
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        position = order.index(PruningMixin)
        recipes = [c for c in order if issubclass(c, sb.Brain)]
        if not recipes:
            return
        before = [
            c for c in order[:position] if not issubclass(c, PruningMixin)
        ]
        behind = [
            c
            for c in order[position:]
            if c is not sb.Brain
            and "compute_objectives" in vars(c)
            and c is not PruningMixin
        ]
        if any(issubclass(c, sb.Brain) for c in before):
            raise TypeError(
                f"{cls.__name__}: PruningMixin must stand before the recipe's "
                "Brain; write `class PrunedASR(PruningMixin, ASR): ...`"
            )
        if not behind:
            raise TypeError(
                f"{cls.__name__}: no class behind PruningMixin has a "
                "compute_objectives, so there is no loss to prune by; write "
                "`class PrunedASR(PruningMixin, ASR): ...` with the recipe's "
                "own Brain as ASR"
            )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        end_with_idle_threads()
        hparams = getattr(self, "hparams", None)
        self.pruning = Run.of(vars(hparams) if hparams is not None else {})

    def fit(
        self,
        epoch_counter,
        train_set,
        valid_set=None,
        progressbar=None,
        train_loader_kwargs=None,
        valid_loader_kwargs=None,
    ):
        """Runs the recipe's `fit` once for each phase, then exports the model.

        Arguments are those of `sb.Brain.fit`.
        """
        options = (train_loader_kwargs or {}, valid_loader_kwargs or {})
        if self.test_only or not self.pruning.has_phases:
            super().fit(
                epoch_counter, train_set, valid_set, progressbar, *options
            )
            return
        data = Data(self, train_set, valid_set, *options)
        self.pruning.begin_(self, epoch_counter, data)
        for _ in self.pruning.phases():
            super().fit(epoch_counter, data.train, data.valid, progressbar)
            unwrap_(self.modules)
        self.pruning.export_()

    def on_fit_start(self):
        """Calls the recipe's, then hooks up what this phase needs."""
        super().on_fit_start()
        self.pruning.steps.start_(self)

    def learns_from(self, module, position=None, when_held=True):
        """Whether training needs an output of a module.

        A recipe may leave out what nothing learns from, e.g. a decoder while
        an encoder learns the states of its teacher alone. If it then has no
        loss of its own, its `compute_objectives` returns None.

        Arguments
        ---------
        module : str
            Key of `modules`.
        position : int, optional
            Which of several outputs.
        when_held : bool
            Whether steps in which weights are held count, too, where the loss
            of the recipe says what matters.

        Returns
        -------
        bool
            False if the loss of the recipe weighs nothing, and distillation
            does not compare this output.
        """
        steps = self.pruning.steps
        if steps.distiller is None or steps.holds_weights and when_held:
            return True  # by the loss of the recipe
        return steps.distiller.reads(module, position)

    def compares(self, module, position=None):
        """Whether this step compares an output of student and teacher.

        If so, `compute_objectives` of a recipe may return None for a batch
        without targets.

        Arguments
        ---------
        module : str
            Key of `modules`.
        position : int, optional
            Which of several outputs.

        Returns
        -------
        bool
        """
        steps = self.pruning.steps
        if steps.distiller is None or steps.holds_weights:
            return False
        return steps.distiller.compares(module, position)

    def compute_forward(self, batch, stage):
        """Calls the recipe's, after drawing gates if this is training."""
        if stage == sb.Stage.TRAIN:
            self.pruning.steps.begin_batch_()
        return super().compute_forward(batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """Calls the recipe's, and adds the distillation loss in training."""
        loss = super().compute_objectives(predictions, batch, stage)
        if stage == sb.Stage.TRAIN:
            loss = self.pruning.steps.add_to_loss(loss)
        return loss

    def check_loss_isfinite(self, loss):
        """Calls the recipe's; gates are not updated if a loss is not finite."""
        if not torch.isfinite(loss):
            self.pruning.steps.veto_()
        super().check_loss_isfinite(loss)

    def optimizers_step(self):
        """Calls the recipe's unless weights are held, then updates the gates.

        Gates are not updated if the GradScaler skipped the recipe's step.
        """
        scale = self.scaler.get_scale()
        if self.pruning.steps.holds_weights:
            self._pass_step()
        else:
            super().optimizers_step()
        if self.scaler.get_scale() < scale:
            self.pruning.steps.veto_()
        self.pruning.steps.step_(scale)

    def _pass_step(self):
        """Counts an optimizer step in which the weights stay as they are."""
        optimizers = self.optimizers_dict or {"optimizer": self.optimizer}
        for optimizer in optimizers.values():
            self.scaler.unscale_(optimizer)  # looks for what is not finite
        self.scaler.update()
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Calls the recipe's, then exports milestones that were reached."""
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        if should_step:
            self.pruning.steps.end_step_(self, batch)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """No checkpoint holds the gradients of a step that has begun."""
        return self.step % self.grad_accumulation_factor == 0 and (
            super()._should_save_intra_epoch_ckpt(
                last_ckpt_time, steps_since_ckpt
            )
        )

    def on_stage_start(self, stage, epoch=None):
        """Sets the gates to the current plan before evaluation."""
        self.pruning.steps.begin_stage_(stage)
        super().on_stage_start(stage, epoch)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Calls the recipe's, whose log gets the numbers of pruning too."""
        if stage == sb.Stage.TRAIN:
            numbers = self.pruning.steps.end_epoch_(self)
            log_along_(getattr(self.hparams, "train_logger", None), numbers)
        super().on_stage_end(stage, stage_loss, epoch)

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Rebuilds the cut model, then the recipe loads its best checkpoint."""
        self.pruning.resume_for_evaluation_(self)
        super().on_evaluate_start(max_key=max_key, min_key=min_key)

    def evaluate(self, *args, **kwargs):
        """Calls the recipe's, then exports the model that was evaluated."""
        loss = super().evaluate(*args, **kwargs)
        if self.pruning.is_cut:
            self.pruning.export_()
        return loss


def pruned(brain_class):
    """Combines the Brain of a recipe with `PruningMixin`.

    Arguments
    ---------
    brain_class : type
        The recipe's subclass of `sb.Brain`.

    Returns
    -------
    type
        A subclass of it, which prunes if the YAML has a block that says so.

    Example
    -------
    >>> class ASR(sb.Brain):
    ...     def compute_objectives(self, predictions, batch, stage):
    ...         return predictions
    >>> pruned(ASR)
    <class 'sb_prune.brain.PrunedASR'>
    """
    name = f"Pruned{brain_class.__name__}"
    doc = f"{brain_class.__name__}, pruned where the YAML says so."
    return type(name, (PruningMixin, brain_class), {"__doc__": doc})


def log_along_(logger, named):
    """Adds numbers to what the recipe logs next.

    A separate call of the logger would count as another step in TensorBoard,
    and overwrite the recipe's numbers of this epoch in Weights & Biases.

    Arguments
    ---------
    logger : TrainLogger or None
        Its next call of `log_stats` gets the numbers.
    named : dict
        Name -> number.
    """

    def log_stats(stats_meta, train_stats=None, *args, **kwargs):
        del logger.log_stats  # uncovers the method of the class
        together = {**(train_stats or {}), **named}
        return logger.log_stats(stats_meta, together, *args, **kwargs)

    if named and logger is not None:
        logger.log_stats = log_stats
