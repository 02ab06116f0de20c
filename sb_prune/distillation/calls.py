"""A call of a module, recorded so that a copy of the module can replay it."""

from contextlib import nullcontext

import torch
from torch.utils._pytree import tree_leaves, tree_map


class Call:
    """One call of a module of the student, and later of the teacher's copy.

    Arguments
    ---------
    name : str
        Name of the module.
    args : tuple
    kwargs : dict
    output : object
        What the module returned: a tensor, or tuples, lists and dicts of them.
    producers : dict
        id of a tensor -> the earlier call that it is an output of.
    entered : dict, optional
        id of a tensor -> its version when the module was called, which may
        change its input in place, as the teacher's copy then does.

    Attributes
    ----------
    loose : Call or None
        This call, or one that leads to it, if nobody can replay that: the
        recipe computes its input from outputs of the student, between calls.
    """

    def __init__(self, name, args, kwargs, output, producers, entered=None):
        self.name = name
        self.output = output
        self.hidden = []  # (stack, tensor) of the teacher's layers
        self.is_replayed = False
        self.replay = None  # what the teacher's copy returned
        self._arguments = (args, kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)]
        self.sources = {
            id(t): producers[id(t)] for t in tensors if id(t) in producers
        }
        self._entered = entered or {}
        self._made = {id(t): _version(t) for t in self.outputs()}
        self._versions = [
            (t, _version(t)) for t in tensors if id(t) not in producers
        ]
        before = (source.loose for source in self.sources.values())
        self.loose = next(filter(None, before), None)
        if any(map(self._is_computed_outside, tensors)):
            self.loose = self
        self._autocast = _autocast(tensors[0].device.type) if tensors else None
        self._replays = {}  # id of a tensor of the output -> the teacher's

    def _is_computed_outside(self, tensor):
        """Whether it is of the student, but not as a module returned it."""
        source = self.sources.get(id(tensor))
        if source is None:
            return tensor.requires_grad
        entered = self._entered.get(id(tensor), _version(tensor))
        return entered != source._made[id(tensor)]

    def origin(self):
        """The call whose output is the first argument of this one.

        Returns
        -------
        (Call or None, int or None)
            The call, and which of its outputs that is.
        """
        for tensor, source in self.sources.items():
            made = [id(t) for t in source.outputs()]
            return source, made.index(tensor)
        return None, None

    def outputs(self):
        """Lists the tensors that the module returned."""
        return [tensor for tensor, _ in _pairs(self.output, self.output)]

    def replay_(self, module):
        """Calls the teacher's copy of the module.

        An argument that is an output of another call is replaced by the
        teacher's output of that call, which must have been replayed.

        Arguments
        ---------
        module : torch.nn.Module
            The teacher's copy.

        Raises
        ------
        RuntimeError
            If an argument changed after the student's module was called.
        """
        self._check_unchanged()
        args, kwargs = tree_map(self._translated, self._arguments)
        with torch.no_grad(), self._same_precision():
            self.replay = module(*args, **kwargs)
        self._replays = {
            id(tensor): own for tensor, own in _pairs(self.output, self.replay)
        }
        self.is_replayed = True

    def _translated(self, value):
        source = self.sources.get(id(value))
        return source._replays.get(id(value), value) if source else value

    def _check_unchanged(self):
        if any(_version(t) != before for t, before in self._versions):
            raise RuntimeError(
                f"distillation: an input of {self.name} is changed in place "
                "after the call, so the teacher cannot read it; change a copy"
            )

    def _same_precision(self):
        """Autocast as it was when the student's module was called."""
        if self._autocast is None:
            return nullcontext()
        device, enabled, dtype = self._autocast
        if self._autocast == _autocast(device):
            return nullcontext()
        return torch.autocast(device, dtype=dtype, enabled=enabled)


def versions(arguments):
    """Counts the changes in place of tensors so far.

    Arguments
    ---------
    arguments : object
        Tensors in tuples, lists and dicts.

    Returns
    -------
    dict
        id of each tensor -> int, or None where torch does not count.
    """
    tensors = filter(torch.is_tensor, tree_leaves(arguments))
    return {id(tensor): _version(tensor) for tensor in tensors}


def _version(tensor):
    """Counts the changes in place of a tensor, where torch does."""
    return None if tensor.is_inference() else tensor._version


def _autocast(device):
    return (
        device,
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
    )


def _pairs(output, other):
    """Yields the tensors of an output, each beside that of another one."""
    if torch.is_tensor(output) and torch.is_tensor(other):
        yield output, other
    elif isinstance(output, (tuple, list)):
        for one, another in zip(output, other):
            yield from _pairs(one, another)
    elif isinstance(output, dict):
        for key in output:
            yield from _pairs(output[key], other[key])
