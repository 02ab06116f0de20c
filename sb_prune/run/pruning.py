"""One pruning run over its phases: prune, cut, fine-tune, export.

The folder of the recipe's checkpointer holds, in the order of their making

    dense/      the model when pruning began; the teacher is made from it
    prune/      checkpoints of the prune phase (masked model, gates)
    cut/        the model just after the cut, with the plan
    finetune/   checkpoints of the fine-tune phase (small model)

`dense` and `cut` are renamed into place when complete, so what stands there
says which phase a rerun continues.
"""

from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_broadcast, run_on_main
from speechbrain.utils.logger import get_logger

from sb_prune.cut.exactness import first_outputs, largest_difference
from sb_prune.cut.masking import detach_
from sb_prune.cut.surgery import cut_
from sb_prune.declare.joined import joined_structures
from sb_prune.declare.plan import Plan
from sb_prune.declare.roots import root_of
from sb_prune.distillation import Distiller
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

# What the parts of a block may be; `keys` are what the block itself has.
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
    """What the `pruning` block of a recipe's YAML describes.

    Classes are given as `!name:` and made here.

    Arguments
    ---------
    module : str or list of str
        Key of the recipe's `modules` below which structures are cut. Given a
        list, names of structures start with the key.
    structures : callable or list of callable
        Module -> Declaration, e.g. `conformer_structures`; of a list, in the
        order in which data flow, all that they declare.
    target : float or dict
        Sparsity to reach, in (0, 1); a dict gives one per module prefix.
    prune_epochs : int
        Epochs of the prune phase; the rest of the epoch counter's limit is
        the fine-tune phase.
    schedule_steps : int
        Optimizer steps over which the target rises.
    start_from : str, optional
        Save folder (or one checkpoint) of a dense run.
    start_min_key, start_max_key : str, optional
        Which of its checkpoints: the `min_key` or `max_key` with which the
        dense recipe evaluates. By default the newest.
    budget : callable
        target -> budget, e.g. `MACBudget`.
    schedule : callable
        steps -> schedule, e.g. `CubicSchedule`.
    gates : callable, optional
        Makes the gates, e.g. `HardConcrete`.
    controller : callable, optional
        Makes the controller, e.g. `AugmentedLagrangian`.
    gate_optimizer : callable, optional
        Parameters -> optimizer of the gates' logits.
    first_score : callable, optional
        In which order the gates start, e.g. `taylor_score`.
    score : callable, optional
        Chooses by a score instead of learned gates, e.g. `magnitude_score`.
    score_every : int, optional
        Optimizer steps from one such choice to the next; 10 by default.
    min_keep : int
        Units that stay where a module stays.
    seed : int
        Of the gates' private generator.
    distillation : callable, optional
        Makes the loss towards the dense model, used in both phases.
    inference : str, optional
        YAML of the dense model as one would publish it; makes the export.
    export_folder : str, optional
        Where the small model goes.
    milestones : list of float
        Sparsities below the target. When the schedule reaches one, a model of
        that size is exported beside the others (`export_0.3`), as it is then,
        not fine-tuned.
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
            self._choose = _learner(
                gates, controller, gate_optimizer, first_score
            )
            _leave_out("nothing is scored", "add", score_every=score_every)
        else:
            self._choose = _scorer(score, score_every)
            _leave_out(
                "a score leaves nothing to learn",
                "leave out",
                gates=gates,
                controller=controller,
                gate_optimizer=gate_optimizer,
                first_score=first_score,
            )
        self.layers = None  # a LayerPruning that has shortened the model
        self.pruner = None
        self.plan = None
        self.distiller = None
        self.is_cut = False
        self.cut_difference = None
        self._folder = None
        self._resume_point = ResumePoint()
        self._sampled_step = None

    def follow(self, layers):
        """Lets this run begin where layers have been left out.

        Arguments
        ---------
        layers : LayerPruning
            Which will shorten the model before this run begins.

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
        """Finds out where the run stands and loads the dense model.

        Arguments
        ---------
        brain : Brain
            With a checkpointer.
        epoch_counter : EpochCounter, optional
            Given when training is to follow.
        steps_per_epoch : int
            Optimizer steps of an epoch of that training.
        """
        if self._folder is not None:
            raise RuntimeError(
                "pruning: this process has begun the run already; start "
                "train.py again and it continues"
            )
        check_brain(brain, self.module, epoch_counter)
        # with --debug each process has a folder of its own
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
            self._begin_afresh(brain, folder, modules)
        load_snapshot(folder / "dense", modules)
        self._folder = folder
        self._counter = epoch_counter
        self._fresh = FreshStart(brain, epoch_counter)
        if self._distillation is not None:
            self.distiller = Distiller(
                self._distillation, brain.modules, self.module, self.declaration
            )

    def _begin_afresh(self, brain, folder, modules):
        # refuse now what would fail after hours
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
        """What must not change between a run and its continuation."""
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
        """Masks the model and turns the checkpointer to the prune phase.

        Arguments
        ---------
        brain : Brain
        """
        self.pruner = self._choose(
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
            What `compute_forward` takes; the masked and the cut model are
            compared on it.
        """
        self._counter.limit = self._total_epochs
        self._warn_if_short()
        brain.modules.eval()
        # the plan of one process, lest rounding on other machines differ
        plan = ddp_broadcast(self.pruner.plan(final=True))
        self.pruner.binarise_(plan)
        before = _outputs(brain, self.declaration, batch)
        self.pruner.cut_(plan)
        after = _outputs(brain, self.declaration, batch)
        difference = largest_difference(before, after)
        self.pruner = None
        _report_difference(difference)
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
        """Loads the cut model; also when a rerun finds it."""
        self.load_cut_(brain)
        self._fresh.restore_(brain, self._counter)

    def load_cut_(self, brain):
        """Gives the model the shapes and weights it had after the cut.

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
        """Rebuilds the shapes of a run that this process did not train."""
        if self._folder is not None:
            return
        self.begin_(brain)
        if self.is_cut:
            self.load_cut_(brain)
        else:
            self.start_pruning_(brain)

    def export(self, brain):
        """Writes the small model, if the YAML says where.

        Of several processes the main one writes and the others wait.

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
        structures = self.structures
        if self.layers is not None:
            structures, plan = self.layers.of_dense(structures, plan)
            facts = {**self.layers.facts, **facts}
        return export_model(
            folder,
            self.inference,
            brain,
            module=self.module,
            structures=structures,
            plan=plan,
            facts=facts,
        )

    def export_milestones(self, brain, batch):
        """After a step: exports the models that the schedule has come to.

        Arguments
        ---------
        brain : Brain
        batch : object
            What `compute_forward` takes; masked and cut models are compared
            on it.
        """
        if self.pruner is None:
            return
        passed = self.milestones.passed(*self.pruner.last_rise())
        if passed and self.distiller is not None:
            self.distiller.teacher.end_()  # it hears the copies too
        for sparsity in passed:
            plan = self.pruner.binarise_(self.pruner.plan(sparsity))
            run_on_main(self._export_copy, [brain, batch, plan, sparsity])

    def _export_copy(self, brain, batch, plan, sparsity):
        twin, declaration = twin_of(brain, self.declaration)
        twin.modules.eval()
        before = _outputs(twin, declaration, batch)
        detach_(declaration.root)
        cut_(declaration, plan)
        difference = largest_difference(
            before, _outputs(twin, declaration, batch)
        )
        _report_difference(difference)
        facts = {"milestone": sparsity, "cut_max_abs_diff": difference}
        self._export(self.milestones.folder(sparsity), twin, plan, facts)

    # -------------------------------------------------------------- steps

    def check_trainable(self, brain):
        """Refuses masked tensors that do not learn, in the prune phase.

        Arguments
        ---------
        brain : Brain
            With its optimizers.
        """
        if self.pruner is not None:
            check_trainable(brain, self.module, self.declaration)

    def check_gates_moved(self, brain):
        """Refuses, after an epoch, a recipe that bypasses the gates' step.

        Arguments
        ---------
        brain : Brain

        Raises
        ------
        RuntimeError
        """
        # the few batches of --debug may be less than one accumulation
        if self.pruner is None or self.pruner.step or brain.debug:
            return
        raise RuntimeError(
            "pruning: the gates never moved; the recipe's fit_batch must "
            "call self.optimizers_step()"
        )

    def begin_batch_(self):
        """Before a training forward: new gates once per optimizer step."""
        self._resume_point.begin_batch_()
        if self.pruner is not None and self._sampled_step != self.pruner.step:
            self.pruner.sample_()
            self._sampled_step = self.pruner.step
        if self.distiller is not None:
            self.distiller.teacher.begin_()

    def begin_stage_(self, stage):
        """Training samples gates, evaluation sees the plan of now."""
        self._sampled_step = None
        if self.distiller is not None:
            self.distiller.teacher.end_()
        if self.pruner is not None and stage != sb.Stage.TRAIN:
            self.pruner.binarise_()

    def add_distillation(self, loss):
        """The recipe's loss plus the named parts.

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
        """Lets the teacher follow the modules as they are wrapped now.

        Arguments
        ---------
        modules : dict
            Name -> module of the recipe.
        """
        if self.distiller is not None:
            self.distiller.teacher.listen_(modules)

    def veto_gates_(self):
        """The recipe's step is void, so the gates will not move either."""
        if self.pruner is not None:
            self.pruner.veto_step_()

    def step_gates_(self, scale):
        """With each step of the recipe's optimizers.

        Arguments
        ---------
        scale : float
            Of the GradScaler, when the loss was scaled.
        """
        if self.pruner is not None:
            self.pruner.step_(scale)

    def statistics(self):
        """Named numbers of the epoch, for the train logger.

        Returns
        -------
        dict
        """
        named = self.distiller.means() if self.distiller else {}
        if self.pruner is not None:
            named.update(self.pruner.statistics(self.pruner.plan()))
        return named


def _learner(gates, controller, gate_optimizer, first_score):
    """What makes a pruner that learns its gates."""
    gates = gates and GATES.make("pruning", "gates", gates)
    check_first_order(gates, first_score)
    if gate_optimizer is not None:  # what it refuses is heard now
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


def _scorer(score, every):
    """What makes a pruner that chooses by a score."""
    given = {} if every is None else {"every": every}
    return partial(ScorePruner, score=score, **given)


def _leave_out(why, what, **keys):
    """Refuses keys that would be of no effect."""
    given = [f"`{key}`" for key, value in keys.items() if value is not None]
    if given:
        raise ValueError(
            f"pruning: {why}; leave out {', '.join(given)}, or {what} `score`"
        )


def _outputs(brain, declaration, batch):
    """What the modules in the scope make of a batch."""
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


def _report_difference(difference):
    text = f"Masked and cut model differ by at most {difference:.1e}"
    if not difference <= 1e-5:  # also where it is no number
        logger.warning(f"{text}: more than rounding")
    else:
        logger.info(text)
