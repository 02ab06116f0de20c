"""A recipe of a second, and processes in which something happens to it.

`Runs` forks each run from a process that has imported everything. What a run
does to its folder, and each batch, is an *event*; events are counted, so that
a fault can be put between any two of them.
"""

import errno
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import speechbrain as sb
import torch
import torch._dynamo  # what an optimizer's first step imports for seconds
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.transformer import TransformerASR  # noqa: F401
from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from sb_prune import (
    LayerwiseDistillation,
    PruningMixin,
    conformer_structures,
)
from sb_prune.depth import LastLayers

torch.set_num_threads(1)

INFERENCE = Path(__file__).with_name("tiny_inference.yaml")
BATCHES = 4  # in an epoch


class Utterances(torch.utils.data.Dataset):
    """Random features, newly disturbed whenever they are read."""

    def __len__(self):
        return 2 * BATCHES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        clean = torch.randn(9, 9, generator=generator)
        noise = 0.1 * torch.randn(9, 6)
        return {"x": clean[:, :6] + noise, "y": clean[:, 6:]}


class Recipe(sb.Brain):
    """A Conformer that regresses its targets, with dropout."""

    def compute_forward(self, batch, stage):
        phase = self.checkpointer.checkpoints_dir.name
        sys.audit("recipe.batch", f"{phase} {stage.name}")
        encoded, _ = self.modules.Transformer(batch["x"], None)
        return self.modules.lin(encoded)

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch["y"]).square().mean()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.hparams.scheduler(self.optimizer)

    def on_stage_start(self, stage, epoch=None):
        if stage == sb.Stage.TRAIN:
            logging.info("EPOCH %d", epoch)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only(
                meta={"loss": stage_loss, "epoch": epoch}, min_keys=["loss"]
            )


class PrunedRecipe(PruningMixin, Recipe):
    """The same recipe, pruned."""


def train(
    folder, dense=None, options=None, layers_removed=0, alone=False, **block
):
    """What a train.py does.

    Arguments
    ---------
    folder : Path
        The output folder.
    dense : Path, optional
        Output folder of a dense run; pruning starts from it.
    options : dict, optional
        Run options of the Brain.
    layers_removed : int
        If any, the model has two layers more, none of them trained before, and
        a `layer_pruning` block leaves so many out.
    alone : bool
        Without a `pruning` block beside that one.
    block : dict
        Changes in the `pruning` block, or in that one if it stands alone.
    """
    sb.utils.seed.seed_everything(0)
    scalars = {"layers": 3 if layers_removed else 1, "dropout": 0.1}
    built = load_hyperpyyaml(INFERENCE.read_text(), scalars)
    counter, scheduler = EpochCounter(4), NoamScheduler(0.002, 10)
    hparams = {"scheduler": scheduler, "model": built["model"], **scalars}
    publication = {
        "inference": str(INFERENCE),
        "export_folder": str(folder / "export"),
    }
    if dense is not None and not alone:
        hparams["pruning"] = {
            "module": "Transformer",
            "structures": conformer_structures,
            "target": 0.5,
            "prune_epochs": 2,
            "schedule_steps": 4,
            "start_from": str(dense / "save"),
            "gate_optimizer": partial(torch.optim.Adam, lr=0.1),
            "distillation": partial(LayerwiseDistillation, outputs=["lin"]),
            **publication,
            **block,
        }
    if layers_removed:
        hparams.get("pruning", {}).pop("start_from", None)
        hparams["layer_pruning"] = {
            "module": "Transformer",
            "structures": conformer_structures,
            "criterion": LastLayers(removed=layers_removed),
            **(publication if alone else {}),
            **(block if alone else {}),
        }
    brain = PrunedRecipe(
        modules={name: built[name] for name in ("Transformer", "lin")},
        opt_class=partial(torch.optim.Adam, lr=0.002),
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True, **(options or {})},
        checkpointer=Checkpointer(
            folder / "save",
            {
                "model": built["model"],
                "counter": counter,
                "scheduler": scheduler,
            },
        ),
    )
    loader = {"batch_size": 2}
    brain.fit(
        counter,
        Utterances(),
        Utterances(),
        train_loader_kwargs={**loader, "shuffle": True},
        valid_loader_kwargs=dict(loader),
    )
    brain.evaluate(
        Utterances(), min_key="loss", test_loader_kwargs=dict(loader)
    )


