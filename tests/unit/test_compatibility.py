"""What SpeechBrain's published recipes do, each around a tiny Conformer.

The stand-ins show one habit each, as found in recipes/*/ASR upstream. All of
them run with gates open beside the stock recipe, and prune, cut, fine-tune
and evaluate.
"""

import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import speechbrain as sb
import torch
from speechbrain.nnet.schedulers import NewBobScheduler, update_learning_rate
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from speechbrain.utils.parameter_transfer import Pretrainer
from speechbrain.utils.train_logger import TensorboardLogger, WandBLogger
from test_brain import NeverAnything, Recipe, Whole, block, make
from tiny_export import INFERENCE, make_export

from sb_prune import pruned

EPOCHS, PRUNE_EPOCHS, STEPS = 4, 2, 4
LOADING = {"batch_size": None, "collate_fn": None}

scale = 1.0  # recipes use names of their script inside the class


class Log:
    """A train logger that remembers."""

    def __init__(self):
        self.rows = []

    def log_stats(self, stats_meta, train_stats=None, **stats):
        if train_stats is not None:
            stats["train_stats"] = train_stats
        self.rows.append({**stats_meta, **stats})


class Few(Whole):
    """Whole batches as items, few of them."""

    def __len__(self):
        return STEPS


class Published(Recipe):
    """Validates, logs, keeps the best by a key, evaluates an average."""

    def on_stage_start(self, stage, epoch):
        if stage != sb.Stage.TRAIN:
            self.errors = []

    def compute_objectives(self, predictions, batch, stage):
        loss = super().compute_objectives(predictions, batch, stage)
        if stage != sb.Stage.TRAIN:
            self.errors.append(loss.item())
        return loss

    def on_stage_end(self, stage, stage_loss, epoch):
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        if stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                {"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats={"errors": self.errors},
            )
            return
        self.hparams.train_logger.log_stats(
            stats_meta={"epoch": epoch, "lr": self.learning_rate()},
            train_stats=self.train_stats,
            valid_stats={"loss": stage_loss},
        )
        self.anneal(stage_loss)
        self.checkpointer.save_and_keep_only(
            meta={"loss": stage_loss, "epoch": epoch},
            min_keys=["loss"],
            num_to_keep=2,
        )

    def on_evaluate_start(self, max_key=None, min_key=None):
        super().on_evaluate_start()
        checkpoints = self.checkpointer.find_checkpoints(
            max_key=max_key, min_key=min_key
        )
        average = average_checkpoints(checkpoints, recoverable_name="model")
        self.hparams.model.load_state_dict(average, strict=True)
        self.hparams.model.eval()
        print("Loaded the average")

    def learning_rate(self):
        return self.hparams.scheduler.current_lr

    def anneal(self, stage_loss):
        """Noam moves in on_fit_batch_end."""


class SavesTheAverage(Published):
    """Replaces all checkpoints by the average once it is tested."""

    def on_stage_end(self, stage, stage_loss, epoch):
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            self.checkpointer.save_and_keep_only(
                meta={"loss": -0.1, "epoch": epoch},
                min_keys=["loss"],
                num_to_keep=1,
            )


class TwoOptimizers(Published):
    """One for the encoder, one for the rest, under names of its own."""

    def init_optimizers(self):
        self.encoder_optimizer = torch.optim.AdamW(
            self.modules.Transformer.parameters(), lr=1e-3
        )
        self.rest_optimizer = torch.optim.SGD(
            self.modules.lin.parameters(), lr=1e-3, momentum=0.9
        )
        self.optimizers_dict = {
            "encoder": self.encoder_optimizer,
            "rest": self.rest_optimizer,
        }
        self.checkpointer.add_recoverable("encopt", self.encoder_optimizer)
        self.checkpointer.add_recoverable("restopt", self.rest_optimizer)

    def freeze_optimizers(self, optimizers):
        valid = {"rest": optimizers["rest"]}
        if self.optimizer_step >= 3:
            valid["encoder"] = optimizers["encoder"]
        return valid

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        for optimizer in self.optimizers_dict.values():
            self.hparams.scheduler(optimizer)


