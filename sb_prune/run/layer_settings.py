"""What the `layer_pruning` block of a YAML says, checked before anything."""

from functools import partial

from sb_prune.depth.representations import mean_over_time
from sb_prune.run.checks import ENTRIES
from sb_prune.run.publication import DENSE_YAML, NEW_FOLDER, Publication
from sb_prune.run.record import identity_of
from sb_prune.run.settings import DISTILLATION, refuse_unused
from sb_prune.run.start import META_KEY, START, Start
from sb_prune.support.values import (
    Function,
    Kind,
    OneOrList,
    Text,
    Whole,
    checked,
)


class Criterion(Kind):
    """Accepts a criterion, which the YAML makes with `!new:`."""

    wanted = "!new: and a criterion, e.g. !new:sb_prune.depth.ConvexityPeak"

    def fits(self, value):
        """Says whether it is an object with the members of a criterion."""
        is_made = not isinstance(value, (type, partial))
        says = hasattr(value, "needs_states") and hasattr(value, "needs_labels")
        return is_made and says and callable(value)


class LayerSettings:
    """What the `layer_pruning` block of a recipe's YAML says.

    The keys of the block are the arguments below.

    Arguments
    ---------
    module : str or list of str
        Key of the recipe's `modules` that contains the layers.
    structures : callable
        Module -> Declaration with `layers`, e.g. `wav2vec2_structures`.
    criterion : object
        Chooses the layers, e.g. a `sb_prune.depth.ConvexityPeak`.
    labels : str or list of str
        Keys of the training data with labels. The criterion chooses by the
        first key; the scores for the others are only reported. Criteria that
        compare no classes need none.
    sample : int
        Number of training utterances to use, and the largest number of
        segments of them.
    pooling : callable
        Frames (T, d) -> (d,), e.g. `mean_over_time`.
    seed : int
        Seed of the sampling.
    start_from : str, optional
        Save folder of a dense run, or one checkpoint in it, or an export of
        sb_prune. By default the modules are as the recipe made them.
    start_min_key, start_max_key : str, optional
        Chooses among the checkpoints of a dense run, like `min_key` or
        `max_key` when the dense recipe evaluates. By default the newest.
    distillation : callable, optional
        Class of the distillation loss, e.g. `LayerwiseDistillation`, with
        which the model learns after layers were left out. Layers that stay are
        compared with the same layers of the teacher.
    teacher : str, optional
        Save folder of a dense run of this recipe, or one checkpoint in it, or
        an export, from which the model learns. By default it is the model at
        the start of this run, with all of its layers.
    inference : str, optional
        YAML of the dense model, as one would publish it. The export is made
        from it.
    export_folder : str, optional
        Folder of the export.
    """

    @checked
    def __init__(
        self,
        module: ENTRIES,
        structures: Function("sb_prune.wav2vec2_structures"),
        criterion: Criterion(),
        labels: OneOrList(Text("a key of the training data")) = (),
        sample: Whole(1) = 2000,
        pooling: Function("sb_prune.depth.mean_over_time") = mean_over_time,
        seed: Whole(0) = 0,
        start_from: START = None,
        start_min_key: META_KEY = None,
        start_max_key: META_KEY = None,
        distillation: DISTILLATION = None,
        teacher: START = None,
        inference: DENSE_YAML = None,
        export_folder: NEW_FOLDER = None,
    ):
        labels = [labels] if isinstance(labels, str) else list(labels)
        self.identity = identity_of(
            locals(), without=["inference", "export_folder"]
        )
        self.start = Start(
            "layer_pruning", start_from, start_min_key, start_max_key
        )
        if criterion.needs_labels and not labels:
            raise ValueError(
                f"layer_pruning: {type(criterion).__name__} compares classes; "
                "write `labels`: a key of the training data, e.g. spk_id"
            )
        if distillation is None:
            refuse_unused(
                "layer_pruning",
                "nothing is learned from one",
                "add",
                "distillation",
                teacher=teacher,
            )
        self.publication = Publication(
            "layer_pruning", inference, export_folder
        )
        self.module = module
        self.structures = structures
        self.criterion = criterion
        self.labels = labels
        self.sample = sample
        self.pooling = pooling
        self.seed = seed
        self.distillation = distillation and DISTILLATION.make(
            "layer_pruning", "distillation", distillation
        )
        self.teacher = teacher

    @property
    def teaches_itself(self):
        """Whether the model learns from itself, as it is at the start."""
        return self.distillation is not None and self.teacher is None
