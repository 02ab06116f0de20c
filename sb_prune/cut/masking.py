"""Masks: gates multiply weights while a model trains.

A masked module keeps its parameters where they are; only its class changes,
to a subclass whose `weight` is a property that multiplies. Keys, order,
optimizers and checkpoints see the stock model, and `detach_` gives the class
back. Gates live in a `GateValues` that the instances share, so a deepcopy of
the model has gates of its own.
"""

import functools
import operator
from collections import defaultdict

import torch
from torch.nn import functional as F


class GateValues:
    """The gate values that all masks of one model read.

    Arguments
    ---------
    declaration : Declaration
        Whose gates these are.
    """

    def __init__(self, declaration):
        self._units = {s.name: s.units for s in declaration.structures}
        device = next(declaration.root.parameters()).device
        ones = torch.ones(declaration.total_units, device=device)
        self.set_(ones, [True] * len(self._units))

    def __getstate__(self):
        """For copies and files: values of a training step are no leaves."""
        pieces = {name: p.detach() for name, p in self._pieces.items()}
        return {**vars(self), "_pieces": pieces}

    def set_(self, values, is_open=None):
        """Takes new values for all gates.

        Arguments
        ---------
        values : torch.Tensor
            (N,), on the device of the model.
        is_open : list of bool, optional
            Per structure, whether all its gates are exactly 1; given, it
            saves reading the values back from the device.
        """
        pieces = values.split(list(self._units.values()))
        if is_open is None:
            is_open = [bool((piece == 1).all()) for piece in pieces]
        self._pieces = dict(zip(self._units, pieces))
        self._open = dict(zip(self._units, is_open))

    def __getitem__(self, name):
        """(units,) values of one structure."""
        return self._pieces[name]

    def is_open(self, name):
        """Whether all gates of a structure are exactly 1."""
        return self._open[name]


def attach_(declaration):
    """Lets gates multiply the weights of a model, in place.

    Arguments
    ---------
    declaration : Declaration
        What to mask, below its root.

    Returns
    -------
    GateValues
        All open. Set new values with `set_`.

    Raises
    ------
    ValueError
        If the model is masked already.

    Example
    -------
    >>> from torch import nn
    >>> from sb_prune.declare.structure import Declaration, Slices, Structure
    >>> linear = nn.Linear(3, 2, bias=False)
    >>> mask = Slices("weight", 1, torch.arange(3).view(3, 1))
    >>> inputs = Structure("inputs", "inputs", 3, masks=(mask,))
    >>> gates = attach_(Declaration(linear, ("",), (inputs,), None))
    >>> gates.set_(torch.tensor([1.0, 0.0, 1.0]))
    >>> bool((linear.weight[:, 1] == 0).all())
    True
    >>> detach_(linear)
    >>> bool((linear.weight[:, 1] != 0).all())
    True
    """
    root, gates = declaration.root, GateValues(declaration)
    if is_masked(root):
        raise ValueError("the model is masked already; call detach_ first")
    factors, statistics = defaultdict(list), defaultdict(list)
    for structure in declaration.structures:
        for mask in structure.masks:
            factors[mask.tensor].append(
                _factor(structure.name, mask, _tensor(root, mask))
            )
        for norm in structure.norms:
            weight = root.get_submodule(norm.tensor).weight
            statistics[norm.tensor].append(
                _factor(structure.name, norm, weight)
            )
    by_module = defaultdict(dict)
    for tensor, found in factors.items():
        module, _, name = tensor.rpartition(".")
        by_module[module][name] = found
    for name in by_module.keys() | statistics.keys():
        _mask_module(
            root.get_submodule(name),
            gates,
            by_module.get(name, {}),
            statistics.get(name),
        )
    return gates


def detach_(root):
    """Gives every masked module below root its stock class back.

    Arguments
    ---------
    root : torch.nn.Module
    """
    for module in root.modules():
        if isinstance(module, _Masked):
            for attribute in ("_gates", "_factors", "_statistics"):
                module.__dict__.pop(attribute)
            module.__class__ = _stock_class(module)


def is_masked(root):
    """Whether gates multiply the weights of any module below root.

    Arguments
    ---------
    root : torch.nn.Module

    Returns
    -------
    bool
    """
    return any(isinstance(module, _Masked) for module in root.modules())