class Anneals(Published):
    """NewBob after each validation."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.newbob = NewBobScheduler(0.002, improvement_threshold=0.5)
        self.checkpointer.add_recoverable("newbob", self.newbob)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        pass

    def learning_rate(self):
        return self.optimizer.param_groups[0]["lr"]

    def anneal(self, stage_loss):
        _, new = self.newbob(stage_loss)
        update_learning_rate(self.optimizer, new)


class OwnFitBatch(Published):
    """A training step written out."""

    def fit_batch(self, batch):
        outputs = self.compute_forward(batch, sb.Stage.TRAIN)
        loss = scale * self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
        loss.backward()
        self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, True)
        return loss.detach().cpu()


class SwitchesOptimizer(Published):
    """Adam in the first epochs, then SGD."""

    def on_fit_batch_start(self, batch, should_step):
        self.switch()

    def on_fit_start(self):
        super().on_fit_start()
        self.switched = False
        self.switch()

    def switch(self):
        late = self.hparams.epoch_counter.current > 1
        if late and not getattr(self, "switched", False):
            self.optimizer = torch.optim.SGD(self.modules.parameters(), lr=1e-4)
            self.optimizers_dict = {"opt_class": self.optimizer}
            self.checkpointer.add_recoverable("optimizer", self.optimizer)
            self.switched = True


class Searches(Published):
    """Other outputs in each stage; a searcher holds the root modules."""

    def compute_forward(self, batch, stage):
        encoded, _ = self.modules.Transformer(
            batch["x"], None, batch["lengths"]
        )
        outputs = self.modules.lin(encoded)
        if stage == sb.Stage.TRAIN:
            return outputs, encoded, batch["lengths"]
        return outputs, self.search(batch["x"], encoded)

    def search(self, x, encoded):
        root, lin = self.hparams.searcher
        again = root.encode(x, None)
        assert again.shape == encoded.shape
        return lin(encoded).argmax(-1)

    def compute_objectives(self, predictions, batch, stage):
        return super().compute_objectives(predictions[0], batch, stage)


class SavesWithinEpochs(Published):
    """Intra-epoch checkpoints beside those of the epochs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ckpt_interval_steps = 3


class Deeper(TwoOptimizers):
    """Inherits what it does from a recipe of a recipe."""


HABITS = [
    Published,
    SavesTheAverage,
    TwoOptimizers,
    Anneals,
    OwnFitBatch,
    SwitchesOptimizer,
    Searches,
    SavesWithinEpochs,
    Deeper,
]
each_habit = pytest.mark.parametrize(
    "recipe", HABITS, ids=lambda recipe: recipe.__name__
)


def make_published(folder, recipe, **changes):
    settings = None
    if changes:
        changes.setdefault("schedule_steps", STEPS)
        settings = block(prune_epochs=PRUNE_EPOCHS, **changes)
        recipe = pruned(recipe)
    brain, counter = make(folder, recipe, pruning=settings)
    brain.hparams.epoch_counter = counter
    brain.hparams.train_logger = Log()
    brain.hparams.model = brain.checkpointer.recoverables["model"]
    brain.hparams.searcher = (brain.modules.Transformer, brain.modules.lin)
    return brain


def fit(brain):
    loading = {
        "train_loader_kwargs": dict(LOADING),
        "valid_loader_kwargs": dict(LOADING),
    }
    brain.fit(brain.hparams.epoch_counter, Few(), Few(), **loading)
    return brain


def evaluate(brain):
    brain.evaluate(Few(), min_key="loss", test_loader_kwargs=dict(LOADING))
    return brain.errors


def epochs_of(brain):
    return [row for row in brain.hparams.train_logger.rows if "epoch" in row]


