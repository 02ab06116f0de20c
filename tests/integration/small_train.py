"""A small pruned recipe that writes down what each process saw.

    python small_train.py FOLDER BATCHES_PER_STEP [find_unused] [EXPORT]

or the same under torchrun. EXPORT is that of an earlier such run, which is
pruned further, past a milestone, and refitted. FOLDER gets, per rank,
`steps<rank>.pt` and, from whoever writes `export`, `export_by<rank>`.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import ddp_init_group
from speechbrain.utils.epoch_loop import EpochCounter

from sb_prune import (
    HardConcrete,
    LayerwiseDistillation,
    LeastSquares,
    PruningMixin,
    conformer_structures,
)
from sb_prune.export.folder import export_model

INFERENCE = Path(__file__).with_name("tiny_inference.yaml")
SCALARS = {"layers": 2, "dropout": 0.0}
RANK = int(os.environ.get("RANK", 0))
ALONE = os.environ.get("WORLD_SIZE", "1") == "1"
PATIENCE = 60  # seconds
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
    """The same recipe, pruned; it keeps every step of its gates."""

    steps = ()
    begun = 0  # batches

    def on_fit_batch_start(self, batch, should_step):
        self.begun += 1
        self.mark_of(RANK, self.begun).touch()
        super().on_fit_batch_start(batch, should_step)

    def mark_of(self, rank, batches):
        """A file that is there once a process has begun so many batches."""
        return Path(self.hparams.folder, f"begun_{batches}_by{rank}")

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

    def export(self, folder, *arguments, **facts):
        """Says who exports; a milestone only once the other has gone on."""
        place = Path(folder)
        place.with_name(f"{place.name}_by{RANK}").touch()
        if place.name != "export" and not ALONE:
            wait_for(self.mark_of(1, self.begun + 1))
        return export_model(folder, *arguments, **facts)


def wait_for(file):
    """Until another process has made it."""
    end = time.monotonic() + PATIENCE
    while not file.exists():
        assert time.monotonic() < end, f"nobody makes {file}"
        time.sleep(0.01)


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


def train(folder, batches_per_step, start_from=None, **run_opts):
    """Runs all phases; returns the Brain."""
    torch.manual_seed(RANK)  # what one process starts from, all must
    built = load_hyperpyyaml(INFERENCE.read_text(), SCALARS)
    modules = {name: built[name] for name in ("Transformer", "lin")}
    model = built["model"]
    counter = EpochCounter(3)
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
        "inference": str(INFERENCE),
        "export_folder": str(Path(folder, "export")),
    }
    if start_from is not None:
        pruning |= {"target": 0.7, "milestones": [0.6]}
        pruning |= {"start_from": start_from}
        pruning |= {"refit": partial(LeastSquares, utterances=5, reselect=True)}
    brain = RecordedRecipe(
        modules=modules,
        opt_class=partial(torch.optim.SGD, lr=0.01),
        # `sorting` keeps the order: rank r of n takes batches r, r + n, ...
        hparams={
            "pruning": pruning,
            "sorting": "ascending",
            "model": model,
            "folder": folder,
            **SCALARS,
        },
        run_opts={
            "device": "cpu",
            "noprogressbar": True,
            "grad_accumulation_factor": batches_per_step,
            **run_opts,
        },
        checkpointer=checkpointer,
    )

    with patch("sb_prune.run.publication.export_model", brain.export):
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
    folder, batches_per_step, *more = sys.argv[1:]
    find_unused = "find_unused" in more
    train(
        folder,
        int(batches_per_step),
        *(word for word in more if word != "find_unused"),
        find_unused_parameters=find_unused,
        **backend,
    )
