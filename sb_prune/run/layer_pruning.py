"""Layer pruning: a criterion chooses whole layers to remove before training.

The folder of the recipe's checkpointer then holds

    layers.json    which layers stay, and their scores
    layers.png     a picture of the scores, if there are any

Beside them are the recipe's own checkpoints of the smaller model, or, if there
is a `pruning` block too, the folders of that run.
"""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from speechbrain.utils.distributed import ddp_broadcast, run_on_main
from speechbrain.utils.logger import get_logger

from sb_prune.architectures.whole_layers import (
    layer_plan,
    layer_structures,
    stack_of,
)
from sb_prune.cut.edits import Cut, folded
from sb_prune.cut.surgery import cut_
from sb_prune.declare.roots import root_of
from sb_prune.depth.representations import layer_states, mean_over_time
from sb_prune.export.document import prepare_document
from sb_prune.export.folder import export_model
from sb_prune.report.pictures import draw_layers
from sb_prune.run.checks import (
    DENSE_RUN,
    DENSE_YAML,
    ENTRIES,
    META_KEY,
    NEW_FOLDER,
    check_brain,
    check_export,
    check_place,
    check_start,
    declared,
    saved_modules,
)
from sb_prune.run.phases import has_trained
from sb_prune.run.resume import make_resumable_
from sb_prune.run.snapshots import load_dense
from sb_prune.support.disk import rename_, set_torn_aside
from sb_prune.support.values import (
    Function,
    Kind,
    OneOrList,
    Text,
    Whole,
    checked,
)

logger = get_logger(__name__)

CHOICE, PICTURE = "layers.json", "layers.png"


class Criterion(Kind):
    """Accepts a criterion, which the YAML makes with `!new:`."""

    wanted = "!new: and a criterion, e.g. !new:sb_prune.depth.ConvexityPeak"

    def fits(self, value):
        """Says whether it is an object with the members of a criterion."""
        is_made = not isinstance(value, (type, partial))
        says = hasattr(value, "needs_states") and hasattr(value, "needs_labels")
        return is_made and says and callable(value)