@each_habit
def test_open_gates_take_nothing_from_a_recipe(recipe, tmp_path):
    """Two epochs with gates open: the same losses, rates and log.

    But for rounding: a weight and its product with 1 may meet other kernels.
    """
    stock = fit(make_published(tmp_path / "stock", recipe))
    ours = make_published(tmp_path / "ours", recipe, schedule=NeverAnything)
    fit(ours)
    steps = PRUNE_EPOCHS * STEPS
    close = partial(pytest.approx, rel=1e-4)
    assert ours.hparams.losses[:steps] == close(stock.hparams.losses[:steps])
    assert len(ours.hparams.losses) == len(stock.hparams.losses)
    for row, expected in zip(epochs_of(ours)[:PRUNE_EPOCHS], epochs_of(stock)):
        train, valid = expected["train_stats"], expected["valid_stats"]
        assert {key: row["train_stats"][key] for key in train} == close(train)
        assert row["valid_stats"] == close(valid)
        assert row["lr"] == expected["lr"]


@each_habit
def test_every_habit_survives_all_phases(recipe, tmp_path, capsys):
    brain = fit(make_published(tmp_path, recipe, target=0.5))
    rows = epochs_of(brain)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert rows[1]["train_stats"]["realised_sparsity"] >= 0.5
    assert all("loss" in row["train_stats"] for row in rows)
    rates = [row["lr"] for row in rows]
    assert rates[PRUNE_EPOCHS:] == rates[:PRUNE_EPOCHS]  # each phase anew
    errors = evaluate(brain)
    assert len(errors) == STEPS
    assert "Loaded the average" in capsys.readouterr().out

    later = make_published(tmp_path, recipe, target=0.5)
    later.test_only = True
    fit(later)
    assert evaluate(later) == errors
    small = sum(p.numel() for p in later.modules["Transformer"].parameters())
    whole = make_published(tmp_path / "dense", recipe)
    dense = sum(p.numel() for p in whole.modules["Transformer"].parameters())
    assert small < 0.6 * dense
    assert epochs_of(later) == []


def interrupt(recipe, epoch):
    """The recipe, stopped by its user when it goes into an epoch."""

    def on_stage_start(self, stage, current):
        if current == epoch:
            raise KeyboardInterrupt
        recipe.on_stage_start(self, stage, current)

    return type("Stopped", (recipe,), {"on_stage_start": on_stage_start})


