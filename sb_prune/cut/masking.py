"""Masks: gates multiply weights while a model trains.

A masked module keeps its parameters. Only its class changes, to a subclass
whose `weight` is a property that returns the parameter times the gates. So
state dicts, optimizers and checkpoints see the original model, and `detach_`
restores the original class. All masked modules of a model share one
`GateValues`; a deepcopy of the model has its own.
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
        Declares the structures, which have one gate per unit.
    """

    def __init__(self, declaration):
        self._units = {s.name: s.units for s in declaration.structures}
        device = next(declaration.root.parameters()).device
        ones = torch.ones(declaration.total_units, device=device)
        self.set_(ones, [True] * len(self._units))

    def __getstate__(self):
        """Detaches the values, as torch only copies and saves leaf tensors."""
        pieces = {name: p.detach() for name, p in self._pieces.items()}
        return {**vars(self), "_pieces": pieces}

    def set_(self, values, is_open=None):
        """Sets the values of all gates.

        Arguments
        ---------
        values : torch.Tensor
            (N,), on the device of the model.
        is_open : list of bool, optional
            For each structure, whether all its gates are exactly 1. By default
            the values are compared, which waits for the device.
        """
        pieces = values.split(list(self._units.values()))
        if is_open is None:
            is_open = [bool((piece == 1).all()) for piece in pieces]
        self._pieces = dict(zip(self._units, pieces))
        self._open = dict(zip(self._units, is_open))

    def __getitem__(self, name):
        """Returns the gate values (units,) of a structure."""
        return self._pieces[name]

    def is_open(self, name):
        """Whether all gates of a structure are exactly 1."""
        return self._open[name]


def attach_(declaration):
    """Masks a model in place: from now on gates multiply its weights.

    Arguments
    ---------
    declaration : Declaration
        Declares what to mask, below its root.

    Returns
    -------
    GateValues
        With all gates open, that is 1. Change them with `set_`.

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
    """Removes all masks below a module, whose weights are untouched.

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
    """Whether any module below root is masked.

    Arguments
    ---------
    root : torch.nn.Module

    Returns
    -------
    bool
    """
    return any(isinstance(module, _Masked) for module in root.modules())


class _Factor:
    """The gates of one structure, expanded along one axis of a tensor.

    Arguments
    ---------
    structure : str
        Name of the structure.
    shape : sequence of int
        Shape of the result, which can be broadcast to that of the tensor.
    index : torch.Tensor or None
        (positions,) int, the gate of each position on the axis. None if
        position i belongs to gate i, or if one gate covers all; this is the
        usual case, in which a view replaces the gather.
    is_partial : bool
        Whether the mask leaves out some positions. Their index is that behind
        the last gate and stands for the value 1.
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
    """Makes the factor of a structure for one axis of a tensor."""
    if slices.dim is None:
        size, shape = tensor.numel(), tuple(tensor.shape)
    else:
        size = tensor.shape[slices.dim]
        shape = [1] * tensor.dim()
        shape[slices.dim] = size
    units, entries = slices.index.shape
    if units == 1 and entries == size:
        return _Factor(structure, [1] * tensor.dim(), None)
    owners, columns = (slices.index >= 0).nonzero(as_tuple=True)
    if len(owners) > size:
        raise ValueError(
            f"{slices.tensor}: {len(owners)} positions of a mask on an axis of "
            f"{size}"
        )
    index = torch.full((size,), units)
    index[slices.index[owners, columns]] = owners
    ordered = torch.equal(index, torch.arange(size))
    is_partial = len(owners) < size
    return _Factor(structure, shape, None if ordered else index, is_partial)


class _Masked:
    """Base of all classes made here, by which masked modules are known."""

    def __reduce_ex__(self, protocol):
        """Lets masked modules be copied and pickled.

        Their class is made at run time, so pickle could not import it: it
        refers to the original class and makes the masked one again.
        """
        _, _, *state = super().__reduce_ex__(protocol)
        made_of = _stock_class(self), *_masked_parts(self)
        return (_new_masked, made_of, *state)


def _mask_module(module, gates, factors, statistics):
    module._gates = gates
    module._factors = factors
    module._statistics = statistics
    module.__class__ = _masked_class(type(module), *_masked_parts(module))


def _masked_parts(module):
    """Returns the names of the masked tensors, and whether this is a norm."""
    return tuple(sorted(module._factors)), module._statistics is not None


def _stock_class(module):
    return type(module).__mro__[2]


@functools.lru_cache(maxsize=None)
def _masked_class(base, tensors, has_statistics):
    """Makes a subclass of base in which some tensors are read times gates.

    If it has statistics, it is a norm, and takes these over open entries.
    """
    members = {name: property(_reader(name)) for name in tensors}
    if has_statistics:
        members["forward"] = _norm_over_open
    return type(f"Masked{base.__name__}", (_Masked, base), members)


def _new_masked(*made_of):
    """Makes an empty instance of a masked class, for `copy` and `pickle`."""
    masked = _masked_class(*made_of)
    return masked.__new__(masked)


def _reader(name):
    def read(module):
        stock = module._parameters[name]
        # gates are multiplied first, as they are much smaller than the tensor
        return stock * _product(module._factors[name], module._gates).to(stock)

    return read


def _product(factors, gates):
    """Multiplies the gates of all structures that mask a tensor."""
    return functools.reduce(operator.mul, (f(gates) for f in factors))


def _norm_over_open(module, x):
    """LayerNorm with statistics over the open entries only.

    With all gates open it calls the native norm, so that the result is equal
    bit for bit. It does not if it is compiled, as torch.compile would compile
    the model again for every combination of open norms.
    """
    gates, factors = module._gates, module._statistics
    shape = module.normalized_shape
    if not torch.compiler.is_compiling() and all(
        gates.is_open(factor.structure) for factor in factors
    ):
        return F.layer_norm(x, shape, module.weight, module.bias, module.eps)
    dtype = torch.promote_types(x.dtype, module.weight.dtype)
    precise = torch.promote_types(dtype, torch.float32)  # like the native norm
    gate = _product(factors, gates).to(precise).expand(shape)
    dims = tuple(range(-len(shape), 0))
    # contiguous, like the output of the native norm: later layers are faster
    x = x.contiguous().to(precise)
    weight = gate / gate.sum().clamp_min(1e-6)  # weight of each entry
    mean = (x * weight).sum(dims, keepdim=True)
    centred = x - mean
    variance = (centred.square() * weight).sum(dims, keepdim=True)
    normal = centred * torch.rsqrt(variance + module.eps)
    scaled = normal * module.weight
    return (scaled if module.bias is None else scaled + module.bias).to(dtype)
