"""Runs that measure what units are worth before any weight learns."""

from functools import partial
from unittest.mock import patch

import pytest
import small_runs
import speechbrain as sb
import torch
from small_runs import make, prune, pruning

from sb_prune import LayerwiseDistillation, LinearSchedule, taylor_score
from sb_prune.distillation import Distiller
from sb_prune.run.snapshots import find_snapshot
from sb_prune.run.steps import PruneSteps

OPEN, EPOCH = 2, 4  # steps with open gates, and in an epoch
HELD = {
    "hold_weights": True,
    "schedule": partial(LinearSchedule, start=0.6),
    "schedule_steps": OPEN + 1,
}
GATES = [
    {"score": taylor_score, "score_every": 1},
    {"first_score": taylor_score},
]


def weights(brain):
    state = brain.modules.state_dict()
    return {name: value.clone() for name, value in state.items()}


def watched(folder, **block):
    """The Brain, its weights in each step of the prune phase, and savings."""
    model = small_runs.conformer()
    brain = make(
        folder, model, {"pruning": pruning(folder, model, 0.4, **block)}
    )
    seen, savings = [], []
    step_ = PruneSteps.step_

    def watch(steps, scale):
        step_(steps, scale)
        seen.append(weights(brain))
        savings.append(steps.pruner.saliency.sum().item())

    with patch.object(PruneSteps, "step_", watch):
        small_runs.fit(brain, model)
    return brain, seen, savings


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("gates", GATES, ids=["score", "learned"])
def test_weights_wait_until_the_schedule_rises(tmp_path, gates):
    brain, seen, savings = watched(tmp_path, **HELD, **gates)
    assert len(seen) == EPOCH
    assert same(seen[0], seen[OPEN - 1])
    assert not same(seen[OPEN - 1], seen[OPEN])
    assert 0 < savings[0] < savings[1]  # a sum over different batches
    assert brain.optimizer_step == EPOCH  # of the next phase, all counted


def test_nothing_is_measured_of_a_moving_model(tmp_path):
    """Without the key the weights learn from the first step on."""
    block = {**HELD, "hold_weights": False, **GATES[0]}
    _, seen, _ = watched(tmp_path, **block)
    assert not same(seen[0], seen[1])


def test_nothing_is_distilled_meanwhile(tmp_path):
    distillation = LayerwiseDistillation
    with patch.object(
        Distiller, "add", autospec=True, side_effect=Distiller.add
    ) as added:
        watched(tmp_path, **HELD, **GATES[0], distillation=distillation)
    assert added.call_count == 2 * EPOCH - OPEN


def test_the_optimizer_starts_afresh(tmp_path):
    """Gradients of the open phase move nothing later."""
    cuts = []
    for name, scale in (("plain", 1.0), ("scaled", 3.0)):
        model = small_runs.conformer()
        torch.manual_seed(0)
        block = {**HELD, "prune_steps": OPEN, "schedule_steps": OPEN}
        block["schedule"] = partial(LinearSchedule, start=0.99)
        objectives = small_runs.Recipe.compute_objectives

        def scaled(brain, *args, scale=scale, objectives=objectives):
            return scale * objectives(brain, *args)

        with patch.object(small_runs.Recipe, "compute_objectives", scaled):
            prune(tmp_path / name, model, 0.4, **block, **GATES[0])
        snapshot = find_snapshot(tmp_path / name / "save/cut")
        cuts.append(torch.load(snapshot.path / "model.ckpt"))
    assert same(*cuts)  # of the dense model, whatever the loss


def test_what_the_task_alone_reaches_stays(tmp_path):
    """With task_weight 0, not even weight decay moves the head."""
    model = small_runs.conformer()
    block = pruning(
        tmp_path,
        model,
        0.4,
        distillation=partial(LayerwiseDistillation, task_weight=0.0),
        score=taylor_score,
    )
    brain = make(tmp_path, model, {"pruning": block})
    brain.opt_class = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5)
    before = weights(brain)
    small_runs.fit(brain, model)
    after, head = weights(brain), ["lin.weight", "lin.bias"]
    assert all(torch.equal(before[name], after[name]) for name in head)
    norm = "Transformer.encoder.layers.0.norm1.norm.weight"
    assert not torch.equal(before[norm], after[norm])


def test_no_loss_is_refused():
    with pytest.raises(ValueError, match="task_weight: 0.0: no loss is left"):
        LayerwiseDistillation(hidden_weight=0.0, task_weight=0.0)


@pytest.mark.parametrize(
    ("task_weight", "needed"),
    [(0.0, [True] * OPEN + [False] * (EPOCH - OPEN)), (1.0, [True] * EPOCH)],
)
def test_a_recipe_is_told_what_is_learned(tmp_path, task_weight, needed):
    """While weights wait, its own loss counts; then what is compared."""
    model = small_runs.conformer()
    distillation = partial(
        LayerwiseDistillation,
        hidden_weight=0.0,
        states={"Transformer": 0},
        task_weight=task_weight,
    )
    asked, compared = [], []
    compute = small_runs.Recipe.compute_forward

    def forward(brain, batch, stage):
        if stage == sb.Stage.TRAIN:
            assert brain.learns_from("Transformer", 0)
            later = brain.learns_from("lin", when_held=False)
            assert later == bool(task_weight)
            asked.append(brain.learns_from("lin"))
            compared.append(brain.compares("Transformer", 0))
            assert not brain.compares("lin")
        return compute(brain, batch, stage)

    with patch.object(small_runs.Recipe, "compute_forward", forward):
        prune(
            tmp_path, model, 0.4, **HELD, **GATES[0], distillation=distillation
        )
    assert asked[:EPOCH] == needed
    assert compared[:EPOCH] == [False] * OPEN + [True] * (EPOCH - OPEN)
