"""The mixin around a small recipe: numerics, order of bases, refusals."""

import copy
from functools import partial

import pytest
import speechbrain as sb
import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from sb_prune import (
    AugmentedLagrangian,
    HardConcrete,
    LayerwiseDistillation,
    PruningMixin,
    conformer_structures,
)
from sb_prune.cut.masking import attach_
from sb_prune.distillation import nearest_surviving
from sb_prune.run.steps import PruneSteps

STEPS = 10  # batches in an epoch


class Recipe(sb.Brain):
    """A Conformer that regresses its targets, with dropout."""

    def compute_forward(self, batch, stage):
        encoded, _ = self.modules.Transformer(
            batch["x"], None, batch["lengths"]
        )
        return self.modules.lin(encoded)

    def compute_objectives(self, predictions, batch, stage):
        loss = (predictions - batch["y"]).square().mean()
        if stage == sb.Stage.TRAIN:
            self.hparams.losses.append(loss.item())
        return loss

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.hparams.scheduler(self.optimizer)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.checkpointer.save_and_keep_only(meta={"epoch": epoch})


class PrunedRecipe(PruningMixin, Recipe):
    """The same recipe, pruned."""


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(2, 12, 6, generator=generator),
            "y": torch.randn(2, 12, 3, generator=generator),
            "lengths": torch.tensor([1.0, 0.7]),
        }
        for _ in range(STEPS)
    ]


