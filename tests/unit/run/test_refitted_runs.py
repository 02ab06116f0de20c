"""Runs that refit what stays, and whose prune phase ends within an epoch."""

from functools import partial
from unittest.mock import patch

import pytest
import small_runs
import torch
from small_runs import make, prune, pruning
from speechbrain.dataio.dataloader import LoopedLoader

from sb_prune import (
    LayerwiseDistillation,
    LeastSquares,
    LinearSchedule,
    taylor_score,
)
from sb_prune.export.loading import load_export
from sb_prune.run.snapshots import find_snapshot
from sb_prune.run.steps import PruneSteps

EPOCH = 4  # steps
ONE_STEP = {"score": taylor_score, "prune_steps": 1, "schedule_steps": 1}
AT_THE_END = {"schedule": partial(LinearSchedule, start=0.9)}


def just_cut(folder):
    """Name -> weight, as it was just after the cut."""
    snapshot = find_snapshot(folder / "save/cut")
    return torch.load(snapshot.path / "model.ckpt")


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """Weights after the cut, of the same run with and without a refit."""
    found = []
    for refit in (None, partial(LeastSquares, utterances=2)):
        folder = tmp_path_factory.mktemp("run")
        model = small_runs.conformer()
        torch.manual_seed(0)
        prune(folder, model, 0.4, refit=refit, **ONE_STEP)
        found.append(just_cut(folder))
    return found


def test_what_reads_the_units_alone_is_refitted(cuts):
    plain, refitted = cuts
    assert plain.keys() == refitted.keys()
    changed = {n for n in plain if not torch.equal(plain[n], refitted[n])}
    readers = ("out_proj.weight", "3.weight", "after_conv.2.weight")
    assert changed
    assert all(name.endswith(readers) for name in changed)


def test_what_is_chosen_anew_is_what_is_cut(tmp_path):
    chosen, refit_ = [], LeastSquares.refit_

    def noted(*args):
        found = refit_(*args)
        chosen.append((args[2], found[0]))
        return found

    refit = partial(LeastSquares, utterances=2, reselect=True)
    with patch.object(LeastSquares, "refit_", noted):
        brain = prune(
            tmp_path, small_runs.conformer(), 0.4, refit=refit, **ONE_STEP
        )
    ((by_score, plan),) = chosen
    assert plan.to_dict() != by_score.to_dict()
    assert brain.pruning.plan.to_dict() == plan.to_dict()
    step = load_export(tmp_path / "export").steps[-1]
    assert step.plan.to_dict() == plan.to_dict()
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5


def test_the_teacher_does_not_listen_to_a_refit(tmp_path):
    """Nothing validates, so no stage ends what it keeps of a batch."""
    kept = []

    def noted(*args):
        hidden = brain.pruning.distiller.teacher.student_hidden
        kept.extend(hidden.values())
        return refit_(*args)

    refit_, model = LeastSquares.refit_, small_runs.conformer()
    refit = partial(LeastSquares, utterances=2)
    block = pruning(
        tmp_path,
        model,
        0.4,
        refit=refit,
        distillation=LayerwiseDistillation,
        **ONE_STEP,
    )
    brain = make(tmp_path, model, {"pruning": block})
    with patch.object(LeastSquares, "refit_", noted):
        small_runs.fit(brain, model)
    assert kept and not any(kept)


@pytest.mark.parametrize(
    "options, warns",
    [
        ({}, True),
        ({"prune_steps": 4, "schedule_steps": 4}, True),
        (ONE_STEP, False),
        ({"prune_steps": 4, "schedule_steps": 4, **AT_THE_END}, False),
    ],
)
def test_a_refit_of_what_has_learned_masked_is_warned_of(
    options, warns, tmp_path, caplog
):
    refit = partial(LeastSquares, utterances=2)
    model = small_runs.conformer()
    block = pruning(tmp_path, model, 0.4, refit=refit, **options)
    make(tmp_path, model, {"pruning": block})
    assert ("a refit takes that back" in caplog.text) == warns


def test_the_prune_phase_ends_after_its_steps(tmp_path):
    model = small_runs.conformer()
    with patch.object(
        PruneSteps, "step_", autospec=True, side_effect=PruneSteps.step_
    ) as steps:
        brain = prune(tmp_path, model, 0.4, prune_steps=3, schedule_steps=3)
    assert steps.call_count == 3
    assert brain.optimizer_step == EPOCH  # of the other epoch
    assert brain.optimizer_step_limit is None


@pytest.mark.parametrize("epochs, steps", [(1, EPOCH + 1), (2, EPOCH)])
def test_steps_outside_the_last_epoch_are_refused(tmp_path, epochs, steps):
    model = small_runs.conformer()
    block = pruning(
        tmp_path, model, 0.4, prune_epochs=epochs, prune_steps=steps
    )
    brain = make(tmp_path, model, {"pruning": block}, epochs=3)
    with pytest.raises(ValueError, match=f"prune_steps: {steps} must lie"):
        small_runs.fit(brain, model)


def test_data_without_a_length_end_after_the_steps(tmp_path):
    model = small_runs.conformer()
    block = pruning(tmp_path, model, 0.4, prune_steps=2, schedule_steps=2)
    block["refit"] = partial(LeastSquares, utterances=2)
    brain = make(tmp_path, model, {"pruning": block})
    stream = LoopedLoader(model.batches(), EPOCH)
    brain.fit(brain.hparams.epoch_counter, stream)
    assert brain.optimizer_step == EPOCH  # all of the other epoch


def test_a_schedule_longer_than_the_steps_is_refused(tmp_path):
    model = small_runs.conformer()
    with pytest.raises(ValueError, match="schedule_steps: 3 .*prune_steps"):
        prune(tmp_path, model, 0.4, prune_steps=2)
