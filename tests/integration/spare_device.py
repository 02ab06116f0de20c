"""A device that computes on the CPU and refuses to mix devices.

torch keeps one device type for backends that are written in Python. A tensor
of this one holds a tensor of the CPU, and whatever is computed with the first
is computed with the second. As on a GPU, an operation on tensors of both
devices is refused, but for scalars, copies and indices; whatever brings a
value to the CPU waits for the device, and is counted.

    with Spare() as spare:
        module.to(device())
        ...
    spare.waits      # one entry each: where in sb_prune, or None
"""

import functools
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _setup_privateuseone_for_python_backend,
)

NAME = "spare"
aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy}  # between devices, as their purpose is
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
READS = {  # what the CPU cannot know before the device has finished
    aten._local_scalar_dense,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
}


@functools.cache
def device():
    """The device; this process has it from now on."""
    _setup_privateuseone_for_python_backend(NAME)
    return torch.device(NAME, 0)


class Spare(TorchDispatchMode):
    """Inside, tensors can be made on the device.

    Attributes
    ----------
    waits : list of str or None
        For each time that the CPU waited for the device: file and function of
        sb_prune that made it wait, None where it was not sb_prune.
    """

    current = None

    def __init__(self):
        super().__init__()
        self.waits = []

    def __enter__(self):
        Spare.current = self
        return super().__enter__()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return _compute(op, args, kwargs or {})


class SpareTensor(torch.Tensor):
    """A tensor of the device, around one of the CPU."""

    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=device(),
        )

    def __init__(self, inside):
        self.inside = inside

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return _compute(op, args, kwargs or {})

    def __reduce_ex__(self, protocol):
        return on_spare_device, (self.inside.detach(), self.requires_grad)

    def __deepcopy__(self, memo):
        copied = on_spare_device(self.inside.clone(), self.requires_grad)
        copied.__dict__.update(
            {k: v for k, v in vars(self).items() if k != "inside"}
        )
        return memo.setdefault(id(self), copied)

    def __repr__(self):
        return f"SpareTensor({self.inside})"


def on_spare_device(inside, requires_grad=False):
    """What a saved tensor of the device is loaded as."""
    return SpareTensor(inside).requires_grad_(requires_grad)


torch.serialization.add_safe_globals([on_spare_device])


def _compute(op, args, kwargs):
    tensors = [
        leaf
        for leaf in tree_leaves((args, kwargs))
        if isinstance(leaf, torch.Tensor)
    ]
    is_spare = any(isinstance(x, SpareTensor) for x in tensors)
    if is_spare and op.overloadpacket not in COPIES:
        _refuse_mixed(op, tensors, args)
    if is_spare:
        _count_wait(op, args, kwargs)
    goes_to = kwargs.get("device")
    if goes_to is not None:
        is_spare = torch.device(goes_to).type == NAME
        kwargs = {**kwargs, "device": "cpu" if is_spare else goes_to}
    result = op(*_inside(args), **_inside(kwargs))
    written = _written(op, args, kwargs)
    if written is not None:
        return written
    if not is_spare:
        return result
    return tree_map_only(torch.Tensor, _wrapped, result)


def _inside(values):
    return tree_map_only(SpareTensor, lambda x: x.inside, values)


def _wrapped(tensor):
    return tensor if isinstance(tensor, SpareTensor) else SpareTensor(tensor)


def _refuse_mixed(op, tensors, args):
    if op.overloadpacket in INDEXED:  # indices may lie on the CPU
        tensors = [args[0], *args[2:3]]
    for tensor in tensors:
        if not isinstance(tensor, SpareTensor) and tensor.dim():
            raise RuntimeError(
                f"{op}: tensors on {device()} and on {tensor.device}, of shape "
                f"{tuple(tensor.shape)}"
            )


def _count_wait(op, args, kwargs):
    packet = op.overloadpacket
    to_cpu = (
        packet is aten._to_copy
        and torch.device(kwargs.get("device") or device()).type != NAME
    ) or (packet is aten.copy_ and not isinstance(args[0], SpareTensor))
    if (to_cpu or packet in READS) and Spare.current is not None:
        Spare.current.waits.append(_place())


def _place():
    """Innermost file and function of sb_prune that is running."""
    frame = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if "/sb_prune/" in file:
            return f"{file.rpartition('/sb_prune/')[2]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return None


def _written(op, args, kwargs):
    """What an operation in place gives back: the tensor itself."""
    for argument, value in zip(op._schema.arguments, args):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return value
    for argument in op._schema.arguments:
        written = argument.alias_info is not None and (
            argument.alias_info.is_write
        )
        if written and argument.name in kwargs:
            return kwargs[argument.name]
    return None
