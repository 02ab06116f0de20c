"""State of the global random generators: read, restored, protected."""

import random
from contextlib import contextmanager

import numpy
import torch


def random_state():
    """State of the global generators of torch, CUDA, NumPy and Python.

    Returns
    -------
    dict
        Tensors and plain Python, which `torch.load` reads without running any
        code that a file brings along.
    """
    _, key, position, has_gauss, gauss = numpy.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": (key.tolist(), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_state(state):
    """Restores the global random generators.

    Arguments
    ---------
    state : dict
        From `random_state`. The CUDA generators are restored only where there
        are as many devices as then.
    """
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy.random.set_state(("MT19937", *state["numpy"]))
    random.setstate(state["python"])


@contextmanager
def generators_untouched():
    """Context after which the global generators are as they were before."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextmanager
def generators_seeded(seed):
    """Context with seeded global generators, after which they are as before.

    Arguments
    ---------
    seed : int
    """
    with generators_untouched():
        torch.manual_seed(seed)
        numpy.random.seed(seed % 2**32)
        random.seed(seed)
        yield
