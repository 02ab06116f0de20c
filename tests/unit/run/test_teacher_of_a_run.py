"""The teacher of a whole run: what it holds, and after an interruption."""

from functools import partial

import pytest
import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.parameter_transfer import Pretrainer

from sb_prune import LayerwiseDistillation, PruningMixin, conformer_structures

EPOCHS, STEPS = 4, 4


class LanguageModel(torch.nn.Linear):
    """Large, in `modules` only to be moved to the device, never called."""

    def __init__(self):
        super().__init__(16, 1000)

    def forward(self, x):
        raise AssertionError("called in training")


class Head(torch.nn.Linear):
    """Trained on what the encoder gives, but not distilled."""

    calls = 0

    def forward(self, x):
        Head.calls += 1
        return super().forward(x)


class Recipe(sb.Brain):
    """A Conformer with two heads that regress their targets."""

    interrupt_in = None

    def compute_forward(self, batch, stage):
        encoded, _ = self.modules.Transformer(batch["x"], None)
        return self.modules.lin(encoded), self.modules.head(encoded)

    def compute_objectives(self, predictions, batch, stage):
        return sum((p - batch["y"]).square().mean() for p in predictions)

    def on_stage_start(self, stage, epoch=None):
        if epoch == self.interrupt_in:
            raise KeyboardInterrupt

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.checkpointer.save_and_keep_only(meta={"epoch": epoch})


class PrunedRecipe(PruningMixin, Recipe):
    """The same recipe, pruned."""


class Whole(torch.utils.data.Dataset):
    """Whole batches as items."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "x": torch.randn(2, 13, 6, generator=generator),
            "y": torch.randn(2, 13, 3, generator=generator),
        }


@pytest.fixture
def make_brain(make_asr):
    def make(folder):
        torch.manual_seed(0)
        modules = {
            "Transformer": make_asr(dropout=0.1).train(),
            "lin": torch.nn.Linear(16, 3),
            "head": Head(16, 3),
        }
        counter = EpochCounter(EPOCHS)
        recoverables = {
            "model": torch.nn.ModuleList(modules.values()),
            "counter": counter,
        }
        modules["language_model"] = LanguageModel()
        loaded = {"language_model": modules["language_model"]}
        block = {
            "module": "Transformer",
            "structures": conformer_structures,
            "target": 0.5,
            "prune_epochs": 2,
            "schedule_steps": STEPS,
            "distillation": partial(LayerwiseDistillation, outputs=["lin"]),
        }
        return PrunedRecipe(
            modules=modules,
            opt_class=partial(torch.optim.Adam, lr=0.002),
            hparams={
                "pruning": block,
                "epoch_counter": counter,
                "pretrainer": Pretrainer(loadables=loaded),
            },
            run_opts={"device": "cpu", "noprogressbar": True},
            checkpointer=Checkpointer(folder, recoverables),
        )

    return make


def fit(brain):
    options = {"batch_size": None, "collate_fn": None}
    counter = brain.hparams.epoch_counter
    brain.fit(counter, Whole(), train_loader_kwargs=options)
    return brain


def test_it_holds_no_language_model_and_no_other_head(make_brain, tmp_path):
    Head.calls = 0
    brain = fit(make_brain(tmp_path))
    # and one call each of the masked and the cut model, which are compared
    assert Head.calls == EPOCHS * STEPS + 2
    teacher = brain.pruning.distiller.teacher
    assert teacher._copies.keys() == {"Transformer", "lin"}
    unread = teacher._unread["language_model"]._module
    live = brain.modules["language_model"]
    assert unread.weight.data_ptr() == live.weight.data_ptr()
    assert live.weight.requires_grad


@pytest.mark.parametrize("epoch", [2, 4], ids=["pruning", "fine-tuning"])
def test_after_an_interruption_it_is_the_same(epoch, make_brain, tmp_path):
    """It is first needed when the model has been trained, masked or cut."""
    whole = fit(make_brain(tmp_path / "whole"))
    brain = make_brain(tmp_path / "halves")
    brain.interrupt_in = epoch
    with pytest.raises(KeyboardInterrupt):
        fit(brain)
    again = fit(make_brain(tmp_path / "halves"))
    start = make_brain(tmp_path / "start").modules
    for name, copied in again.pruning.distiller.teacher._copies.items():
        for key, value in start[name].state_dict().items():
            assert torch.equal(copied.state_dict()[key], value)
    for one, other in zip(
        whole.modules.parameters(), again.modules.parameters()
    ):
        assert torch.equal(one, other)
