"""Mixed precision, losses that are not finite, compiled modules."""

from functools import partial

import pytest
import torch
from test_brain import STEPS, PrunedRecipe, block, fit, make

from sb_prune import (
    AugmentedLagrangian,
    HardConcrete,
    LayerwiseDistillation,
)
from sb_prune.distillation import Teacher
from sb_prune.support.parallel import unwrap_


class Recorded(PrunedRecipe):
    """Keeps the gates' state after each optimizer step."""

    states = ()

    def optimizers_step(self):
        super().optimizers_step()
        if self.pruning.steps.pruner is not None:
            state = self.pruning.steps.pruner.state_dict()
            flat = torch.utils._pytree.tree_leaves(state)
            tensors = [leaf for leaf in flat if torch.is_tensor(leaf)]
            learnt = torch.cat([t.detach().flatten() for t in tensors])
            # multipliers at 0 are as good as none yet
            self.states += ((state["step"], learnt[learnt != 0]),)


class Poisoned(Recorded):
    """One training loss is not what it should be."""

    bad_batch = 5
    poison = float("nan")
    batches = 0

    def compute_objectives(self, predictions, batch, stage):
        loss = super().compute_objectives(predictions, batch, stage)
        self.batches += 1
        if self.batches == self.bad_batch:
            loss = loss * self.poison
        return loss


class PoisonedAside(Poisoned):
    """The loss is bad, what is sent back from it is not."""

    def compute_objectives(self, predictions, batch, stage):
        loss = PrunedRecipe.compute_objectives(self, predictions, batch, stage)
        self.batches += 1
        if self.batches == self.bad_batch:
            loss = loss + self.poison
        return loss


def moves(brain):
    """Whether each step moved gates or multipliers, from the second on."""
    tensors = [tensor for _, tensor in brain.states]
    return [
        len(a) != len(b) or not torch.equal(a, b)
        for a, b in zip(tensors, tensors[1:])
    ]


def finite(brain):
    return all(
        bool(torch.isfinite(p).all()) for p in brain.modules.parameters()
    )


settings = partial(
    block,
    schedule_steps=2,
    controller=AugmentedLagrangian,  # has state that a step changes
    prune_epochs=1,
)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("brain_class", [Poisoned, PoisonedAside])
def test_step_of_a_bad_loss_leaves_the_gates(brain_class, poison, tmp_path):
    """Accumulated over two batches, of which one is bad."""
    brain, counter = make(
        tmp_path,
        brain_class,
        settings(),
        skip_nonfinite_grads=True,
        grad_accumulation_factor=2,
    )
    brain.poison = poison
    fit(brain, counter)
    # batches 5 and 6 are the third step; the first is before the target rises
    assert moves(brain) == [True, False, True, True]
    assert [step for step, _ in brain.states] == [1, 2, 3, 4, 5]
    assert finite(brain)
    assert brain.pruning.plan is not None


def test_patience_is_the_recipes(tmp_path):
    brain, counter = make(tmp_path, Poisoned, settings(), nonfinite_patience=0)
    with pytest.raises(ValueError, match="patience is exhausted"):
        fit(brain, counter)
    assert brain.batches == brain.bad_batch


def scaled(brain, scale):
    brain.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return brain


def test_scaled_losses_move_the_gates_as_unscaled(tmp_path):
    plain, counter = make(tmp_path / "plain", Recorded, settings())
    fit(plain, counter)
    brain, counter = make(tmp_path / "scaled", Recorded, settings())
    fit(scaled(brain, 2.0**8), counter)
    for (_, one), (_, other) in zip(plain.states, brain.states):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


class Overflowing(Recorded):
    """One gradient overflows, as in fp16 with too large a scale."""

    def optimizers_step(self):
        if self.scaler.get_scale() > 100.0:
            self.modules["lin"].bias.grad.fill_(torch.inf)
        super().optimizers_step()


def test_step_that_the_scaler_skips_leaves_the_gates(tmp_path):
    brain, counter = make(tmp_path, Overflowing, settings())
    fit(scaled(brain, 800.0), counter)  # skipped at 800, 400 and 200
    assert moves(brain) == [False, False] + [True] * (STEPS - 3)
    # each phase starts with the scaler that the run began with
    assert brain.scaler.get_scale() == 100.0
    assert finite(brain)


def test_scaler_starts_each_phase_afresh(tmp_path):
    class Noting(Recorded):
        def on_fit_start(self):
            super().on_fit_start()
            self.scales = [*getattr(self, "scales", []), scale_of(self)]

    def scale_of(brain):
        return brain.scaler.get_scale()

    brain, counter = make(tmp_path, Noting, settings())
    brain.scaler = torch.amp.GradScaler(
        "cpu", init_scale=64.0, growth_interval=2
    )
    fit(brain, counter)
    assert brain.scales == [64.0, 64.0]


def test_bf16_run_is_exact_in_fp32(tmp_path):
    distillation = partial(LayerwiseDistillation, outputs=["lin"])
    brain, counter = make(
        tmp_path,
        Recorded,
        settings(distillation=distillation),
        precision="bf16",
        eval_precision="bf16",
    )
    dtypes = set()
    stock = brain.compute_objectives

    def watch(predictions, batch, stage):
        dtypes.add(predictions.dtype)
        return stock(predictions, batch, stage)

    brain.compute_objectives = watch
    fit(brain, counter)
    assert torch.bfloat16 in dtypes
    assert all(moves(brain))
    assert finite(brain)
    assert {p.dtype for p in brain.modules.parameters()} == {torch.float32}
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5


def test_compiled_run_is_the_eager_one(tmp_path, monkeypatch):
    """With distillation: hooks fire inside compiled modules."""
    frames = []

    def backend(graph, inputs):
        frames.append(graph)
        return graph.forward

    compile_with = partial(torch.compile, backend=backend)
    monkeypatch.setattr(
        torch, "compile", lambda m, mode, **options: compile_with(m, **options)
    )
    distillation = partial(LayerwiseDistillation, outputs=["lin"])
    losses = []
    for name in ("eager", "compiled"):
        brain, counter = make(
            tmp_path / name,
            # whether a norm's gates are all open changes from step to step
            pruning=block(
                distillation=distillation,
                gates=partial(HardConcrete, straight_through=True),
            ),
            compile=name == "compiled",
        )
        fit(brain, counter)
        losses.append(brain.hparams.losses)
    # the masked Transformer before and after the target rises, and cut; lin
    # in each phase
    assert len(frames) == 3 + 2
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert not any(
        "_orig_mod" in name for name, _ in brain.modules.named_modules()
    )


def test_unwrapping_leaves_what_is_not_wrapped():
    inner = torch.nn.Linear(1, 1)
    modules = {"a": inner, "b": torch.compile(inner)}
    unwrap_(modules)
    assert modules == {"a": inner, "b": inner}


def test_teacher_follows_compiled_modules():
    student = {"first": torch.nn.Linear(2, 2), "last": torch.nn.Linear(2, 2)}
    teacher = Teacher(student, layers={"first": [""]})
    compiled = {
        k: torch.compile(m, backend="eager") for k, m in student.items()
    }
    teacher.listen_(compiled)
    teacher.begin_()
    compiled["last"](compiled["first"](torch.ones(1, 2)))
    assert set(teacher.outputs) == {"first", "last"}
    assert len(teacher.student_hidden) == len(teacher.hidden) == 1
    assert teacher.loose("last") is None
