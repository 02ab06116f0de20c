"""The phases of a `pruning` block: prune (the cut is its end), fine-tune."""

from functools import partial

import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_broadcast
from speechbrain.utils.logger import get_logger

from sb_prune.cut.surgery import cut_
from sb_prune.declare.plan import Plan
from sb_prune.distillation import Distiller, stored_weights
from sb_prune.run.checks import check_readers, declared, saved_modules
from sb_prune.run.comparison import difference_around
from sb_prune.run.phases import FreshStart, Phase
from sb_prune.run.record import check_units
from sb_prune.run.resume import RESUME_POINT, ResumePoint, make_resumable_
from sb_prune.run.snapshots import (
    find_snapshot,
    load_snapshot,
    read_meta,
    save_snapshot,
)
from sb_prune.run.steps import PruneSteps, Steps
from sb_prune.support.parallel import broadcast_
from sb_prune.support.random_state import generators_untouched

logger = get_logger(__name__)


class Prune(Phase):
    """Gates learn which units stay; then the model is cut down to these.

    Arguments
    ---------
    settings : PruningSettings
    """

    block = "pruning"
    trains = True

    def __init__(self, settings):
        self._settings = settings
        self._limits = None, None

    def identity(self):
        """Settings that must not change when the run is continued."""
        return self._settings.identity

    def prepare_(self, run, anew):
        """Declares what can be pruned, and keeps the model as it is now."""
        settings, brain = self._settings, run.brain
        run.declaration = declared(settings.structures, run.edited.root)
        if not anew:
            check_units(run.folder, run.record, run.declaration)
        run.original = run.edited.original(settings.structures)
        check_readers(brain.modules, settings.module, run.declaration)
        if run.counter is not None:
            self._check_epochs(run.counter.limit)
        if anew:
            self._check_steps(run)
        modules = saved_modules(brain)
        # refuse now what would otherwise fail after hours
        if anew:
            groups = settings.budget.groups(
                run.declaration, settings.min_keep, run.original
            )
            settings.milestones.check_above_gone(groups)
        settings.publication.check(
            brain, run.edited, run.folder, settings.milestones.folders
        )
        if not run.has_start:
            save_snapshot(run.folder / "dense", modules, {})
        load_snapshot(run.folder / "dense", modules)
        run.fresh = FreshStart(brain, run.counter)
        if settings.distillation is not None and run.counter is not None:
            run.distiller = self._distiller(run, modules)

    def _distiller(self, run, saved):
        """Its teacher is the model at the start, or one that the YAML names."""
        weights = {}  # nobody else changes another model
        if run.teacher is None:
            start = find_snapshot(run.folder / "dense")
            weights = stored_weights(start, saved)
        return Distiller(
            self._settings.distillation,
            run.brain.modules,
            self._settings.module,
            run.declaration,
            teacher=run.teacher,
            weights=weights,
        )

    def _check_epochs(self, epochs):
        """Refuses so few epochs that a phase would have none."""
        wanted = self._settings.prune_epochs
        if not 0 < wanted < epochs:
            raise ValueError(
                f"prune_epochs: {wanted} must be at least 1 and below "
                f"number_of_epochs ({epochs}), which counts both phases"
            )

    def _check_steps(self, run):
        """Refuses a prune phase too short for what is to happen in it."""
        wanted, brain = self._settings.prune_epochs, run.brain
        per_epoch = run.data.steps_per_epoch(brain)
        steps, longer = per_epoch * wanted, "prune_epochs"
        limit = brain.optimizer_step_limit  # SpeechBrain's, of each phase
        if limit is not None and limit < steps:
            steps, longer = limit, "optimizer_step_limit"
        ends = self._settings.prune_steps
        if ends is not None and not brain.debug:
            begun = per_epoch * (wanted - 1) if wanted > 1 else 0
            if not begun < ends <= steps:
                raise ValueError(
                    f"prune_steps: {ends} must lie in the last epoch of the "
                    f"prune phase, whose {wanted} have {steps} optimizer "
                    "steps; write another number, or other prune_epochs"
                )
            steps, longer = ends, "prune_steps"
        rise = self._settings.schedule.steps
        if rise > steps and not brain.debug:
            raise ValueError(
                f"schedule_steps: {rise} is longer than the prune phase "
                f"({steps} optimizer steps); lower it or "
                f"raise {longer}"
            )

    def begin_(self, run):
        """Masks the model, and trains it for the first epochs."""
        self.resume_(run)
        brain, ends = run.brain, self._settings.prune_steps
        self._limits = run.counter.limit, brain.optimizer_step_limit
        run.counter.limit = self._settings.prune_epochs
        if ends is not None:
            brain.optimizer_step_limit = ends
        run.fresh.hold_stopping_(run.counter)

    def resume_(self, run):
        """Masks the model; the recipe loads its checkpoint."""
        pruner = self._settings.make_pruner(
            run.declaration, original=run.original
        )
        pruner.attach_()
        point = _use_folder(run, "prune", pruner)
        run.steps = PruneSteps(run, self._settings, pruner, point)

    def end_(self, run):
        """Cuts the model, and saves it."""
        pruner, brain = run.steps.pruner, run.brain
        run.counter.limit, brain.optimizer_step_limit = self._limits
        _warn_if_short(pruner)
        run.data.begin_epoch_()
        run.steps.begin_stage_(sb.Stage.VALID)  # what is heard now is not kept
        brain.modules.eval()
        # all take the plan of one process, as their rounding may differ
        plan = ddp_broadcast(pruner.plan(final=True))
        pruner.binarise_(plan)
        plan = self._refitted_(run, pruner, plan)
        run.edited.remember_dense_()
        difference = difference_around(
            lambda: pruner.cut_(plan),
            brain,
            run.declaration,
            run.data.a_batch(),
        )
        run.steps = Steps()
        brain.optimizer_step = 0
        save_snapshot(
            run.folder / "cut",
            _cut_recoverables(run),
            {"plan": plan.to_dict(), "difference": difference},
        )
        self._set_cut_(run, plan)

    def _refitted_(self, run, pruner, plan):
        """Fits the weights that stay, if the block asks for it."""
        refit = self._settings.refit
        if refit is None:
            return plan
        forwards = [
            partial(_evaluated, run.brain, batch)
            for batch in run.data.utterances(refit.utterances, pruner.seed)
        ]
        logger.info(f"Refitting what is kept, to {len(forwards)} utterances")
        plan, weights = refit.refit_(
            run.declaration, plan, pruner.binarise_, forwards
        )
        for weight in weights:
            broadcast_(weight.data)
        plan = ddp_broadcast(plan)
        pruner.binarise_(plan)
        return plan

    def load_cut_(self, run):
        """Gives the model the shapes and weights that it had after the cut.

        Arguments
        ---------
        run : Run
        """
        meta = read_meta(run.folder / "cut")
        if run.plan is None:
            plan = Plan.from_dict(meta["plan"])
            run.edited.remember_dense_()
            cut_(run.declaration, plan)
            self._set_cut_(run, plan)
        run.facts["cut_max_abs_diff"] = meta["difference"]
        load_snapshot(run.folder / "cut", _cut_recoverables(run))

    def _set_cut_(self, run, plan):
        run.plan = plan
        run.edited.record_(self._settings.structures, plan)


