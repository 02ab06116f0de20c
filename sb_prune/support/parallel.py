"""Wrapped modules and several processes: what SpeechBrain leaves to us.

A recipe's fit wraps its modules in DistributedDataParallel and torch.compile;
structures, masks, teacher and surgery know the modules inside.
"""

import atexit
import time

import torch
from speechbrain.utils.distributed import (
    ddp_all_reduce,
    ddp_prevent_block,
    is_distributed_initialized,
)
from torch.nn.parallel import DistributedDataParallel

LAST_WAIT = 0.1  # s, in which the interpreter's lock is free


def unwrap(module):
    """The module inside DistributedDataParallel and torch.compile.

    Arguments
    ---------
    module : torch.nn.Module

    Returns
    -------
    torch.nn.Module

    Example
    -------
    >>> linear = torch.nn.Linear(1, 1)
    >>> unwrap(torch.compile(linear)) is linear
    True
    """
    while True:
        if isinstance(module, DistributedDataParallel):
            module = module.module
        elif _is_compiled(module):
            module = module._orig_mod
        else:
            return module


def unwrap_(modules):
    """Takes the wrappers off a recipe's modules, in place.

    Arguments
    ---------
    modules : dict
        Name -> module.
    """
    compiled = False
    for name, module in modules.items():
        compiled = compiled or any(map(_is_compiled, module.modules()))
        modules[name] = unwrap(module)
    if compiled:  # what was compiled knows masks and shapes that will change
        torch.compiler.reset()


def _is_compiled(module):
    return "_orig_mod" in module._modules


def process_count():
    """Number of processes that train together.

    Returns
    -------
    int
    """
    if is_distributed_initialized():
        return torch.distributed.get_world_size()
    return 1


def mean_over_processes(tensor):
    """Mean of a tensor over all processes; each of them must call.

    Arguments
    ---------
    tensor : torch.Tensor
        On the device that the processes communicate from.

    Returns
    -------
    torch.Tensor
        The same bits in every process.
    """
    total = ddp_all_reduce(tensor.clone(), torch.distributed.ReduceOp.SUM)
    return total / process_count()


def of_all_processes(value):
    """Gathers a picklable value of each process; each of them must call.

    Arguments
    ---------
    value : object

    Returns
    -------
    list
        By rank. The own value alone where only the main process runs
        (`run_on_main`), or there is but one.
    """
    if ddp_prevent_block():
        return [value]
    values = [None] * process_count()
    torch.distributed.all_gather_object(values, value)
    return values


def end_with_idle_threads():
    """Lets the threads of the process group finish before Python does.

    A thread of gloo drops the tensors of a collective after whoever waited
    for it went on; should the interpreter end meanwhile, waiting for its lock
    aborts the process ("terminate called without an active exception",
    pytorch/pytorch#190489). Destroying the group is no help to those who
    have wrapped a module in DistributedDataParallel, which keeps it alive.
    """
    if is_distributed_initialized():
        atexit.register(time.sleep, LAST_WAIT)
