"""Wrapped modules and training in several processes.

SpeechBrain's `fit` wraps the modules of a recipe in DistributedDataParallel and
torch.compile. Structures, masks, teacher and surgery work on the modules inside
these wrappers.
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

LAST_WAIT = 0.1  # s, during which other threads can take the interpreter lock


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
    if compiled:  # compiled code assumes masks and shapes that will change
        torch.compiler.reset()


def _is_compiled(module):
    return "_orig_mod" in module._modules


def process_count():
    """Number of processes that train together (the world size).

    Returns
    -------
    int
    """
    if is_distributed_initialized():
        return torch.distributed.get_world_size()
    return 1


def mean_over_processes(tensor):
    """Mean of a tensor over all processes; each of them must call this.

    Arguments
    ---------
    tensor : torch.Tensor
        On a device that the process group can communicate from.

    Returns
    -------
    torch.Tensor
        Equal bit for bit in every process.
    """
    total = ddp_all_reduce(tensor.clone(), torch.distributed.ReduceOp.SUM)
    return total / process_count()


def broadcast_(tensor):
    """Gives all processes the values of the first; each must call this.

    Arguments
    ---------
    tensor : torch.Tensor
        Changed in place, on a device that the process group communicates from.
    """
    if is_distributed_initialized():
        torch.distributed.broadcast(tensor, src=0)


def of_all_processes(value):
    """Gathers a value from each process; each of them must call this.

    Arguments
    ---------
    value : object
        Can be pickled.

    Returns
    -------
    list
        The values in the order of the ranks. Where only the main process runs
        (inside `run_on_main`), its own value alone.
    """
    if ddp_prevent_block():
        return [value]
    values = [None] * process_count()
    torch.distributed.all_gather_object(values, value)
    return values


def end_with_idle_threads():
    """Lets the threads of the process group finish before Python ends.

    A thread of gloo frees the tensors of a collective some time after the
    collective has returned, for which it needs the interpreter lock. If the
    interpreter is ending by then, the process aborts ("terminate called without
    an active exception", pytorch/pytorch#190489). So the process sleeps for a
    moment at its end. Destroying the group does not help, since a module
    wrapped in DistributedDataParallel keeps it alive.
    """
    if is_distributed_initialized():
        atexit.register(time.sleep, LAST_WAIT)