class FineTune(Phase):
    """The cut model learns to do with what is left.

    Arguments
    ---------
    prune : Prune
        The phase before.
    """

    trains = True

    def __init__(self, prune):
        self._prune = prune

    def begin_(self, run):
        """Trains the cut model for the rest of the epochs."""
        self.resume_(run)
        run.fresh.restore_(run.brain, run.counter)
        if run.brain.debug:  # run a few epochs of this phase, too
            run.brain.debug_epochs += run.counter.current

    def resume_(self, run):
        """Cuts the model; the recipe loads its checkpoint."""
        self._prune.load_cut_(run)
        point = _use_folder(run, "finetune")
        run.steps = Steps(
            point, run.distiller, lambda: _surviving(run.declaration, run.plan)
        )


@torch.no_grad()
def _evaluated(brain, batch):
    with generators_untouched():
        brain.compute_forward(batch, sb.Stage.VALID)


def _surviving(declaration, plan):
    """For each layer, whether a plan keeps it."""
    kept = plan.keep
    return [
        name not in kept or bool(kept[name].all())
        for name in declaration.layers
    ]


def _use_folder(run, name, pruner=None):
    """Lets the recipe's checkpointer use a folder of the run."""
    run.brain.checkpointer.checkpoints_dir = run.folder / name
    trains = run.counter is not None
    return make_resumable_(run.brain.checkpointer, pruner, trains)


def _cut_recoverables(run):
    objects = {
        **saved_modules(run.brain),
        "brain": run.brain,
        RESUME_POINT: ResumePoint(),
    }
    for name, saved in run.brain.checkpointer.recoverables.items():
        if saved is run.counter:
            objects[name] = saved
    return objects


def _warn_if_short(pruner):
    done, wanted = pruner.step, pruner.schedule.steps
    if done < wanted:
        logger.warning(
            f"The prune phase ended at step {done} of schedule_steps: "
            f"{wanted}; the cut goes to the target at once"
        )
