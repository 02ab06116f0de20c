"""A small pruned recipe that writes down what each process saw.

    python small_train.py FOLDER BATCHES_PER_STEP

or the same under torchrun. FOLDER gets, per rank, `steps<rank>.pt` and, from
whoever exports, `exported<rank>`.
"""

import os
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import speechbrain as sb
import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import ddp_init_group
from speechbrain.utils.epoch_loop import EpochCounter

from sb_prune import (
    HardConcrete,
    LayerwiseDistillation,
    PruningMixin,
    conformer_structures,
)

RANK = int(os.environ.get("RANK", 0))
BATCHES = 16
BAD_BATCH = 13  # rank 1 of 2 gets it: the last step of 4 in each epoch


class Recipe(sb.Brain):
    """A Conformer that regresses its targets; one loss is not finite."""

    def compute_forward(self, batch, stage):
        encoded, _ = self.modules.Transformer(batch["x"], None)
        return self.modules.lin(encoded)

    def compute_objectives(self, predictions, batch, stage):
        loss = (predictions - batch["y"]).square().mean()
        return loss + torch.nan if batch["index"] == BAD_BATCH else loss


class RecordedRecipe(PruningMixin, Recipe):
    """The same recipe, pruned; every step of its gates is kept."""

    steps = ()

    def optimizers_step(self):
        super().optimizers_step()
        pruner = self.pruning.steps.pruner
        if pruner is not None and pruner.logits.grad is not None:
            step = {
                "gates": pruner._sample.detach().clone(),
                "gradient": pruner.logits.grad.clone(),
                "logits": pruner.logits.detach().clone(),
            }
            self.steps += (step,)


class Batches(torch.utils.data.Dataset):
    """Whole batches as items, always the same."""

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "index": index,
            "x": torch.randn(2, 12, 6, generator=generator),
            "y": torch.randn(2, 12, 3, generator=generator),
        }


def make_modules():
    transformer = TransformerASR(
        tgt_vocab=4,
        input_size=6,
        d_model=16,
        nhead=4,
        num_encoder_layers=2,
        num_decoder_layers=0,
        d_ffn=32,
        kernel_size=5,
        dropout=0.0,
        encoder_module="conformer",
        attention_type="RelPosMHAXL",
        normalize_before=True,
        causal=False,
    )
    return {"Transformer": transformer, "lin": torch.nn.Linear(16, 3)}


def train(folder, batches_per_step, **run_opts):
    """Runs all phases; returns the Brain."""
    torch.manual_seed(RANK)  # what one process starts from, all must
    modules = make_modules()
    counter = EpochCounter(3)
    model = torch.nn.ModuleList(modules.values())
    checkpointer = Checkpointer(
        Path(folder, "save"), {"model": model, "counter": counter}
    )
    pruning = {
        "module": "Transformer",
        "structures": conformer_structures,
        "target": 0.5,
        "prune_epochs": 2,
        "schedule_steps": 3,
        "gates": partial(HardConcrete, initial=0.8),
        # linear in the gradient: rounding stays rounding
        "gate_optimizer": partial(torch.optim.SGD, lr=1.0),
        "distillation": partial(LayerwiseDistillation, outputs=["lin"]),
        "inference": "inference.yaml",
        "export_folder": str(Path(folder, "export")),
    }
    brain = RecordedRecipe(
        modules=modules,
        opt_class=partial(torch.optim.SGD, lr=0.01),
        # `sorting` keeps the order: rank r of n takes batches r, r + n, ...
        hparams={"pruning": pruning, "sorting": "ascending"},
        run_opts={
            "device": "cpu",
            "noprogressbar": True,
            "grad_accumulation_factor": batches_per_step,
            **run_opts,
        },
        checkpointer=checkpointer,
    )

    def export_model(folder, *arguments, **facts):
        Path(folder).with_name(f"exported{RANK}").touch()

    # what is exported is tested elsewhere; here, by which process
    with patch.multiple(
        "sb_prune.run.publication",
        prepare_document=lambda *arguments: None,
        check_fits=lambda *arguments: None,
        export_model=export_model,
    ):
        brain.fit(counter, Batches(), train_loader_kwargs={"batch_size": None})
    teacher = brain.pruning.distiller.teacher._copies["lin"]
    found = {
        "steps": brain.steps,
        "teacher": teacher.state_dict(),
        "model": model.state_dict(),
        "lin": type(brain.modules["lin"]),
    }
    torch.save(found, Path(folder, f"steps{RANK}.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    backend = {"distributed_backend": "gloo"}
    ddp_init_group(backend)
    train(
        sys.argv[1],
        int(sys.argv[2]),
        find_unused_parameters="find_unused" in sys.argv,
        **backend,
    )