# ------------------------------------------------------------------- faults


class Events:
    """Counts what a run does to a folder, and lets something happen.

    Arguments
    ---------
    folder : Path
        The output folder.
    at : int, optional
        Number of the event at which the fault comes; it comes *in* the event:
        a file is there and empty, a weights file is there by half.
    fault : callable
        Called with the file, or None.
    """

    def __init__(self, folder, at=None, fault=None):
        self.folder = str(folder)
        self.labels = []
        self._at, self._fault = at, fault
        self._removing = ""
        self._stock_save = torch.save

    def watch_(self):
        """From now on, until the process ends."""
        torch.save = self._save
        sys.addaudithook(self._hear)

    def _save(self, state, path, **kwargs):
        self._stock_save(state, path, **kwargs)
        sys.audit("recipe.save", str(path))

    def _hear(self, event, arguments):
        if event == "shutil.rmtree":
            self._removing = str(arguments[0])
        elif event in ("os.remove", "os.rmdir"):
            path = os.path.join(self._removing, os.fspath(arguments[0]))
            self._count("remove", path)
        elif event in ("os.mkdir", "recipe.save"):
            self._count(event.split(".")[1], os.fspath(arguments[0]))
        elif event == "os.rename":
            self._count("rename", os.fspath(arguments[1]))
        elif event == "open" and _writes(*arguments):
            self._count("open", os.fspath(arguments[0]))
        elif event == "recipe.batch":
            self._count("batch", os.path.join(self.folder, arguments[0]))

    def _count(self, kind, path):
        if not path.startswith(self.folder):
            return
        self.labels.append(f"{kind} {os.path.relpath(path, self.folder)}")
        if len(self.labels) - 1 == self._at:
            self._at = None
            self._fault(kind, path)


def _writes(path, mode, flags):
    if not isinstance(path, (str, os.PathLike)):
        return False
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


def kill(kind, path):
    """SIGKILL in the middle of a file-system operation."""
    _tear(kind, path)
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(kind, path):
    """What one hears from a full disk, torch's writer included."""
    _tear(kind, path)
    if kind == "save":
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def limit_file_size(kind, path):
    """From now on the system refuses to write a file of usual size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def _tear(kind, path):
    if kind == "open":
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
    elif kind == "save":
        os.truncate(path, os.path.getsize(path) // 2)


def _child(folder, log, events, dense, options, block):
    target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    logging.basicConfig(level=logging.INFO, force=True)
    events.watch_()
    train(folder, dense, options, **block)
    Path(log).with_suffix(".json").write_text(json.dumps(events.labels))


class Runs:
    """Starts runs in processes of their own.

    Arguments
    ---------
    dense : Path, optional
        Output folder of the dense run that pruning starts from.
    """

    def __init__(self, dense=None):
        self.dense = dense
        # not from here: a process that has used CUDA cannot be forked
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        path = os.pathsep.join(sys.path)  # Python 3.11 does not pass it on
        with mock.patch.dict(os.environ, PYTHONPATH=path):
            forkserver.ensure_running()

    def start(self, folder, at=None, fault=kill, options=None, **block):
        """Runs `train` to its end, or to a fault.

        Returns
        -------
        int
            Exit code of the process; -9 after a SIGKILL.
        """
        log = folder.with_name(folder.name + ".log")
        folder.mkdir(parents=True, exist_ok=True)
        events = Events(folder, at, fault)
        process = self._context.Process(
            target=_child,
            args=(folder, log, events, self.dense, options, block),
        )
        process.start()
        process.join()
        return process.exitcode


def events_of(folder):
    """Labels of the events of the last run that ended."""
    return json.loads(folder.with_name(folder.name + ".json").read_text())


def log_of(folder):
    """What all runs in the folder have said."""
    return folder.with_name(folder.name + ".log").read_text()
