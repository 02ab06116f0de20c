"""Refits the weights that read the units that stay, before the others are cut.

A layer that reads pruned units computes something else than before, though much
of what these units told it can be told by those that stay. Least squares finds
the weights with which it comes closest, from a few utterances and without any
training, as in Kwon et al., "A Fast Post-Training Pruning Framework for
Transformers", NeurIPS 2022 (2204.09656, section 4.3).

This is done before they are cut, while masks close them.
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from sb_prune.cut.selection import keep_best
from sb_prune.cut.settled import Settled
from sb_prune.declare.plan import Plan
from sb_prune.support.arithmetic import exact_arithmetic
from sb_prune.support.values import Number, Whole, YesNo, checked

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
ROUNDING = 1e-6  # of sums in float32; a smaller ridge may leave them singular


class LeastSquares:
    """Fits the weights that read pruned units to what they computed before.

    For each linear or convolutional layer that reads units of which some go,
    in the order in which data flow, it solves

        min || X W - Y ||^2 + ridge mean(diag(X^T X)) || W - W_0 ||^2

    over utterances, where X are the units that stay, in the model that is
    pruned and refitted up to this layer, Y is what the layer would give there
    if it read all units, and W_0 are its weights now. Some layers are left as
    they are: convolutions with groups, and the output of attention that torch
    computes as one function (regularMHA, WavLM).

    Arguments
    ---------
    utterances : int
        How many at most, chosen at random from the training data.
    per_input : int
        How many times as many frames as inputs (in a decoder, tokens) are
        enough for a layer; it hears no more utterances then.
    ridge : float
        How much a weight must help before it changes.
    reselect : bool
        Whether to choose anew, just before a layer is fitted, which of the
        units that it alone reads go (`selection.keep_best`): as many as
        before, inside each head too. A score says how many units of each
        structure matter, but not which of them tell the same as others. Heads
        whose dims are units themselves stay as the score chose them.

    Example
    -------
    >>> from sb_prune import Plan, attach_
    >>> from sb_prune.declare.structure import Declaration, Slices, Structure
    >>> first, second = torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)
    >>> with torch.no_grad():  # both units tell the same
    ...     _ = first.weight.fill_(1.0), first.bias.fill_(0.0)
    >>> model, x = torch.nn.Sequential(first, second), torch.rand(9, 1)
    >>> before = model(x)
    >>> reads = Slices("1.weight", 1, torch.tensor([[0], [1]]))
    >>> units = Structure("units", "units", 2, masks=(reads,))
    >>> declaration = Declaration(model, ("",), (units,), None)
    >>> gates = attach_(declaration)
    >>> plan, fitted = LeastSquares(utterances=1, ridge=0.0).refit_(
    ...     declaration,
    ...     Plan({"units": torch.tensor([True, False])}),
    ...     lambda plan: gates.set_(plan.values(declaration)),
    ...     [lambda: model(x)],
    ... )
    >>> torch.allclose(model(x), before, atol=1e-5)
    True
    """

    @checked
    def __init__(
        self,
        utterances: Whole(1) = 256,
        per_input: Whole(1) = 8,
        ridge: Number(least=0) = 1e-3,
        reselect: YesNo() = False,
    ):
        self.utterances = utterances
        self.per_input = per_input
        self.ridge = ridge
        self.reselect = reselect

    @torch.no_grad()
    def refit_(self, declaration, plan, binarise, forwards):
        """Refits a masked model in place, and leaves its gates at the plan.

        Arguments
        ---------
        declaration : Declaration
            Of the masked model.
        plan : Plan
            The units that stay.
        binarise : callable
            Plan -> sets the gates to it.
        forwards : list of callable
            Each runs the model on other data, and on the same ones whenever it
            is called. They take no arguments.

        Returns
        -------
        plan : Plan
            The units that stay; those of the argument unless `reselect`.
        weights : list of torch.nn.Parameter
            Those that were fitted.
        """
        fitted = []
        with exact_arithmetic():
            binarise(plan)
            readers = _readers(declaration, plan)
            order = _in_order(readers, forwards[0])
            settled = Settled(declaration.root, order)
            stock = {}  # fitted layer -> (its weight before, what it reads)
            for layer in order:
                weight, read = readers[layer]
                chosen = self._chosen_anew(declaration, plan, weight, read)
                problem = _NormalEquations(
                    layer,
                    _inputs_that_stay(
                        declaration, _with_open(plan, chosen), weight, read
                    ),
                )
                read = _and_inside(declaration, read)
                is_read_elsewhere = _is_read_elsewhere(read, weight)
                opened = _with_open(plan, read)
                before = _reading(read, stock)
                if len(_reading(read, readers)) > 1:  # that it reads, too
                    stock[layer] = _weight_of(layer).clone(), read
                for number, forward in enumerate(forwards):
                    if problem.rows >= self.per_input * problem.inputs:
                        break
                    binarise(plan)
                    with settled.replaying(number):
                        given, _ = _heard(layer, forward)
                    binarise(opened)
                    if is_read_elsewhere:  # so the layer was given other values
                        with _with_weights(stock, before):
                            _, wanted = _heard(layer, forward)
                    else:
                        wanted = layer(given)
                    problem.add_(given, wanted)
                for structure in chosen if problem.heard_any else []:
                    kept = problem.keep_best_(
                        _entries(structure, weight),
                        *_groups(declaration, plan, structure),
                        self.ridge,
                    )
                    plan = Plan({**plan.keep, structure.name: kept})
                fitted.append(problem.solve_(self.ridge))
                settled.finish_(layer)
            binarise(plan)
        return plan, fitted

    def _chosen_anew(self, declaration, plan, weight, read):
        """Structures whose units only this layer reads, each by itself."""
        if not self.reselect:
            return []
        return [
            structure
            for structure in read
            if structure.is_leaf
            and not _is_read_elsewhere([structure], weight)
            and (_entries(structure, weight) >= 0).all()
        ]


class _NormalEquations:
    """What least squares needs to know of one layer, summed over utterances.

    Arguments
    ---------
    layer : torch.nn.Module
    inputs : torch.Tensor
        (inputs,) bool, those that may be read.
    """

    def __init__(self, layer, inputs):
        self._layer = layer
        self._weight = _weight_of(layer)
        self._size = self._weight[0, 0].numel()  # weights of an input
        self._read = inputs.repeat_interleave(self._size)
        read, outputs = int(self._read.sum()), len(self._weight)
        self._gram = torch.zeros(read, read).double()
        self._moment = torch.zeros(read, outputs).double()
        self.inputs, self.rows = read, 0  # the unknowns of an output, and rows

    def add_(self, given, wanted):
        """Adds what the layer is given, and what it shall give for it."""
        x = _rows(self._layer, given)[:, self._read.to(given.device)]
        channels = -1 if isinstance(self._layer, nn.Linear) else 1
        y = wanted.movedim(channels, -1).reshape(len(x), -1)
        if self._layer.bias is not None:
            y = y - self._layer.bias
        self.rows += len(x)
        self._gram += (x.T @ x).cpu().double()
        self._moment += (x.T @ y).cpu().double()

    @property
    def heard_any(self):
        """Whether the layer was given anything but zeros."""
        return bool(self._gram.any())

    def keep_best_(self, units, group_of, counts, ridge):
        """Chooses which units stay; the inputs of the others are forgotten.

        Arguments
        ---------
        units : torch.Tensor
            (units, entries) int64, the inputs of each.
        group_of, counts : torch.Tensor
            As for `keep_best`.
        ridge : float

        Returns
        -------
        torch.Tensor
            (units,) bool
        """
        may = self._read[units * self._size].all(1)  # not in a removed head
        places = self._read.cumsum(0) - 1  # among the inputs that are read
        steps = torch.arange(self._size)
        entries = (units.unsqueeze(2) * self._size + steps).flatten(1)
        best = keep_best(
            self._ridged(ridge),
            self._solution(ridge),
            places[entries[may]],
            group_of[may],
            counts,
        )
        kept = torch.zeros(len(units)).bool()
        kept[may] = best
        self._forget_(entries[may & ~kept].flatten())
        return kept

    def _forget_(self, inputs):
        before = self._read.clone()
        self._read[inputs] = False
        left = self._read[before]
        self._gram = self._gram[left][:, left]
        self._moment = self._moment[left]

    def _ridged(self, ridge):
        penalty = self._penalty(ridge)
        return self._gram + penalty * torch.eye(len(self._gram))

    def _penalty(self, ridge):
        return (ridge + ROUNDING) * self._gram.diagonal().mean()

    def _solution(self, ridge):
        """(inputs, outputs), the best weights."""
        flat = self._weight.view(len(self._weight), -1)
        first = flat[:, self._read.to(flat.device)].cpu().double().T
        if not self.heard_any:
            return first
        return torch.linalg.solve(
            self._ridged(ridge), self._moment + self._penalty(ridge) * first
        )

    def solve_(self, ridge):
        """Writes the best weights into the layer, and returns them."""
        flat = self._weight.view(len(self._weight), -1)
        flat[:, self._read.to(flat.device)] = self._solution(ridge).T.to(flat)
        return self._weight


def _weight_of(layer):
    return layer._parameters["weight"]  # without the gates


def _reading(structures, layers):
    """Those of some layers, each with what it reads, that read one of these."""
    return [
        layer
        for layer, (_, read) in layers.items()
        if any(structure in structures for structure in read)
    ]


@contextmanager
def _with_weights(stock, layers):
    """Context in which some fitted layers have the weights of before."""
    fitted = [_weight_of(layer).clone() for layer in layers]
    for layer in layers:
        _weight_of(layer).copy_(stock[layer][0])
    try:
        yield
    finally:
        for layer, weight in zip(layers, fitted):
            _weight_of(layer).copy_(weight)


class _Heard(Exception):  # noqa: N818 (no error: it ends a forward early)
    """Raised once a layer was called, as the rest need not run."""


def _heard(layer, forward):
    """What a layer is given, and what it gives, in its first call."""
    call = []

    def listen(module, args, output):
        call.extend([args[0], output])
        raise _Heard

    _run([layer], listen, forward)
    return call


def _in_order(layers, forward):
    """Those of the layers that a forward calls, in this order."""
    called = []

    def listen(module, args, output):
        if module not in called:
            called.append(module)
        if len(called) == len(layers):
            raise _Heard

    _run(layers, listen, forward)
    return called


def _run(layers, listen, forward):
    """Runs a forward with a hook on layers, which may end it."""
    handles = [layer.register_forward_hook(listen) for layer in layers]
    try:
        forward()
    except _Heard:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _readers(declaration, plan):
    """Layer that reads units of which some go -> (its weight, structures)."""
    found = {}
    for structure in declaration.structures:
        if structure.removes or not plan.is_open(structure, declaration):
            continue
        if plan.kept(structure, declaration).all():
            continue
        for mask in structure.masks:
            name, _, tensor = mask.tensor.rpartition(".")
            layer = declaration.root.get_submodule(name)
            if mask.dim == 1 and tensor == "weight" and _can_be_fitted(layer):
                _, structures = found.setdefault(layer, (mask.tensor, []))
                structures.append(structure)
    return found


def _can_be_fitted(layer):
    if "weight" not in layer._parameters:  # it is made of others
        return False
    if isinstance(layer, CONVOLUTIONS):
        return layer.groups == 1
    return isinstance(layer, nn.Linear)


def _inputs_that_stay(declaration, plan, weight, structures):
    """(inputs,) bool, of a layer, by the name of its weight."""
    stays = torch.ones(declaration.shapes[weight][1]).bool()
    for structure in structures:
        goes = ~plan.kept(structure, declaration)
        entries = _entries(structure, weight)[goes]
        stays[entries[entries >= 0]] = False
    return stays


def _entries(structure, weight):
    """(units, entries) inputs of a layer that each unit is, -1 for none."""
    return torch.cat(
        [
            mask.index
            for mask in structure.masks
            if (mask.tensor, mask.dim) == (weight, 1)
        ],
        dim=1,
    )


def _groups(declaration, plan, structure):
    """(units,) the unit of the holder they are in; how many stay in each."""
    sizes = torch.tensor(declaration.inside(structure))
    group_of = torch.arange(len(sizes)).repeat_interleave(sizes)
    return group_of, plan.kept_inside(structure, declaration)


def _and_inside(declaration, structures):
    """Structures, and those that their units hold."""
    inside = [
        structure
        for structure in declaration.structures
        if declaration.holder(structure) in structures
    ]
    return [*structures, *inside]


def _is_read_elsewhere(structures, weight):
    """Whether units change more than what a layer makes of its input."""
    return any(
        structure.norms
        or any((m.tensor, m.dim) != (weight, 1) for m in structure.masks)
        for structure in structures
    )


def _with_open(plan, structures):
    """The plan, but with all units of some structures."""
    names = [structure.name for structure in structures]
    opened = {name: torch.ones_like(plan.keep[name]) for name in names}
    return Plan({**plan.keep, **opened})


def _rows(layer, x):
    """(frames, inputs) that a layer multiplies by its weights."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    modes = {"zeros": "constant"}
    mode = modes.get(layer.padding_mode, layer.padding_mode)
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    if isinstance(layer, nn.Conv1d):
        x = x.unsqueeze(2)
    ones = (1,) * (2 - len(layer.kernel_size))
    patches = F.unfold(
        x,
        (*ones, *layer.kernel_size),
        dilation=(*ones, *layer.dilation),
        stride=(*ones, *layer.stride),
    )
    return patches.mT.reshape(-1, patches.shape[1])
