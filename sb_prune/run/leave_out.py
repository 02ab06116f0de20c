"""The phase of a `layer_pruning` block: whole layers are left out at the start.

Beside the record of the run lie then

    layers.json    which layers stay, and their scores
    layers.png     a picture of the scores, if there are any
"""

import json
from collections import Counter
from dataclasses import replace
from itertools import compress

import numpy as np
from speechbrain.utils.distributed import ddp_broadcast, run_on_main
from speechbrain.utils.logger import get_logger

from sb_prune.architectures.whole_layers import layer_plan, stack_of
from sb_prune.depth.representations import layer_states
from sb_prune.distillation import Distiller
from sb_prune.report.pictures import draw_layers
from sb_prune.run.checks import declared
from sb_prune.run.edited import whole_layers
from sb_prune.run.phases import Phase
from sb_prune.support.disk import naming_what_fails, whole_file

logger = get_logger(__name__)

CHOICE, PICTURE = "layers.json", "layers.png"


class LeaveOut(Phase):
    """A criterion chooses whole layers, which are removed before training.

    Arguments
    ---------
    settings : LayerSettings
    """

    block = "layer_pruning"

    def __init__(self, settings):
        self._settings = settings
        self._structures = whole_layers(settings.structures)

    def identity(self):
        """Settings that must not change when the run is continued."""
        return self._settings.identity

    def prepare_(self, run, anew):
        """Removes layers: those of an earlier choice on disk, or of a new one.

        Raises
        ------
        ValueError
            If the criterion cannot choose, the choice on disk is of other
            layers, or there is a teacher and nothing that can learn of it.
        """
        settings, edited = self._settings, run.edited
        declared(settings.structures, edited.root, block=self.block)
        declaration = self._structures(edited.root)
        _check_stack(declaration)
        settings.publication.check(run.brain, edited, run.folder)
        if anew:
            # all take the choice of one process, as rounding may differ
            choice = ddp_broadcast(
                self._choose(run.brain, declaration, run.data.dataset)
            )
            run_on_main(_write, [run.folder, choice])
        else:
            choice = ddp_broadcast(_read(run.folder / CHOICE))
            _check_layers(run.folder, choice, declaration.layers)
        plan = layer_plan(declaration, choice["keep"])
        if settings.distillation is not None and run.counter is not None:
            _check_learns(settings, run.brain.modules, declaration)
            run.distiller = self._distiller(run, declaration, choice["keep"])
        edited.cut_(declaration, self._structures, plan)
        run.facts["layers kept"] = _kept(choice["keep"])
        run.facts["criterion"] = choice["criterion"]
        logger.info(f"Layers kept: {choice['keep']} ({run.folder / CHOICE})")

    def _distiller(self, run, declaration, keep):
        """Its teacher has all layers; those that stay are compared."""
        stay = tuple(compress(declaration.layers, keep))
        return Distiller(
            self._settings.distillation,
            run.brain.modules,
            self._settings.module,
            replace(declaration, layers=stay),
            teacher=run.teacher,
            # nobody else changes another model; this one trains
            weights=None if run.teacher is None else {},
        )

    def _choose(self, brain, declaration, dataset):
        """Chooses layers and returns the content of `layers.json`."""
        layers = [declaration.root.get_submodule(n) for n in declaration.layers]
        curves, choice = {}, None
        if self._settings.criterion.needs_states:
            found = layer_states(
                brain,
                layers,
                dataset,
                self._settings.labels,
                self._settings.sample,
                self._settings.pooling,
                self._settings.seed,
            )
            for key, (states, labels) in found.items():
                if self._settings.criterion.needs_labels:
                    _warn_about_lone(key, labels)
                try:
                    curves[key] = self._settings.criterion(states, labels)
                except ValueError as error:
                    raise ValueError(f"{error} (labels: {key})") from error
            choice = next(iter(curves.values()))
            _warn_about_flat(choice)
        else:
            choice = self._settings.criterion([None] * (len(layers) + 1), None)
        return {
            "criterion": type(self._settings.criterion).__name__,
            "layers": list(declaration.layers),
            "keep": [bool(kept) for kept in choice.keep],
            "curves": {
                key: {
                    "points": len(found[key][1]),
                    "scores": [*map(float, c.scores)],
                    "errors": [*map(float, c.errors)],
                    "depth": c.depth,
                }
                for key, c in curves.items()
            },
        }


def _kept(keep):
    return f"{sum(keep)} of {len(keep)}"


def _check_stack(declaration):
    stacks = {stack_of(name): None for name in declaration.layers}
    if len(stacks) > 1:
        raise ValueError(
            f"structures: declare layers of {list(stacks)}; one depth is "
            "chosen: write a function for the encoder alone, e.g. "
            "conformer_structures"
        )


def _check_learns(settings, modules, declaration):
    """Refuses a teacher of what is frozen; warns if the layers alone are."""
    layers = map(declaration.root.get_submodule, declaration.layers)
    if _trains(layers):
        return
    own = settings.module
    outputs = getattr(settings.distillation, "outputs", ())
    compared = {*([own] if isinstance(own, str) else own), *outputs}
    remedy = "freeze: False, as well as freeze_encoder or freeze_decoder"
    if not _trains(modules[name] for name in compared if name in modules):
        raise ValueError(
            f"modules: {sorted(compared)} are frozen, so nothing learns of "
            f"the teacher; let them train ({remedy}), or leave out "
            "`distillation` under `layer_pruning`"
        )
    logger.warning(
        f"modules: {settings.module}: all layers are frozen, so those that "
        f"stay learn nothing of the teacher; let them train ({remedy})"
    )


def _trains(modules):
    return any(p.requires_grad for m in modules for p in m.parameters())


def _check_layers(folder, choice, layers):
    """Refuses the choice of another model."""
    if choice["layers"] != [*layers]:
        raise ValueError(
            f"output_folder: {folder} holds a run with layers "
            f"{choice['layers']}, not {[*layers]}; write another "
            "output_folder, or the old values"
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
    try:
        choice = json.loads(path.read_text(encoding="utf-8"))
        choice["criterion"]  # noqa: B018, it must be there
        if len(choice["keep"]) != len(choice["layers"]):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is missing or damaged; delete it, and all that was "
            "trained beside it, to choose again"
        ) from error
    return choice


def _write(folder, choice):
    """Writes the picture, and after it the choice, by which a run is known."""
    with naming_what_fails(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if choice["curves"]:
            draw_layers(folder / PICTURE, choice)
    with whole_file(folder / CHOICE) as aside:
        aside.write_text(json.dumps(choice, indent=1) + "\n", encoding="utf-8")
