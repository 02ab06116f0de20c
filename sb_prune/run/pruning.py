"""A pruning run with its phases: prune, cut, fine-tune, export.

In the folder of the recipe's checkpointer it creates, one after another,

    dense/      the model when pruning began; the teacher is a copy of it
    prune/      checkpoints of the prune phase (masked model, gates)
    cut/        the model just after the cut, with the plan
    finetune/   checkpoints of the fine-tune phase (small model)

`dense` and `cut` are renamed into place when they are complete. So a rerun of
the same command knows from these folders which phase to continue.
"""

from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_broadcast, run_on_main
from speechbrain.utils.logger import get_logger

from sb_prune.cut.edits import Cut, folded
from sb_prune.cut.exactness import (
    first_outputs,
    is_rounding,
    largest_difference,
)
from sb_prune.cut.masking import detach_
from sb_prune.cut.surgery import cut_
from sb_prune.declare.joined import joined_structures
from sb_prune.declare.plan import Plan
from sb_prune.declare.roots import root_of
from sb_prune.distillation import Distiller, stored_weights
from sb_prune.export.document import prepare_document
from sb_prune.export.folder import export_model
from sb_prune.learn.budgets import SPARSITIES, ParameterBudget
from sb_prune.learn.pruner import Pruner, check_first_order
from sb_prune.learn.schedules import LinearSchedule
from sb_prune.learn.scores import ScorePruner
from sb_prune.run.checks import (
    DENSE_RUN,
    DENSE_YAML,
    ENTRIES,
    META_KEY,
    NEW_FOLDER,
    check_brain,
    check_export,
    check_place,
    check_readers,
    check_start,
    check_trainable,
    declared,
    saved_modules,
)
from sb_prune.run.milestones import Milestones, twin_of
from sb_prune.run.phases import FreshStart, phase_reached
from sb_prune.run.resume import RESUME_POINT, ResumePoint, make_resumable_
from sb_prune.run.snapshots import (
    find_snapshot,
    load_dense,
    load_snapshot,
    read_meta,
    save_snapshot,
)
from sb_prune.support.random_state import generators_untouched
from sb_prune.support.values import (
    Factory,
    Function,
    ListOf,
    Number,
    OneOrList,
    Whole,
    checked,
)

logger = get_logger(__name__)

# Which values the keys of the block accept; `keys` are passed on from others.
STRUCTURES = Function("sb_prune.conformer_structures")
BUDGET = Factory("sb_prune.MACBudget", ["groups"], keys={"target": "target"})
SCHEDULE = Factory(
    "sb_prune.CubicSchedule", ["fraction"], keys={"steps": "schedule_steps"}
)
GATES = Factory(
    "sb_prune.HardConcrete", ["initial_logits", "keep_probability", "sample"]
)
CONTROLLER = Factory("sb_prune.ExactBudget", ["step_", "multipliers"])
OPTIMIZER = Factory("torch.optim.Adam", ["step", "zero_grad"], given=1)
DISTILLATION = Factory("sb_prune.LayerwiseDistillation", ["losses"])
SCORE = Function("sb_prune.magnitude_score")