class LayerPruning:
    """What the `layer_pruning` block of a recipe's YAML describes.

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
        Save folder of a dense run, or one checkpoint in it. By default the
        modules are as the recipe made them.
    start_min_key, start_max_key : str, optional
        Chooses among its checkpoints, like `min_key` or `max_key` when the
        dense recipe evaluates. By default the newest is taken.
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
        start_from: DENSE_RUN = None,
        start_min_key: META_KEY = None,
        start_max_key: META_KEY = None,
        inference: DENSE_YAML = None,
        export_folder: NEW_FOLDER = None,
    ):
        check_start("layer_pruning", start_from, start_min_key, start_max_key)
        self.labels = [labels] if isinstance(labels, str) else list(labels)
        if criterion.needs_labels and not self.labels:
            raise ValueError(
                f"layer_pruning: {type(criterion).__name__} compares classes; "
                "write `labels`: a key of the training data, e.g. spk_id"
            )
        check_export("layer_pruning", inference, export_folder)
        self.module = module
        self.structures = structures
        self.criterion = criterion
        self.inference = inference
        self.export_folder = export_folder
        self.plan = None
        self._pooling = pooling
        self._sample, self._seed = sample, seed
        self._start = {
            "folder": start_from,
            "min_key": start_min_key,
            "max_key": start_max_key,
        }
        self._facts = {}
        self.resume_point = None

    @property
    def is_cut(self):
        """Whether the layers have been removed."""
        return self.plan is not None

    # -------------------------------------------------------------- choosing

    def cut_(self, brain, dataset=None, inside=None):
        """Removes layers: those of an earlier choice on disk, or of a new one.

        Arguments
        ---------
        brain : Brain
            With a checkpointer.
        dataset : DynamicItemDataset, optional
            The training data of the recipe. Without them the choice must have
            been made by an earlier run.
        inside : callable, optional
            The `structures` of a `pruning` block that follows.

        Raises
        ------
        ValueError
            If there is neither a choice nor data, or the choice on disk was
            made with other settings.
        """
        if self.plan is not None:
            return
        check_brain(brain, self.module, block="layer_pruning")
        root = root_of(brain.modules, self.module)
        declared(self.structures, root, block="layer_pruning")
        declaration = layer_structures(root, self.structures)
        _check_stack(declaration)
        folder = Path(brain.checkpointer.checkpoints_dir)
        choice = ddp_broadcast(_read(folder / CHOICE))
        if choice is not None and dataset is not None and inside is None:
            run_on_main(set_torn_aside, [folder])
        trained = ddp_broadcast(_has_trained(folder, phases=inside is not None))
        if not trained:
            self._load_start(brain)
            if dataset is not None:  # nothing depends on the old choice yet
                choice = None
        if choice is not None:
            self._check_same(folder, choice, declaration.layers)
        else:
            _check_fresh(folder, dataset, trained)
            if self.inference is not None:
                check_place(self.export_folder, folder)
                prepare_document(
                    self.export_folder, self.inference, brain, self.module
                )
            # all take the choice of one process, as rounding may differ
            choice = ddp_broadcast(self._choose(brain, declaration, dataset))
            run_on_main(_write, [folder, choice])
        plan = layer_plan(declaration, choice["keep"])
        cut_(declaration, plan)
        self.plan = plan
        self._facts = {
            "layers kept": f"{sum(choice['keep'])} of {len(choice['keep'])}",
            "criterion": choice["criterion"],
        }
        logger.info(f"Layers kept: {choice['keep']} ({folder / CHOICE})")

    def _load_start(self, brain):
        start = dict(self._start)
        folder = start.pop("folder")
        if folder is not None:
            source = load_dense(folder, saved_modules(brain), **start)
            logger.info(f"The layers are those of {source}")

    def _choose(self, brain, declaration, dataset):
        """Chooses layers and returns the content of `layers.json`."""
        layers = [declaration.root.get_submodule(n) for n in declaration.layers]
        curves, choice = {}, None
        if self.criterion.needs_states:
            found = layer_states(
                brain,
                layers,
                dataset,
                self.labels,
                self._sample,
                self._pooling,
                self._seed,
            )
            for key, (states, labels) in found.items():
                if self.criterion.needs_labels:
                    _warn_about_lone(key, labels)
                curves[key] = self.criterion(states, labels)
            choice = next(iter(curves.values()))
            _warn_about_flat(choice)
        else:
            choice = self.criterion([None] * (len(layers) + 1), None)
        return {
            "settings": self._settings(),
            "criterion": type(self.criterion).__name__,
            "layers": list(declaration.layers),
            "keep": [bool(kept) for kept in choice.keep],
            "curves": {
                key: {
                    "points": len(found[key][1]),
                    "scores": c.scores,
                    "errors": c.errors,
                    "depth": c.depth,
                }
                for key, c in curves.items()
            },
        }

    def _settings(self):
        """Settings that must not change when a run is continued."""
        return {
            "criterion": described(self.criterion),
            "labels": self.labels,
            "sample": self._sample,
            "pooling": described(self._pooling),
            "seed": self._seed,
            "start_from": described(self._start),
        }

    def _check_same(self, folder, choice, layers):
        made_with = {**choice["settings"], "layers": choice["layers"]}
        for key, value in {**self._settings(), "layers": [*layers]}.items():
            if made_with.get(key) != value:
                raise ValueError(
                    f"layer_pruning: {folder} holds a choice made with "
                    f"{key}: {made_with.get(key)}, not {value}; write another "
                    "output_folder, or the old value"
                )

    # --------------------------------------------------------------- running

    def make_resumable_(self, brain):
        """Makes a run without a `pruning` block continue after a kill.

        Arguments
        ---------
        brain : Brain
        """
        self.resume_point = make_resumable_(brain.checkpointer)

    def begin_batch_(self):
        """To be called in every batch of training; see `ResumePoint`."""
        if self.resume_point is not None:
            self.resume_point.begin_batch_()

    # ---------------------------------------------------------------- export

    @property
    def edits(self):
        """List with the edit that removed the layers."""
        structures = partial(layer_structures, structures=self.structures)
        return [Cut(structures=structures, plan=self.plan.to_dict())]

    @property
    def facts(self):
        """Figures for the model card of an export."""
        return dict(self._facts)

    def export(self, brain):
        """Exports the shorter model, if the YAML names a folder for it.

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
        root = root_of(brain.modules, self.module)
        return run_on_main(
            export_model,
            kwargs={
                "folder": self.export_folder,
                "inference": self.inference,
                "brain": brain,
                "module": self.module,
                "edits": folded(self.edits, root),
                "facts": self.facts,
            },
        )


