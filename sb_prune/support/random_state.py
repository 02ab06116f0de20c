"""The global random generators: read, put back, left untouched."""

import random
from contextlib import contextmanager

import numpy
import torch


def random_state():
    """State of every global random generator.

    Returns
    -------
    dict
    """
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": numpy.random.get_state(legacy=False),
        "python": random.getstate(),
    }


def set_random_state(state):
    """Puts a `random_state` back.

    Arguments
    ---------
    state : dict
    """
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy.random.set_state(state["numpy"])
    random.setstate(state["python"])


@contextmanager
def generators_untouched():
    """Whatever is drawn inside does not move the global generators."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
