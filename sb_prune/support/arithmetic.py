"""How exactly torch computes, inside a context and after it."""

from contextlib import ExitStack, contextmanager
from functools import partial

import torch


@contextmanager
def exact_arithmetic():
    """Context in which models in fp32 compute in fp32.

    Masked and cut model differ by rounding only. How large that is depends on
    the arithmetic: autocast rounds to 8 or 11 bits, and so do products of fp32
    matrices in TF32 (on GPUs) or bf16 (oneDNN, on CPUs), which would hide a
    mistake of the same size. All these are switched off here, and back after.
    An autocast that the recipe enters itself stays as it is.

    Example
    -------
    >>> linear, x = torch.nn.Linear(1, 1), torch.ones(1, 1)
    >>> with torch.autocast("cpu"), exact_arithmetic():
    ...     linear(x).dtype
    torch.float32
    """
    with ExitStack() as stack:
        stack.enter_context(_full_precision())
        for device in _autocasting():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _autocasting():
    """Device types for which autocast is on."""
    accelerator = torch.accelerator.current_accelerator()
    types = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return [t for t in types if torch.is_autocast_enabled(t)]


@contextmanager
def _full_precision():
    """Context without TF32 and bf16 in operations on fp32 tensors.

    torch has two sets of switches, and raises an error where they contradict
    each other. So the old ones are set first, which sets some of the new ones,
    and then all of the new ones.
    """
    switches = _old_switches() + _new_switches()
    for _, write, exact in switches:
        write(exact)
    try:
        yield
    finally:
        for before, write, _ in switches:
            write(before)


def _old_switches():
    """Lists (value now, function that writes it, exact value)."""
    cudnn = torch.backends.cudnn
    found = []
    for read, write, exact in (
        (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "highest",
        ),
        (
            lambda: cudnn.allow_tf32,
            lambda value: setattr(cudnn, "allow_tf32", value),
            False,
        ),
    ):
        try:
            now = read()
        except RuntimeError:  # contradicted by a new one, which is what counts
            now = exact
        found.append((now, write, exact))
    return found


def _new_switches():
    """Lists the same for each kind of operation; none before torch 2.9."""
    backends = torch.backends
    operations = [
        getattr(backend, operation, None)
        for backend, operation in (
            (backends.cuda, "matmul"),
            (backends.cudnn, "conv"),
            (backends.cudnn, "rnn"),
            (backends.mkldnn, "matmul"),
            (backends.mkldnn, "conv"),
            (backends.mkldnn, "rnn"),
        )
    ]
    return [
        (
            operation.fp32_precision,
            partial(setattr, operation, "fp32_precision"),
            "ieee",
        )
        for operation in operations
        if hasattr(operation, "fp32_precision")
    ]