def described(value):
    """Describes a value of a YAML, equally in every process and run.

    Memory addresses, for example, do not appear in the description.

    Arguments
    ---------
    value : object

    Returns
    -------
    str

    Example
    -------
    >>> described(partial(max, key=abs))
    'max(key: abs)'
    """
    if isinstance(value, partial):
        return f"{described(value.func)}({described(value.keywords)})"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {described(v)}" for k, v in value.items())
    if hasattr(value, "__name__"):
        return value.__name__
    if hasattr(value, "__dict__"):
        return f"{type(value).__name__}({described(vars(value))})"
    return str(value)


def _check_stack(declaration):
    stacks = {stack_of(name): None for name in declaration.layers}
    if len(stacks) > 1:
        raise ValueError(
            f"structures: declare layers of {list(stacks)}; one depth is "
            "chosen: write a function for the encoder alone, e.g. "
            "conformer_structures"
        )


def _has_trained(folder, phases):
    return has_trained(folder) if phases else any(folder.glob("CKPT*"))


def _check_fresh(folder, dataset, trained):
    """Refuses to choose layers without data, or after training has begun."""
    if dataset is None:
        raise ValueError(
            f"{folder} holds no choice of layers; train first (run without "
            "--test_only)"
        )
    if trained:
        raise ValueError(
            f"{folder} holds checkpoints, of another run, as there is no "
            f"{CHOICE}; write another output_folder (and start_from, to begin "
            "with those)"
        )


def _warn_about_lone(key, labels):
    """Warns if many points are alone in their class and so in no pair."""
    lone = sum(count == 1 for count in Counter(labels).values())
    if 3 * lone > len(labels):
        logger.warning(
            f"labels: {lone} of {len(labels)} in the sample are alone in their "
            f"class of {key} and say nothing; a larger `sample`, or labels "
            "that more of the data share, say more"
        )


def _warn_about_flat(choice):
    """Warns if the scores of all layers are within their standard errors.

    The errors of layers are correlated, so this is a hint and not a test.
    """
    if not choice.errors:
        return
    scores, errors = np.array([choice.scores[1:], choice.errors[1:]])
    error = np.maximum(errors, errors[scores.argmax()])
    if (scores.max() - scores <= error).all():
        logger.warning(
            "layer_pruning: all layers score alike, within standard errors: "
            f"the depth {choice.depth} says little; look at {PICTURE}, try "
            "another `criterion`, or more and other data"
        )


def _read(path):
    if not path.is_file():
        return None
    try:
        choice = json.loads(path.read_text(encoding="utf-8"))
        choice["settings"].items(), choice["criterion"]
        if len(choice["keep"]) != len(choice["layers"]):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged; delete it, and all that was trained beside "
            "it, to choose again"
        ) from error
    return choice


def _write(folder, choice):
    """Writes the picture, and after it the choice, by which a run is known."""
    folder.mkdir(parents=True, exist_ok=True)
    if choice["curves"]:
        draw_layers(folder / PICTURE, choice)
    aside = folder / f"{CHOICE}.incomplete"
    aside.write_text(json.dumps(choice, indent=1) + "\n", encoding="utf-8")
    rename_(aside, folder / CHOICE)