@pytest.mark.parametrize(
    "recipe",
    [TwoOptimizers, Anneals, SavesWithinEpochs],
    ids=lambda recipe: recipe.__name__,
)
@pytest.mark.parametrize("epoch", [2, 4], ids=["prune", "fine-tune"])
def test_stopped_recipes_continue(recipe, epoch, tmp_path):
    whole = fit(make_published(tmp_path / "whole", recipe, target=0.5))
    stopped = interrupt(recipe, epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(make_published(tmp_path / "parts", stopped, target=0.5))
    rest = fit(make_published(tmp_path / "parts", recipe, target=0.5))
    left = (EPOCHS - epoch + 1) * STEPS
    assert rest.hparams.losses == whole.hparams.losses[-left:]
    assert rest.pruning.plan.to_dict() == whole.pruning.plan.to_dict()


def test_testing_in_the_prune_phase_sees_the_plan(tmp_path):
    stopped = interrupt(Published, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(make_published(tmp_path, stopped, target=0.5))
    brain = make_published(tmp_path, Published, target=0.5)
    brain.test_only = True
    fit(brain)
    evaluate(brain)
    pruner = brain.pruning.steps.pruner
    assert pruner.step == STEPS
    assert set(pruner._sample.tolist()) == {0.0, 1.0}


def test_debugging_runs_every_phase(tmp_path):
    """Two batches an epoch are fewer than one accumulated step."""
    brain = make_published(tmp_path, Published, target=0.5)
    brain.debug = True
    brain.grad_accumulation_factor = 4
    fit(brain)
    assert len(brain.hparams.losses) == EPOCHS * brain.debug_batches
    assert brain.pruning.plan is not None


def test_checkpoints_are_between_steps(tmp_path, monkeypatch):
    """They hold no gradients, of which a step may need those of before."""
    brain = make_published(tmp_path, SavesWithinEpochs, target=0.5)
    brain.grad_accumulation_factor = 2
    save, saved = brain._save_intra_epoch_ckpt, []

    def note():
        saved.append(brain.step)
        save()

    monkeypatch.setattr(brain, "_save_intra_epoch_ckpt", note)
    fit(brain)
    assert saved and all(step % 2 == 0 for step in saved)


# ------------------------------------------------------------------ lengths


class StopsEarly(Published):
    """Tells its counter of a metric that never gets better."""

    def on_stage_end(self, stage, stage_loss, epoch):
        if stage == sb.Stage.VALID:
            self.hparams.epoch_counter.update_metric(1.0)
        super().on_stage_end(stage, stage_loss, epoch)


def make_stopping(folder, recipe=StopsEarly):
    brain = make_published(folder, recipe, target=0.5)
    counter = EpochCounterWithStopper(9, 1, 0, "min")
    brain.checkpointer.add_recoverable("counter", counter)
    brain.hparams.epoch_counter = counter
    brain.pruning.settings.prune_epochs = 3
    return brain


def test_early_stopping_waits_for_the_fine_tune_phase(tmp_path):
    """The first fine-tuned epoch is the best, the second no better."""
    brain = fit(make_stopping(tmp_path))
    assert [row["epoch"] for row in epochs_of(brain)] == [1, 2, 3, 4, 5]


def test_early_stopping_waits_in_a_continued_run_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(make_stopping(tmp_path, interrupt(StopsEarly, 3)))
    brain = fit(make_stopping(tmp_path))
    assert [row["epoch"] for row in epochs_of(brain)] == [3, 4, 5]


def test_step_limit_counts_in_each_phase(tmp_path):
    brain = make_published(tmp_path, Published, schedule_steps=5)
    brain.optimizer_step_limit = 5
    fit(brain)
    assert len(brain.hparams.losses) == 2 * 5


def test_schedule_beyond_the_step_limit_is_refused(tmp_path):
    brain = make_published(tmp_path, Published, schedule_steps=6)
    brain.optimizer_step_limit = 5
    with pytest.raises(ValueError, match="or raise optimizer_step_limit"):
        fit(brain)


def test_bypassed_gates_are_refused_after_one_epoch(tmp_path):
    class StepsItself(Published):
        def fit_batch(self, batch):
            outputs = self.compute_forward(batch, sb.Stage.TRAIN)
            loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

    brain = make_published(tmp_path, StepsItself, target=0.5)
    with pytest.raises(RuntimeError, match="must call self.optimizers_step"):
        fit(brain)
    assert len(brain.hparams.losses) == STEPS


# ------------------------------------------------------------------ loggers


@pytest.fixture
def scalars(monkeypatch):
    """What a TensorBoard writer is told: (tag, value, step)."""
    told = []

    class SummaryWriter:
        def __init__(self, folder):
            pass

        def add_scalar(self, tag, value, step):
            told.append((tag, value, step))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return told


def test_tensorboard_steps_are_epochs(scalars, tmp_path):
    brain = make_published(tmp_path, Published, target=0.5)
    brain.hparams.train_logger = TensorboardLogger(str(tmp_path))
    fit(brain)

    def steps(wanted):
        return [step for tag, _, step in scalars if tag == wanted]

    assert steps("lr") == steps("epoch") == [1, 2, 3, 4]
    assert steps("loss/train") == steps("loss/valid") == [1, 2, 3, 4]
    assert steps("target_sparsity/train") == [1, 2]


def test_wandb_has_one_row_an_epoch(tmp_path):
    rows = []
    run = SimpleNamespace(log=lambda row, step=None: rows.append((step, row)))
    brain = make_published(tmp_path, Published, target=0.5)
    brain.hparams.train_logger = WandBLogger(lambda: run)
    fit(brain)
    evaluate(brain)
    assert [step for step, _ in rows] == [1, 2, 3, 4, None]
    assert rows[0][1]["train"].keys() >= {"loss", "target_sparsity"}
    assert rows[2][1]["train"].keys() == {"loss"}


def test_log_without_validation_has_the_pruning(tmp_path):
    class NoValidation(Recipe):
        def on_stage_end(self, stage, stage_loss, epoch):
            super().on_stage_end(stage, stage_loss, epoch)
            self.hparams.train_logger.log_stats({"epoch": epoch})

    brain = make_published(tmp_path, NoValidation, target=0.5)
    brain.fit(
        brain.hparams.epoch_counter, Few(), train_loader_kwargs=dict(LOADING)
    )
    rows = epochs_of(brain)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert "target_sparsity" in rows[1]["train_stats"]
    assert "train_stats" not in rows[3]


# ------------------------------------------------------------- what is saved


def test_language_model_of_a_pretrainer_need_not_be_saved(tmp_path):
    brain = make_published(tmp_path, Published, target=0.5)
    brain.modules["lm"] = torch.nn.Linear(2, 2)
    brain.hparams.pretrainer = Pretrainer(loadables={"lm": brain.modules["lm"]})
    fit(brain)
    assert brain.pruning.plan is not None


def test_statistics_outside_modules_are_warned_about(tmp_path, monkeypatch):
    """Some recipes keep the normaliser in hparams and checkpointer only."""

    def make_normalised(folder, **changes):
        brain = make_published(folder, Published, **changes)
        normalize = torch.nn.Linear(1, 1)
        normalize.update_until_epoch = 4
        brain.checkpointer.add_recoverable("normalizer", normalize)
        return brain

    said = []
    monkeypatch.setattr("sb_prune.run.start.logger.warning", said.append)
    fit(make_normalised(tmp_path / "dense"))
    fit(make_normalised(tmp_path / "ours", start_from=str(tmp_path / "dense")))
    assert any("normalizer: update_until_epoch: 4" in text for text in said)


def test_modules_in_another_order_are_not_exported(tmp_path):
    """Two layers of one shape would take each other's weights."""
    text = INFERENCE.read_text()
    twin = "twin: !new:torch.nn.Linear {in_features: 4, out_features: 4}\n"
    twins = twin + twin.replace("twin", "other") + text
    train, published = tmp_path / "train.yaml", tmp_path / "published.yaml"
    held = "<ctc_lin>]"
    assert held in text
    train.write_text(
        twins.replace(held, "<ctc_lin>, !ref <twin>, !ref <other>]")
    )
    published.write_text(
        twins.replace(held, "<ctc_lin>, !ref <other>, !ref <twin>]")
    )
    make_export(tmp_path / "right", train=train, inference=train)
    with pytest.raises(ValueError, match="in the order of the training YAML"):
        make_export(tmp_path / "wrong", train=train, inference=published)
    assert not (tmp_path / "wrong").exists()


# ------------------------------------------------------------------ classes


def test_pruned_keeps_the_recipe_in_sight():
    """Recipes may be made by call or decorator, and say super(ASR, self)."""

    @pruned
    class ASR(Published):
        """Decorated."""

    assert issubclass(ASR, Published)
    assert pruned(Published).__name__ == "PrunedPublished"


@pytest.mark.parametrize(
    "empty", [sb.Brain, type("Empty", (sb.Brain,), {})], ids=["Brain", "pass"]
)
def test_recipes_without_objectives_are_refused(empty):
    with pytest.raises(TypeError, match="no loss to prune by"):
        pruned(empty)
