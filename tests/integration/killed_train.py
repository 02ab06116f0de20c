"""A recipe's training script, killed (SIGKILL) at the start of one epoch.

Environment: TRAIN, the script (train.py); KILL_EPOCH; or KILL_PHASE=cut for
the moment after the cut; or KILL_SAVING for the moment when the first weights
below a folder of that name are written by half.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

import speechbrain as sb
import torch

from sb_prune import PruningMixin
from sb_prune.run.prune import FineTune

stock_start = PruningMixin.on_stage_start
stock_finetuning = FineTune.begin_
stock_save = torch.save


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def start(self, stage, epoch=None):
    if stage == sb.Stage.TRAIN and str(epoch) == os.environ.get("KILL_EPOCH"):
        kill()
    stock_start(self, stage, epoch)


def start_finetuning(self, run):
    if os.environ.get("KILL_PHASE") == "cut":
        kill()
    stock_finetuning(self, run)


def save(state, path, **kwargs):
    stock_save(state, path, **kwargs)
    folders = [parent.name for parent in Path(path).parents]
    if os.environ.get("KILL_SAVING") in folders:
        os.truncate(path, os.path.getsize(path) // 2)
        kill()


if __name__ == "__main__":
    PruningMixin.on_stage_start = start
    FineTune.begin_ = start_finetuning
    torch.save = save
    sys.argv[0] = os.environ.get("TRAIN", "train.py")
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
