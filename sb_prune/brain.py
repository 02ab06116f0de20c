"""A mixin with which the Brain of any recipe prunes its model."""

import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import LoopedLoader
from torch.utils.data import DataLoader

from sb_prune.run.checks import made_from
from sb_prune.run.layer_pruning import LayerPruning
from sb_prune.run.pruning import PruningRun
from sb_prune.support.parallel import end_with_idle_threads, unwrap_


class PruningMixin:
    """Prunes, cuts, fine-tunes and exports within the recipe's own `fit`.

    List it *before* the recipe's Brain,

        class PrunedASR(PruningMixin, ASR):
            '''The same recipe, pruned.'''

    and add a block to the YAML: `pruning` (the arguments of `PruningRun`),
    `layer_pruning` (those of `LayerPruning`), or both; layers are removed
    first. Without a block the class behaves like the recipe's own.

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
    >>> PrunedASR().pruning is None
    True
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
        self.pruning, self.layer_pruning = made_from(
            vars(hparams) if hparams is not None else {},
            pruning=PruningRun,
            layer_pruning=LayerPruning,
        )
        if self.pruning is not None and self.layer_pruning is not None:
            self.pruning.follow(self.layer_pruning)

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
        train_loader_kwargs = train_loader_kwargs or {}
        valid_loader_kwargs = valid_loader_kwargs or {}
        if self.layer_pruning is not None and not self.test_only:
            self._leave_layers_out(train_set)
        if self.pruning is None or self.test_only:
            super().fit(
                epoch_counter,
                train_set,
                valid_set,
                progressbar,
                train_loader_kwargs,
                valid_loader_kwargs,
            )
            if self.layer_pruning is not None and not self.test_only:
                unwrap_(self.modules)
                self._export()
            return
        run = self.pruning
        train_set = self._loader(
            train_set, sb.Stage.TRAIN, **train_loader_kwargs
        )
        valid_set = self._loader(
            valid_set, sb.Stage.VALID, ckpt_prefix=None, **valid_loader_kwargs
        )
        steps = _batches(train_set) // self.grad_accumulation_factor
        run.begin_(self, epoch_counter, steps)
        if not run.is_cut:
            run.start_pruning_(self)
            super().fit(epoch_counter, train_set, valid_set, progressbar)
            unwrap_(self.modules)
            seen = train_set if valid_set is None else valid_set
            run.cut_(self, next(iter(seen)))
        run.start_finetuning_(self)
        if self.debug:  # run a few epochs of this phase, too
            self.debug_epochs += epoch_counter.current
        super().fit(epoch_counter, train_set, valid_set, progressbar)
        unwrap_(self.modules)
        self._export()

    def _loader(self, data, stage, **kwargs):
        if data is None or isinstance(data, (DataLoader, LoopedLoader)):
            return data
        return self.make_dataloader(data, stage=stage, **kwargs)

    def _leave_layers_out(self, train_set=None):
        inside = self.pruning and self.pruning.structures
        self.layer_pruning.cut_(self, train_set, inside)

    def _export(self):
        self.modules.eval()
        (self.pruning or self.layer_pruning).export(self)

    def on_fit_start(self):
        """Calls the recipe's, then checks that masked tensors are trained."""
        if self.layer_pruning is not None and self.pruning is None:
            self.layer_pruning.make_resumable_(self)
        super().on_fit_start()
        if self.pruning is not None:
            self.pruning.check_trainable(self)
            self.pruning.listen_(self.modules)

    def compute_forward(self, batch, stage):
        """Calls the recipe's, after drawing gates if this is training."""
        if stage == sb.Stage.TRAIN:
            for block in filter(None, (self.layer_pruning, self.pruning)):
                block.begin_batch_()
        return super().compute_forward(batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """Calls the recipe's, and adds the distillation loss in training."""
        loss = super().compute_objectives(predictions, batch, stage)
        if self.pruning is not None and stage == sb.Stage.TRAIN:
            loss = self.pruning.add_distillation(loss)
        return loss

    def check_loss_isfinite(self, loss):
        """Calls the recipe's; gates are not updated if a loss is not finite."""
        if self.pruning is not None and not torch.isfinite(loss):
            self.pruning.veto_gates_()
        super().check_loss_isfinite(loss)

    def optimizers_step(self):
        """Calls the recipe's, then updates the gates.

        Gates are not updated if the GradScaler skipped the recipe's step.
        """
        scale = self.scaler.get_scale()
        super().optimizers_step()
        if self.pruning is not None:
            if self.scaler.get_scale() < scale:
                self.pruning.veto_gates_()
            self.pruning.step_gates_(scale)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Calls the recipe's, then exports milestones that were reached."""
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        if self.pruning is not None and should_step:
            self.pruning.export_milestones(self, batch)

    def on_stage_start(self, stage, epoch=None):
        """Sets the gates to the current plan before evaluation."""
        if self.pruning is not None:
            self.pruning.begin_stage_(stage)
        super().on_stage_start(stage, epoch)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Calls the recipe's, whose log gets the numbers of pruning too."""
        if self.pruning is not None and stage == sb.Stage.TRAIN:
            self.pruning.check_gates_moved(self)
            logger = getattr(self.hparams, "train_logger", None)
            if logger is not None:
                log_along_(logger, self.pruning.statistics())
        super().on_stage_end(stage, stage_loss, epoch)

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Rebuilds the cut model, then the recipe loads its best checkpoint."""
        if self.layer_pruning is not None:
            self._leave_layers_out()
        if self.pruning is not None:
            self.pruning.resume_for_evaluation_(self)
        super().on_evaluate_start(max_key=max_key, min_key=min_key)

    def evaluate(self, *args, **kwargs):
        """Calls the recipe's, then exports the model that was evaluated."""
        loss = super().evaluate(*args, **kwargs)
        pruned = self.pruning or self.layer_pruning
        if pruned is not None and pruned.is_cut:
            self._export()
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
    logger : TrainLogger
        The logger, whose next call of `log_stats` gets the numbers.
    named : dict
        Name -> number.
    """

    def log_stats(stats_meta, train_stats=None, *args, **kwargs):
        del logger.log_stats  # uncovers the method of the class
        together = {**(train_stats or {}), **named}
        return logger.log_stats(stats_meta, together, *args, **kwargs)

    if named:
        logger.log_stats = log_stats


def _batches(loader):
    """Number of batches in an epoch; infinite if the data set has no length."""
    try:
        return len(loader)
    except TypeError:
        return float("inf")
