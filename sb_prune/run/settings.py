"""What the `pruning` block of a YAML says, checked before anything runs."""

from functools import partial

import torch
from speechbrain.utils.logger import get_logger

from sb_prune.declare.joined import joined_structures
from sb_prune.learn.budgets import SPARSITIES, ParameterBudget
from sb_prune.learn.pruner import Pruner, check_first_order
from sb_prune.learn.schedules import LinearSchedule
from sb_prune.learn.scores import ScorePruner
from sb_prune.run.checks import ENTRIES
from sb_prune.run.milestones import Milestones
from sb_prune.run.publication import DENSE_YAML, NEW_FOLDER, Publication
from sb_prune.run.record import identity_of
from sb_prune.run.start import META_KEY, START, Start
from sb_prune.support.values import (
    Factory,
    Function,
    ListOf,
    Number,
    OneOrList,
    Whole,
    YesNo,
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
REFIT = Factory("sb_prune.LeastSquares", ["refit_"])


class PruningSettings:
    """What the `pruning` block of a recipe's YAML says.

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
        Sparsity to reach, in (0, 1), or a dict: module prefix -> sparsity. It
        counts from the original dense model, before any earlier pruning.
    prune_epochs : int
        Number of epochs of the prune phase. The fine-tune phase gets the rest
        of the limit of the epoch counter.
    schedule_steps : int
        Number of optimizer steps over which the sparsity rises.
    prune_steps : int, optional
        Optimizer steps after which the prune phase ends, in the last of its
        epochs. By default it ends with that epoch.
    hold_weights : bool
        Whether weights stay as they are, and nothing is distilled, until the
        schedule rises. What units are worth is then measured on the model as
        it is, by the loss of the recipe alone.
    start_from : str, optional
        Save folder of a dense run, or one checkpoint in it, or an export of
        sb_prune, which is pruned further. By default the modules are as the
        recipe made them.
    start_min_key, start_max_key : str, optional
        Chooses among the checkpoints of a dense run, like `min_key` or
        `max_key` when the dense recipe evaluates. By default the newest.
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
    refit : callable, optional
        Class that fits the weights that stay, just before the cut, to what
        they computed together with those that go, e.g. `LeastSquares`.
    distillation : callable, optional
        Class of the distillation loss, which is used in both phases, e.g.
        `LayerwiseDistillation`.
    teacher : str, optional
        Save folder of a dense run of this recipe, or one checkpoint in it, or
        an export, from which the model learns. By default it is the model at
        the start of this run.
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
        prune_steps: Whole(1) = None,
        hold_weights: YesNo() = False,
        start_from: START = None,
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
        refit: REFIT = None,
        distillation: DISTILLATION = None,
        teacher: START = None,
        inference: DENSE_YAML = None,
        export_folder: NEW_FOLDER = None,
        milestones: ListOf(Number(above=0, below=1), example="[0.3, 0.5]") = (),
    ):
        self.identity = identity_of(
            locals(), without=["inference", "export_folder", "milestones"]
        )
        self.start = Start("pruning", start_from, start_min_key, start_max_key)
        self.publication = Publication("pruning", inference, export_folder)
        folder = self.publication.folder  # without a slash at its end
        self.milestones = Milestones(milestones, target, folder)
        if isinstance(structures, (list, tuple)):
            structures = partial(joined_structures, parts=structures)
        self.module = module
        self.structures = structures
        self.prune_epochs = prune_epochs
        self.prune_steps = prune_steps
        self.hold_weights = hold_weights
        self.min_keep = min_keep
        self.budget = BUDGET.make("pruning", "budget", budget, target=target)
        self.schedule = SCHEDULE.make(
            "pruning", "schedule", schedule, steps=schedule_steps
        )
        if milestones and self.schedule.fraction(0) > 0:
            raise ValueError(
                "pruning: milestones: the schedule does not pass them, as it "
                "begins above 0; leave them out, or write another schedule"
            )
        if hold_weights and self.schedule.fraction(0) > 0:
            raise ValueError(
                "pruning: hold_weights: nothing is measured, as the schedule "
                "begins above 0; leave it out, or write another schedule"
            )
        self.refit = refit and REFIT.make("pruning", "refit", refit)
        if refit and _learns_masked(self.schedule, prune_steps):
            logger.warning(
                "pruning: refit: weights learn to do without what is masked, "
                "and a refit takes that back; remove all at once (prune_steps "
                "that end before the schedule rises, as in whisper_score), or "
                "leave it out"
            )
        self.distillation = distillation and DISTILLATION.make(
            "pruning", "distillation", distillation
        )
        self.teacher = teacher
        if distillation is None:
            refuse_unused(
                "pruning",
                "nothing is learned from one",
                "add",
                "distillation",
                teacher=teacher,
            )
        if score is None:
            make = _gate_pruner(gates, controller, gate_optimizer, first_score)
            refuse_unused(
                "pruning",
                "nothing is scored",
                "add",
                "score",
                score_every=score_every,
            )
        else:
            make = _score_pruner(score, score_every)
            refuse_unused(
                "pruning",
                "a score leaves nothing to learn",
                "leave out",
                "score",
                gates=gates,
                controller=controller,
                gate_optimizer=gate_optimizer,
                first_score=first_score,
            )
        self.make_pruner = partial(
            make,
            budget=self.budget,
            schedule=self.schedule,
            min_keep=min_keep,
            seed=seed,
        )


def _learns_masked(schedule, prune_steps):
    """Whether a step of the prune phase trains with units masked."""
    return prune_steps is None or schedule.fraction(prune_steps - 1) > 0


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


def refuse_unused(block, why, what, other, **keys):
    """Refuses keys that would have no effect.

    Arguments
    ---------
    block : str
        Name of the block in the YAML.
    why : str
        Why they have none.
    what : str
        What to do with the other key: "add" or "leave out".
    other : str
        The other key.
    keys : object
        Key -> value, None if it is not written.

    Raises
    ------
    ValueError
        If one of the keys is written.
    """
    given = [f"`{key}`" for key, value in keys.items() if value is not None]
    if given:
        raise ValueError(
            f"{block}: {why}; leave out {', '.join(given)}, or {what} `{other}`"
        )


def check_together(pruning, layers):
    """Refuses two blocks of a YAML that do not fit together.

    Arguments
    ---------
    pruning : PruningSettings
    layers : LayerSettings

    Raises
    ------
    ValueError
        Naming the key and what to write.
    """
    if layers.module != pruning.module:
        raise ValueError(
            f"layer_pruning: module: {layers.module!r}; write that of "
            f"pruning, {pruning.module!r}"
        )
    if pruning.start.folder is not None:
        raise ValueError(
            "pruning: start_from: layers are left out before; write it, "
            "and its keys, in the block layer_pruning"
        )
    if layers.publication.folder is not None:
        raise ValueError(
            "layer_pruning: export_folder: pruning exports what both have "
            "left; write it, and inference, in that block alone"
        )
    if layers.distillation is not None:
        raise ValueError(
            "layer_pruning: distillation: pruning trains what both have "
            "left; write it, and teacher, in that block alone"
        )