class PruningRun:
    """The run that the `pruning` block of a recipe's YAML describes.

    The keys of the block are the arguments below. Classes and functions are
    given as `!name:`.

    Arguments
    ---------
    module : str or list of str
        Key of the recipe's `modules` in which structures are pruned, or a list
        of keys. With a list, the names of structures start with the key.
    structures : callable or list of callable
        Module -> Declaration, e.g. `conformer_structures`. A list declares
        everything that its functions do, in the order in which data flow.
    target : float or dict
        Sparsity to reach, in (0, 1), or a dict: module prefix -> sparsity.
    prune_epochs : int
        Number of epochs of the prune phase. The fine-tune phase gets the rest
        of the limit of the epoch counter.
    schedule_steps : int
        Number of optimizer steps over which the target rises.
    start_from : str, optional
        Save folder of a dense run, or one checkpoint in it. By default the
        modules are as the recipe made them.
    start_min_key, start_max_key : str, optional
        Chooses among its checkpoints, like `min_key` or `max_key` when the
        dense recipe evaluates. By default the newest is taken.
    budget : callable
        target -> budget, e.g. `MACBudget`.
    schedule : callable
        steps -> schedule, e.g. `CubicSchedule`.
    gates : callable, optional
        Class of the gates, e.g. `HardConcrete`.
    controller : callable, optional
        Class of the controller, e.g. `AugmentedLagrangian`.
    gate_optimizer : callable, optional
        Parameters -> optimizer of the logits of gates.
    first_score : callable, optional
        Importance score for the gates at the start, e.g. `taylor_score`.
    score : callable, optional
        Importance score with which to choose units instead of learned gates,
        e.g. `magnitude_score`.
    score_every : int, optional
        Number of optimizer steps after which `score` chooses again; 10 by
        default.
    min_keep : int
        Smallest number of units in a module that stays.
    seed : int
        Seed of the private random generator of gates and scores.
    distillation : callable, optional
        Class of the distillation loss, which is used in both phases, e.g.
        `LayerwiseDistillation`.
    inference : str, optional
        YAML of the dense model, as one would publish it. The export is made
        from it.
    export_folder : str, optional
        Folder of the export.
    milestones : list of float
        Sparsities below the target. When the schedule reaches one, a model of
        that sparsity is exported beside the others (`export_0.3`), without
        fine-tuning.
    """

    @checked
    def __init__(
        self,
        module: ENTRIES,
        structures: OneOrList(STRUCTURES, least=1),
        target: SPARSITIES,
        prune_epochs: Whole(1),
        schedule_steps: Whole(0),
        start_from: DENSE_RUN = None,
        start_min_key: META_KEY = None,
        start_max_key: META_KEY = None,
        budget: BUDGET = ParameterBudget,
        schedule: SCHEDULE = LinearSchedule,
        gates: GATES = None,
        controller: CONTROLLER = None,
        gate_optimizer: OPTIMIZER = None,
        first_score: SCORE = None,
        score: SCORE = None,
        score_every: Whole(1) = None,
        min_keep: Whole(1) = 1,
        seed: Whole(0) = 0,
        distillation: DISTILLATION = None,
        inference: DENSE_YAML = None,
        export_folder: NEW_FOLDER = None,
        milestones: ListOf(Number(above=0, below=1), example="[0.3, 0.5]") = (),
    ):
        check_start("pruning", start_from, start_min_key, start_max_key)
        check_export("pruning", inference, export_folder)
        if isinstance(structures, (list, tuple)):
            structures = partial(joined_structures, parts=structures)
        self.module = module
        self.structures = structures
        self.budget = BUDGET.make("pruning", "budget", budget, target=target)
        self.prune_epochs = prune_epochs
        self.start_from = start_from
        self._start_keys = {"min_key": start_min_key, "max_key": start_max_key}
        self._distillation = distillation and DISTILLATION.make(
            "pruning", "distillation", distillation
        )
        self.inference = inference
        self.export_folder = export_folder
        self.milestones = Milestones(milestones, target, export_folder)
        self._schedule = SCHEDULE.make(
            "pruning", "schedule", schedule, steps=schedule_steps
        )
        self._min_keep = min_keep
        self._seed = seed
        if score is None:
            self._make_pruner = _gate_pruner(
                gates, controller, gate_optimizer, first_score
            )
            _refuse_unused("nothing is scored", "add", score_every=score_every)
        else:
            self._make_pruner = _score_pruner(score, score_every)
            _refuse_unused(
                "a score leaves nothing to learn",
                "leave out",
                gates=gates,
                controller=controller,
                gate_optimizer=gate_optimizer,
                first_score=first_score,
            )
        self.layers = None  # the LayerPruning that came before, if any
        self.pruner = None
        self.plan = None
        self.distiller = None
        self.is_cut = False
        self.cut_difference = None
        self._folder = None
        self._resume_point = ResumePoint()
        self._sampled_step = None

    def follow(self, layers):
        """Announces that whole layers are removed before this run begins.

        Arguments
        ---------
        layers : LayerPruning
            What removes them.

        Raises
        ------
        ValueError
            If the two blocks of the YAML do not fit together.
        """
        if layers.module != self.module:
            raise ValueError(
                f"layer_pruning: module: {layers.module!r}; write that of "
                f"pruning, {self.module!r}"
            )
        if self.start_from is not None:
            raise ValueError(
                "pruning: start_from: layers are left out before; write it, "
                "and its keys, in the block layer_pruning"
            )
        if layers.export_folder is not None:
            raise ValueError(
                "layer_pruning: export_folder: pruning exports what both have "
                "left; write it, and inference, in that block alone"
            )
        self.layers = layers

    # ------------------------------------------------------------- phases

    def begin_(self, brain, epoch_counter=None, steps_per_epoch=0):
        """Finds out which phase the run has reached and loads the dense model.

        Arguments
        ---------
        brain : Brain
            With a checkpointer.
        epoch_counter : EpochCounter, optional
            To be given if training follows.
        steps_per_epoch : int
            Number of optimizer steps per epoch of this training.
        """
        if self._folder is not None:
            raise RuntimeError(
                "pruning: this process has begun the run already; start "
                "train.py again and it continues"
            )
        check_brain(brain, self.module, epoch_counter)
        # with --debug SpeechBrain gives each process a folder of its own
        folder = ddp_broadcast(Path(brain.checkpointer.checkpoints_dir))
        self.declaration = declared(
            self.structures, root_of(brain.modules, self.module)
        )
        check_readers(brain.modules, self.module, self.declaration)
        modules = saved_modules(brain)
        if epoch_counter is not None:
            self._check_lengths(brain, epoch_counter.limit, steps_per_epoch)
        has_begun, self.is_cut = run_on_main(
            phase_reached, [folder, epoch_counter is not None]
        )
        if has_begun:
            self._check_same_run(folder, read_meta(folder / "dense"))
        elif epoch_counter is None:
            raise ValueError(
                f"{folder} holds no pruning run; train first (run without "
                "--test_only)"
            )
        else:
            self._start_new_run(brain, folder, modules)
        load_snapshot(folder / "dense", modules)
        self._folder = folder
        self._counter = epoch_counter
        self._fresh = FreshStart(brain, epoch_counter)
        if self._distillation is not None:
            start = find_snapshot(folder / "dense")
            self.distiller = Distiller(
                self._distillation,
                brain.modules,
                self.module,
                self.declaration,
                weights=stored_weights(start, modules),
            )

    def _start_new_run(self, brain, folder, modules):
        # refuse now what would otherwise fail after hours of training
        self.budget.groups(self.declaration, self._min_keep)
        if self.inference is not None:
            for place in (*self.milestones.folders, self.export_folder):
                check_place(place, folder)
                prepare_document(place, self.inference, brain, self.module)
        if self.start_from is not None:
            source = load_dense(self.start_from, modules, **self._start_keys)
            logger.info(f"Pruning starts from {source}")
        _warn_about_updates(brain, self.start_from)
        save_snapshot(folder / "dense", modules, self._identity())

    def _identity(self):
        """Settings that must not change when a run is continued."""
        return {
            "units": {s.name: s.units for s in self.declaration.structures},
            "budget": self.budget.unit,
            "target": self.budget.target,
            "prune_epochs": self.prune_epochs,
            "start_from": str(self.start_from),
        }

    def _check_same_run(self, folder, meta):
        for key, value in self._identity().items():
            if meta.get(key) != value:
                shown = (
                    "" if key == "units" else f" {meta.get(key)}, not {value}"
                )
                raise ValueError(
                    f"output_folder: {folder} holds a run with another "
                    f"{key}{shown}; write another output_folder, or the old "
                    "value"
                )

    def _check_lengths(self, brain, epochs, steps_per_epoch):
        if not 0 < self.prune_epochs < epochs:
            raise ValueError(
                f"prune_epochs: {self.prune_epochs} must be at least 1 and "
                f"below number_of_epochs ({epochs}), which counts both phases"
            )
        wanted = self._schedule.steps
        steps = steps_per_epoch * self.prune_epochs
        longer = "prune_epochs"
        limit = brain.optimizer_step_limit  # SpeechBrain's, of each phase
        if limit is not None and limit < steps:
            steps, longer = limit, "optimizer_step_limit"
        if wanted > steps and not brain.debug:
            raise ValueError(
                f"schedule_steps: {wanted} is longer than the prune phase "
                f"({steps} optimizer steps in {self.prune_epochs} epochs); "
                f"lower it or raise {longer}"
            )

    def start_pruning_(self, brain):
        """Masks the model and begins or resumes the prune phase.

        Arguments
        ---------
        brain : Brain
        """
        self.pruner = self._make_pruner(
            self.declaration,
            self.budget,
            self._schedule,
            min_keep=self._min_keep,
            seed=self._seed,
        )
        self.pruner.attach_()
        if self._counter is not None:
            self._total_epochs = self._counter.limit
            self._counter.limit = self.prune_epochs
            self._fresh.hold_stopping_(self._counter)
        self._use_folder(brain, "prune")

    def cut_(self, brain, batch):
        """Ends the prune phase: cuts the model and saves it.

        Arguments
        ---------
        brain : Brain
        batch : object
            A batch for `compute_forward`, with which the masked and the cut
            model are compared.
        """
        self._counter.limit = self._total_epochs
        self._warn_if_short()
        brain.modules.eval()
        # all take the plan of one process, as their rounding may differ
        plan = ddp_broadcast(self.pruner.plan(final=True))
        self.pruner.binarise_(plan)
        before = _outputs(brain, self.declaration, batch)
        self.pruner.cut_(plan)
        after = _outputs(brain, self.declaration, batch)
        difference = largest_difference(before, after)
        self.pruner = None
        _report_difference(difference, is_rounding(before, after))
        brain.optimizer_step = 0
        save_snapshot(
            self._folder / "cut",
            self._cut_recoverables(brain),
            {"plan": plan.to_dict(), "difference": difference},
        )
        self.plan = plan
        self.is_cut = True

    def _warn_if_short(self):
        done, wanted = self.pruner.step, self.pruner.schedule.steps
        if done < wanted:
            logger.warning(
                f"The prune phase ended at step {done} of schedule_steps: "
                f"{wanted}; the cut goes to the target at once"
            )

    def _cut_recoverables(self, brain):
        objects = {
            **saved_modules(brain),
            "brain": brain,
            RESUME_POINT: ResumePoint(),
        }
        for name, saved in brain.checkpointer.recoverables.items():
            if saved is self._counter:
                objects[name] = saved
        return objects

    def start_finetuning_(self, brain):
        """Loads the cut model and begins or resumes the fine-tune phase.

        Arguments
        ---------
        brain : Brain
        """
        self.load_cut_(brain)
        self._fresh.restore_(brain, self._counter)

    def load_cut_(self, brain):
        """Gives the model the shapes and weights that it had after the cut.

        Arguments
        ---------
        brain : Brain
        """
        meta = read_meta(self._folder / "cut")
        if self.plan is None:
            self.plan = Plan.from_dict(meta["plan"])
            cut_(self.declaration, self.plan)
        self.cut_difference = meta["difference"]
        load_snapshot(self._folder / "cut", self._cut_recoverables(brain))
        self._use_folder(brain, "finetune")

    def _use_folder(self, brain, phase):
        checkpointer = brain.checkpointer
        checkpointer.checkpoints_dir = self._folder / phase
        self._resume_point = make_resumable_(checkpointer, self.pruner)

    def resume_for_evaluation_(self, brain):
        """Rebuilds the model of a run that this process did not train.

        Arguments
        ---------
        brain : Brain
        """
        if self._folder is not None:
            return
        self.begin_(brain)
        if self.is_cut:
            self.load_cut_(brain)
        else:
            self.start_pruning_(brain)

    def export(self, brain):
        """Exports the pruned model, if the YAML names a folder for it.

        If there are several processes, the main one writes.

        Arguments
        ---------
        brain : Brain

        Returns
        -------
        Path or None
            The folder.
        """
        if self.export_folder is None:
            return None
        if self.plan is None:
            raise RuntimeError("export: the model is not pruned yet; call fit")
        facts = {"cut_max_abs_diff": self.cut_difference}
        return run_on_main(
            self._export, [self.export_folder, brain, self.plan, facts]
        )

    def _export(self, folder, brain, plan, facts):
        edits = [Cut(structures=self.structures, plan=plan.to_dict())]
        if self.layers is not None:
            edits = [*self.layers.edits, *edits]
            facts = {**self.layers.facts, **facts}
        return export_model(
            folder,
            self.inference,
            brain,
            module=self.module,
            edits=folded(edits, self.declaration.root),
            facts=facts,
        )

    def export_milestones(self, brain, batch):
        """Exports the milestones that the schedule has reached with this step.

        Arguments
        ---------
        brain : Brain
        batch : object
            A batch for `compute_forward`, with which masked and cut models are
            compared.
        """
        if self.pruner is None:
            return
        passed = self.milestones.passed(*self.pruner.last_rise())
        if passed and self.distiller is not None:
            self.distiller.teacher.end_()  # the copies have its hooks, too
        for sparsity in passed:
            plan = self.pruner.binarise_(self.pruner.plan(sparsity))
            run_on_main(self._export_copy, [brain, batch, plan, sparsity])

    def _export_copy(self, brain, batch, plan, sparsity):
        twin, declaration = twin_of(brain, self.declaration)
        twin.modules.eval()
        before = _outputs(twin, declaration, batch)
        detach_(declaration.root)
        cut_(declaration, plan)
        after = _outputs(twin, declaration, batch)
        difference = largest_difference(before, after)
        _report_difference(difference, is_rounding(before, after))
        facts = {"milestone": sparsity, "cut_max_abs_diff": difference}
        self._export(self.milestones.folder(sparsity), twin, plan, facts)

    # -------------------------------------------------------------- steps

    def check_trainable(self, brain):
        """Refuses masked tensors that are not trained, in the prune phase.

        Arguments
        ---------
        brain : Brain
            With its optimizers.
        """
        if self.pruner is not None:
            check_trainable(brain, self.module, self.declaration)

    def check_gates_moved(self, brain):
        """Refuses a recipe that has not updated the gates within an epoch.

        Arguments
        ---------
        brain : Brain

        Raises
        ------
        RuntimeError
            If no optimizer step has been counted.
        """
        # with --debug there may be too few batches for one optimizer step
        if self.pruner is None or self.pruner.step or brain.debug:
            return
        raise RuntimeError(
            "pruning: the gates never moved; the recipe's fit_batch must "
            "call self.optimizers_step()"
        )

    def begin_batch_(self):
        """Draws new gates before the first batch of each optimizer step."""
        self._resume_point.begin_batch_()
        if self.pruner is not None and self._sampled_step != self.pruner.step:
            self.pruner.sample_()
            self._sampled_step = self.pruner.step
        if self.distiller is not None:
            self.distiller.teacher.begin_()

    def begin_stage_(self, stage):
        """Sets the gates to the current plan, if the stage is not training.

        Arguments
        ---------
        stage : speechbrain.Stage
        """
        self._sampled_step = None
        if self.distiller is not None:
            self.distiller.teacher.end_()
        if self.pruner is not None and stage != sb.Stage.TRAIN:
            self.pruner.binarise_()

    def add_distillation(self, loss):
        """Adds the distillation loss, if there is any, to the recipe's loss.

        Arguments
        ---------
        loss : torch.Tensor
            Scalar.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        if self.distiller is None:
            return loss
        return self.distiller.add(loss, self._surviving())

    def _surviving(self):
        if self.plan is not None:
            kept = self.plan.keep
            return [
                name not in kept or bool(kept[name].all())
                for name in self.declaration.layers
            ]
        return self.pruner.open_modules(self.declaration.layers)

    def listen_(self, modules):
        """Hooks the teacher to the modules, after SpeechBrain wrapped them.

        Arguments
        ---------
        modules : dict
            Name -> module of the recipe.
        """
        if self.distiller is not None:
            self.distiller.teacher.listen_(modules)

    def veto_gates_(self):
        """Skips the next update of the gates, as the recipe skips its own."""
        if self.pruner is not None:
            self.pruner.veto_step_()

    def step_gates_(self, scale):
        """Updates the gates after each step of the recipe's optimizers.

        Arguments
        ---------
        scale : float
            Factor by which the GradScaler multiplied the loss.
        """
        if self.pruner is not None:
            self.pruner.step_(scale)

    def statistics(self):
        """Numbers of the epoch for the train logger.

        Returns
        -------
        dict
            Name -> number.
        """
        named = self.distiller.means() if self.distiller else {}
        if self.pruner is not None:
            named.update(self.pruner.statistics(self.pruner.plan()))
        return named


def _gate_pruner(gates, controller, gate_optimizer, first_score):
    """Checks the parts of a pruner with learned gates; returns its factory."""
    gates = gates and GATES.make("pruning", "gates", gates)
    check_first_order(gates, first_score)
    if gate_optimizer is not None:  # tried out now, to fail before training
        logits = [torch.zeros(1, requires_grad=True)]
        OPTIMIZER.make("pruning", "gate_optimizer", gate_optimizer, logits)
    return partial(
        Pruner,
        gates=gates,
        controller=controller
        and CONTROLLER.make("pruning", "controller", controller),
        gate_optimizer=gate_optimizer,
        first_score=first_score,
    )


def _score_pruner(score, every):
    """Returns the factory of a pruner that chooses by a score."""
    given = {} if every is None else {"every": every}
    return partial(ScorePruner, score=score, **given)


def _refuse_unused(why, what, **keys):
    """Refuses keys that would have no effect."""
    given = [f"`{key}`" for key, value in keys.items() if value is not None]
    if given:
        raise ValueError(
            f"pruning: {why}; leave out {', '.join(given)}, or {what} `score`"
        )


def _outputs(brain, declaration, batch):
    """Outputs of the modules in the scope for a batch."""
    root = declaration.root
    scope = [root.get_submodule(name) for name in declaration.scope]
    with generators_untouched(), torch.no_grad():
        return first_outputs(
            scope, lambda: brain.compute_forward(batch, sb.Stage.VALID)
        )


def _warn_about_updates(brain, start_from):
    named = {**saved_modules(brain), **brain.modules}
    for module, name in {m: n for n, m in named.items()}.items():
        until = getattr(module, "update_until_epoch", None)
        if start_from is not None and until is not None and until > 1:
            logger.warning(
                f"{name}: update_until_epoch: {until} changes the statistics "
                "that the dense model was trained with; write 1 to keep them"
            )


def _report_difference(difference, is_rounding):
    text = f"Masked and cut model differ by at most {difference:.1e}"
    if is_rounding:
        logger.info(f"{text}: rounding")
    else:
        logger.warning(f"{text}: more than rounding")