class Whole(torch.utils.data.Dataset):
    """Whole batches as items."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        return batches()[index]


def make(
    folder,
    brain_class=PrunedRecipe,
    pruning=None,
    layerdrop=0.0,
    **run_opts,
):
    torch.manual_seed(0)
    transformer = TransformerASR(
        tgt_vocab=4,
        input_size=6,
        d_model=16,
        nhead=4,
        num_encoder_layers=2,
        num_decoder_layers=0,
        d_ffn=32,
        kernel_size=5,
        dropout=0.1,
        encoder_module="conformer",
        attention_type="RelPosMHAXL",
        normalize_before=True,
        causal=False,
        layerdrop_prob=layerdrop,
    )
    modules = {"Transformer": transformer, "lin": torch.nn.Linear(16, 3)}
    counter = EpochCounter(4)
    scheduler = NoamScheduler(0.002, 10)
    checkpointer = Checkpointer(
        folder,
        {
            "model": torch.nn.ModuleList(modules.values()),
            "counter": counter,
            "scheduler": scheduler,
        },
    )
    hparams = {"scheduler": scheduler, "losses": []}
    if pruning is not None:
        hparams["pruning"] = pruning
    brain = brain_class(
        modules=modules,
        opt_class=partial(torch.optim.Adam, lr=0.002),
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True, **run_opts},
        checkpointer=checkpointer,
    )
    return brain, counter


def block(**changes):
    return {
        "module": "Transformer",
        "structures": conformer_structures,
        "target": 0.5,
        "prune_epochs": 2,
        "schedule_steps": STEPS,
        **changes,
    }


def fit(brain, counter):
    loader_options = {"batch_size": None, "collate_fn": None}
    brain.fit(counter, Whole(), train_loader_kwargs=loader_options)
    return brain


class NeverAnything:
    """A schedule that asks for nothing: gates stay 1 without sampling."""

    def __init__(self, steps):
        self.steps = 0

    def fraction(self, step):
        return 0.0


@pytest.mark.parametrize(
    "open_gates",
    [
        {"schedule": NeverAnything},
        {
            # sampled, and all 1
            "gates": partial(HardConcrete, initial=1 - 1e-7, bound=99.0),
            "controller": AugmentedLagrangian,
            "gate_optimizer": partial(torch.optim.SGD, lr=0.0),
        },
    ],
    ids=["no target", "sampled open"],
)
def test_open_gates_are_the_recipe_itself(open_gates, tmp_path):
    """20 steps (one prune phase) with gates open: the same losses."""
    stock, counter = make(tmp_path / "stock", Recipe)
    fit(stock, counter)
    pruned, counter = make(tmp_path / "pruned", pruning=block(**open_gates))
    fit(pruned, counter)
    expected = stock.hparams.losses[: 2 * STEPS]
    assert len(expected) == 20
    assert pruned.hparams.losses[: 2 * STEPS] == pytest.approx(
        expected, abs=1e-6
    )


def test_without_a_block_the_mixin_is_inert(tmp_path):
    stock, counter = make(tmp_path / "stock", Recipe)
    fit(stock, counter)
    same, counter = make(tmp_path / "same")
    fit(same, counter)
    assert same.hparams.losses == stock.hparams.losses


def test_phases_start_with_fresh_optimizer_and_scheduler(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    fit(brain, counter)
    assert counter.current == 4
    assert brain.optimizer_step == 2 * STEPS
    assert brain.hparams.scheduler.n_steps == 2 * STEPS
    (state,) = {int(state["step"]) for state in brain.optimizer.state.values()}
    assert state == 2 * STEPS


def test_accumulated_batches_share_a_sample(tmp_path, monkeypatch):
    brain, counter = make(tmp_path, pruning=block(schedule_steps=2))
    brain.grad_accumulation_factor = 5
    samples = []
    stock = PruneSteps.begin_batch_

    def spy(steps):
        stock(steps)
        samples.append(steps.pruner.step)

    monkeypatch.setattr(PruneSteps, "begin_batch_", spy)
    fit(brain, counter)
    assert samples == [step for step in range(4) for _ in range(5)]


@pytest.mark.parametrize("match", [None, nearest_surviving])
def test_distillation_runs_in_both_phases(match, tmp_path, monkeypatch):
    options = {"match": match} if match else {}
    distillation = partial(LayerwiseDistillation, outputs=["lin"], **options)
    brain, counter = make(tmp_path, pruning=block(distillation=distillation))
    parts = []
    stock = LayerwiseDistillation.losses

    def spy(*arguments):
        parts.append(stock(*arguments))
        return parts[-1]

    monkeypatch.setattr(LayerwiseDistillation, "losses", spy)
    fit(brain, counter)
    assert len(parts) == 4 * STEPS
    assert set(parts[-1]) == {"distill_hidden", "distill_lin"}
    assert all(p["distill_lin"].item() > 0 for p in parts)
    assert parts[0]["distill_hidden"].item() > 0


def test_teacher_is_the_dense_start(tmp_path):
    distillation = partial(LayerwiseDistillation, outputs=["lin"])
    brain, counter = make(tmp_path, pruning=block(distillation=distillation))
    start = copy.deepcopy(brain.modules["lin"].state_dict())
    fit(brain, counter)
    teacher = brain.pruning.distiller.teacher._copies["lin"].state_dict()
    assert all(torch.equal(teacher[k], start[k]) for k in start)


def test_layerdrop_with_layerwise_distillation_is_refused(tmp_path):
    brain, counter = make(
        tmp_path,
        pruning=block(distillation=LayerwiseDistillation),
        layerdrop=0.1,
    )
    with pytest.raises(ValueError, match="write layerdrop_prob: 0.0"):
        fit(brain, counter)


def test_frozen_tensors_are_refused(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    for parameter in brain.modules["Transformer"].encoder.parameters():
        parameter.requires_grad_(False)
    message = "is frozen, so it cannot be pruned.*leave layers out of `kinds`"
    with pytest.raises(ValueError, match=message):
        fit(brain, counter)


def test_tensors_in_no_optimizer_are_refused(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    only = list(brain.modules["lin"].parameters())
    brain.opt_class = lambda parameters: torch.optim.Adam(only)
    with pytest.raises(ValueError, match="is in no optimizer"):
        fit(brain, counter)


def test_missing_checkpointer_is_refused(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    brain.checkpointer = None
    with pytest.raises(ValueError, match="checkpointer: pruning needs one"):
        fit(brain, counter)


def test_export_before_pruning_is_refused(tmp_path):
    settings = block(inference="a.yaml", export_folder=str(tmp_path / "out"))
    brain, _ = make(tmp_path, pruning=settings)
    with pytest.raises(RuntimeError, match="not pruned yet; call fit"):
        brain.pruning.export_()


def test_mixin_behind_the_recipe_is_refused():
    with pytest.raises(TypeError, match="must stand before the recipe's"):
        type("Wrong", (Recipe, PruningMixin), {})


def test_mixin_around_no_recipe_is_refused():
    body = {"compute_objectives": lambda *args: None}
    with pytest.raises(TypeError, match="no loss to prune by"):
        type("Wrong", (PruningMixin, sb.Brain), body)


def test_modules_that_are_not_saved_are_refused(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    del brain.checkpointer.recoverables["model"]
    with pytest.raises(ValueError, match="are trained but not saved"):
        fit(brain, counter)


def test_counter_that_is_not_saved_is_refused(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    del brain.checkpointer.recoverables["counter"]
    with pytest.raises(ValueError, match="the epoch counter is missing"):
        fit(brain, counter)


@pytest.mark.parametrize(
    "option, message",
    [
        ("data_parallel_backend", "leave it out and start with torchrun"),
        ("jit", "leave --jit out, or write --compile"),
    ],
)
def test_unfit_run_options_are_refused(option, message, tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    setattr(brain, option, True)  # data parallel wants a GPU at once
    with pytest.raises(ValueError, match=f"{option}: .*{message}"):
        fit(brain, counter)


def test_a_second_fit_is_refused(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    fit(brain, counter)
    with pytest.raises(RuntimeError, match="start train.py again"):
        fit(brain, counter)


def test_gates_that_never_move_are_no_plan(tmp_path):
    class Stubborn(PrunedRecipe):
        def fit_batch(self, batch):
            outputs = self.compute_forward(batch, sb.Stage.TRAIN)
            loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

    brain, counter = make(tmp_path, Stubborn, pruning=block())
    with pytest.raises(RuntimeError, match="must call self.optimizers_step"):
        fit(brain, counter)


def test_teacher_that_cannot_follow_is_refused(tmp_path, monkeypatch):
    def forward(self, batch, stage):
        encoded, _ = self.modules.Transformer(
            batch["x"], None, batch["lengths"]
        )
        return self.modules.lin(encoded * 1.0)

    monkeypatch.setattr(Recipe, "compute_forward", forward)
    distillation = partial(LayerwiseDistillation, outputs=["lin"])
    brain, counter = make(tmp_path, pruning=block(distillation=distillation))
    with pytest.raises(RuntimeError, match="lin is not fed by the unchanged"):
        fit(brain, counter)


def test_torn_checkpoint_is_set_aside(tmp_path):
    class Interrupted(PrunedRecipe):
        def on_stage_start(self, stage, epoch=None):
            if epoch == 2:
                raise KeyboardInterrupt
            super().on_stage_start(stage, epoch)

    brain, counter = make(tmp_path, Interrupted, pruning=block())
    with pytest.raises(KeyboardInterrupt):
        fit(brain, counter)
    (whole,) = (tmp_path / "prune").glob("CKPT*")
    torn = whole.with_name("CKPT+9999-torn")
    torn.mkdir()
    meta = (whole / "CKPT.yaml").read_text()
    (torn / "CKPT.yaml").write_text(
        meta.replace("unixtime: ", "unixtime: 9")  # the newest
    )
    (torn / "model.ckpt").write_bytes(b"torn")
    brain, counter = make(tmp_path, pruning=block())
    fit(brain, counter)
    assert brain.pruning.plan is not None
    assert (tmp_path / "prune" / "torn-CKPT+9999-torn").is_dir()


def test_refused_runs_may_change_their_target(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    brain.opt_class = lambda _: torch.optim.Adam(
        brain.modules["lin"].parameters()
    )
    with pytest.raises(ValueError, match="is in no optimizer"):
        fit(brain, counter)
    brain, counter = make(tmp_path, pruning=block(target=0.4))
    fit(brain, counter)
    assert brain.pruning.plan is not None


def test_deepcopy_in_training_has_gates_of_its_own(tmp_path):
    class Copying(PrunedRecipe):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            self.copied = copy.deepcopy(self.modules["Transformer"])
            super().on_stage_end(stage, stage_loss, epoch)

    brain, counter = make(tmp_path, Copying, pruning=block())
    fit(brain, counter)
    assert brain.copied is not None


@pytest.mark.parametrize("milestones", [[0.3, 0.2], [0.3, 0.3], [0.5], [0.7]])
def test_milestones_rise_towards_the_target(milestones, tmp_path):
    settings = block(
        milestones=milestones, inference="a.yaml", export_folder="export"
    )
    message = r"milestones: .*; write rising sparsities between 0 and the tar"
    with pytest.raises(ValueError, match=message):
        make(tmp_path, pruning=settings)


@pytest.mark.parametrize("epochs", [4, 9])
def test_a_prune_phase_without_a_rest_is_refused(epochs, tmp_path):
    brain, counter = make(tmp_path, pruning=block(prune_epochs=epochs))
    with pytest.raises(ValueError, match=f"prune_epochs: {epochs} must be at"):
        fit(brain, counter)


def test_a_file_as_export_folder_is_refused(tmp_path):
    (tmp_path / "export").write_text("years of work")
    settings = block(inference="a.yaml", export_folder=str(tmp_path / "export"))
    brain, counter = make(tmp_path / "save", pruning=settings)
    with pytest.raises(ValueError, match="export_folder: .* something else"):
        fit(brain, counter)


def test_an_empty_inference_yaml_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing yet")
    settings = block(
        inference=str(tmp_path / "a.yaml"),
        export_folder=str(tmp_path / "export"),
    )
    brain, counter = make(tmp_path / "save", pruning=settings)
    with pytest.raises(ValueError, match="inference: .*a.yaml is empty; write"):
        fit(brain, counter)


def test_two_pruners_on_one_module_are_refused(tmp_path):
    brain, counter = make(tmp_path, pruning=block())
    attach_(conformer_structures(brain.modules["Transformer"]))
    with pytest.raises(ValueError, match="masked already; call detach_ first"):
        fit(brain, counter)