class _Factor:
    """One gate vector, spread over a tensor.

    shape : broadcastable to the tensor.
    index : gate of each position; None if position i is gate i, or if one
    gate covers all. Most masks are such: then a view replaces the gather.
    is_partial : whether some positions have the index behind the last gate,
    which stands for 1.
    """

    def __init__(self, structure, shape, index, is_partial=False):
        self.structure = structure
        self.shape = shape
        self.index = index
        self.is_partial = is_partial

    def __call__(self, gates):
        values = gates[self.structure]
        if self.index is not None:
            if self.index.device != values.device:
                self.index = self.index.to(values.device)
            if self.is_partial:
                values = torch.cat([values, values.new_ones(1)])
            values = values.index_select(0, self.index)
        return values.view(self.shape)


def _tensor(root, mask):
    module, _, name = mask.tensor.rpartition(".")
    return getattr(root.get_submodule(module), name)


def _factor(structure, slices, tensor):
    """The factor of a structure that covers one axis of a tensor."""
    if slices.dim is None:
        size, shape = tensor.numel(), tuple(tensor.shape)
    else:
        size = tensor.shape[slices.dim]
        shape = [1] * tensor.dim()
        shape[slices.dim] = size
    units, entries = slices.index.shape
    if units == 1 and entries == size:
        return _Factor(structure, [1] * tensor.dim(), None)
    if units * entries > size:
        raise ValueError(
            f"{slices.tensor}: {units} x {entries} positions of a mask on an "
            f"axis of {size}"
        )
    index = torch.full((size,), units)
    index[slices.index.flatten()] = torch.arange(units).repeat_interleave(
        entries
    )
    ordered = torch.equal(index, torch.arange(size))
    is_partial = units * entries < size
    return _Factor(structure, shape, None if ordered else index, is_partial)


class _Masked:
    """Marks the classes made here."""

    def __reduce_ex__(self, protocol):
        """Copies and files name the stock class: this one has no place."""
        _, _, *state = super().__reduce_ex__(protocol)
        made_of = _stock_class(self), *_masked_parts(self)
        return (_new_masked, made_of, *state)


def _mask_module(module, gates, factors, statistics):
    module._gates = gates
    module._factors = factors
    module._statistics = statistics
    module.__class__ = _masked_class(type(module), *_masked_parts(module))


def _masked_parts(module):
    """Names of the tensors that are masked, and whether it is a norm."""
    return tuple(sorted(module._factors)), module._statistics is not None


def _stock_class(module):
    return type(module).__mro__[2]


@functools.lru_cache(maxsize=None)
def _masked_class(base, tensors, has_statistics):
    """A subclass of base whose named tensors are masked on every read."""
    members = {name: property(_reader(name)) for name in tensors}
    if has_statistics:
        members["forward"] = _norm_over_open
    return type(f"Masked{base.__name__}", (_Masked, base), members)


def _new_masked(*made_of):
    """An empty instance, for `copy` and `pickle` to fill."""
    masked = _masked_class(*made_of)
    return masked.__new__(masked)


def _reader(name):
    def read(module):
        stock = module._parameters[name]
        # the gates first: their product is much smaller than the tensor
        return stock * _product(module._factors[name], module._gates).to(stock)

    return read


def _product(factors, gates):
    """The product of all gates that cover a tensor."""
    return functools.reduce(operator.mul, (f(gates) for f in factors))


def _norm_over_open(module, x):
    """LayerNorm with statistics over the open entries only.

    With all gates open it is the native norm, bit for bit, unless compiled:
    torch.compile would compile again for every pattern of open norms.
    """
    gates, factors = module._gates, module._statistics
    shape = module.normalized_shape
    if not torch.compiler.is_compiling() and all(
        gates.is_open(factor.structure) for factor in factors
    ):
        return F.layer_norm(x, shape, module.weight, module.bias, module.eps)
    dtype = torch.promote_types(x.dtype, module.weight.dtype)
    precise = torch.promote_types(dtype, torch.float32)  # as the native norm
    gate = _product(factors, gates).to(precise).expand(shape)
    dims = tuple(range(-len(shape), 0))
    # contiguous, as the native norm leaves it: what follows is faster
    x = x.contiguous().to(precise)
    weight = gate / gate.sum().clamp_min(1e-6)  # of each entry in the mean
    mean = (x * weight).sum(dims, keepdim=True)
    centred = x - mean
    variance = (centred.square() * weight).sum(dims, keepdim=True)
    normal = centred * torch.rsqrt(variance + module.eps)
    return (normal * module.weight + module.bias).to(dtype)
