"""Compares what a model computes before and after the cut."""

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


def first_tensor(output):
    """Selects the tensor that a module returns, or the first of several.

    Arguments
    ---------
    output : torch.Tensor, tuple or dict
        The output. Model outputs of transformers are dicts.

    Returns
    -------
    torch.Tensor

    Example
    -------
    >>> first_tensor({"masked": None, "embeddings": torch.ones(1)})
    tensor([1.])
    """
    if torch.is_tensor(output):
        return output
    values = output.values() if isinstance(output, dict) else output
    return next(value for value in values if torch.is_tensor(value))


@torch.no_grad()
def first_outputs(modules, forward):
    """Records what modules return when they are first called in a forward.

    It runs in `exact_arithmetic`.

    Further calls are ignored: in a beam search they depend on its earlier
    decisions, so that they cannot be compared.

    Arguments
    ---------
    modules : list of torch.nn.Module
        The modules to observe.
    forward : callable
        Runs the model. Takes no arguments.

    Returns
    -------
    list of torch.Tensor or None
        For each module the `first_tensor` of its output, None if it was not
        called.
    """
    outputs = {}

    def listen(module, args, output):
        outputs.setdefault(module, first_tensor(output).clone())

    handles = [module.register_forward_hook(listen) for module in modules]
    try:
        with exact_arithmetic():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return [outputs.get(module) for module in modules]


def largest_difference(before, after):
    """Compares what `first_outputs` returned for two states of a model.

    Arguments
    ---------
    before, after : list of torch.Tensor or None
        Outputs of the same modules. Outputs of different shapes are skipped:
        they were cut themselves, and the modules that read them are compared.

    Returns
    -------
    float
        Largest absolute difference of any output value; NaN if there is
        nothing to compare.

    Example
    -------
    >>> linear, x = torch.nn.Linear(1, 1), torch.ones(1, 1)
    >>> before = first_outputs([linear], lambda: linear(x))
    >>> with torch.no_grad():
    ...     _ = linear.bias.add_(2.0)
    >>> after = first_outputs([linear], lambda: linear(x))
    >>> round(largest_difference(before, after), 3)
    2.0
    """
    found = [difference for difference, _ in _pairs(before, after)]
    # of torch, as Python's max may pass over a NaN
    return torch.tensor(found).max().item() if found else float("nan")


def is_rounding(before, after):
    """Whether two states of a model differ by no more than rounding.

    Arguments
    ---------
    before, after : list of torch.Tensor or None
        As for `largest_difference`.

    Returns
    -------
    bool
        False also if there is nothing to compare.

    Example
    -------
    >>> exact = [torch.tensor([1.0, 300.0])]
    >>> is_rounding(exact, [torch.tensor([1.0, 300.002])])
    True
    >>> is_rounding(exact, [torch.tensor([1.0, 300.02])])
    False
    """
    pairs = _pairs(before, after)
    within = [difference <= allowed for difference, allowed in pairs]
    return bool(within) and all(within)


def tolerance(output):
    """Largest difference from an output that counts as rounding.

    Arguments
    ---------
    output : torch.Tensor
        Of a module in the masked model.

    Returns
    -------
    float

    Example
    -------
    >>> tolerance(torch.tensor([0.5, -20.0]))
    0.0002
    >>> tolerance(torch.tensor([0.5]).bfloat16())
    0.0625
    """
    # Each value is rounded relative to itself, but sums of large values may
    # cancel, so small ones have errors of the large ones. In fp32, 1e-5 is 84
    # times the machine epsilon. In bf16 and fp16 sums are in fp32 within an
    # operation, and only its result is rounded: 24 such models of 2 and 12
    # layers differed by 0 to 2.6 epsilons.
    largest = output.abs().max().item()
    return max(1e-5, 8 * torch.finfo(output.dtype).eps) * max(1.0, largest)


def _pairs(before, after):
    """(difference, tolerance) of each output that both states have alike."""
    return [
        ((_exact(a) - _exact(b)).abs().max().item(), tolerance(a))
        for a, b in zip(before, after)
        if a is not None and b is not None and a.shape == b.shape
    ]


def _exact(output):
    return output.cpu().double()  # not every device has doubles
