"""Surgery: cuts a model down to a plan, in place.

Modules keep their class wherever it can run with fewer units: only weights and
a few attributes change. Modules that are removed as a whole are replaced by
`Absent`, so that no tensor of size 0 is ever made.
"""

from collections import defaultdict
from itertools import chain

import torch
from torch import nn

from sb_prune.cut.masking import is_masked
from sb_prune.declare.structure import tensor_of


class Absent(nn.Module):
    """Takes the place of a removed module and adds zero to the residual.

    Arguments
    ---------
    stock : torch.nn.Module, optional
        The removed module. It is not kept.
    extra_outputs : int
        Number of further outputs of that module; they become None.
    **attributes
        Attributes of that module that other modules read.

    Example
    -------
    >>> Absent()(torch.ones(2, 3))
    tensor(0.)
    """

    def __init__(self, stock=None, extra_outputs=0, **attributes):
        super().__init__()
        self.extra_outputs = extra_outputs
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *args, **kwargs):
        """Returns zero, and None for each further output.

        Arguments
        ---------
        *args, **kwargs
            Arguments of the removed module. The first must be a tensor, whose
            dtype and device the zero gets.

        Returns
        -------
        torch.Tensor, or tuple of it and None
        """
        zero = self.zero(next(chain(args, kwargs.values())))
        if not self.extra_outputs:
            return zero
        return (zero,) + (None,) * self.extra_outputs

    def zero(self, x):
        """Returns a scalar zero with the dtype and on the device of x."""
        return x.new_zeros(())


class FewerLayers(nn.ModuleList):
    """A ModuleList without some of its modules; the others keep their names.

    Example
    -------
    >>> layers = nn.ModuleList([nn.Identity(), nn.Tanh(), nn.ReLU()])
    >>> layers.__class__ = FewerLayers
    >>> del layers._modules["1"]
    >>> len(layers), layers[-1], [name for name, _ in layers.named_children()]
    (2, ReLU(), ['0', '2'])
    """

    def __getitem__(self, index):
        """Selects by position among the modules that are left."""
        found = list(self)[index]
        return nn.ModuleList(found) if isinstance(index, slice) else found


def leave_out(stock):
    """Factory for `Structure.removes` that replaces a layer by nothing."""
    return None


@torch.no_grad()
def cut_(declaration, plan):
    """Cuts the root of a declaration down to a plan, in place.

    The declaration describes the model before the cut and cannot be used
    afterwards. Kept slices are copied to new tensors, which keep the value of
    `requires_grad` and their device (it may be meta).

    Arguments
    ---------
    declaration : Declaration
        Of the model before the cut.
    plan : Plan
        The units that stay.

    Raises
    ------
    ValueError
        If the plan does not fit the declaration, or the model is masked or has
        changed since it was declared. Nothing is cut then.
    """
    plan.check(declaration)
    _check_can_be_cut(declaration)
    root = declaration.root
    gone = defaultdict(list)  # (tensor, axis) -> positions to remove
    adapted = {}
    for structure in declaration.structures:
        if not plan.is_open(structure, declaration):
            continue
        kept = plan.kept(structure, declaration)
        if kept.all():
            continue
        for name, factory in structure.removes:
            _replace_module(root, name, factory)
        if structure.removes:
            continue
        for cut in structure.cuts:
            gone[cut.tensor, cut.dim].append(cut.index[~kept].flatten())
        for name, attribute in structure.counts:
            setattr(root.get_submodule(name), attribute, int(kept.sum()))
        for name, attribute in structure.positions:
            module = root.get_submodule(name)
            stay = kept.nonzero().flatten().tolist()
            before = getattr(module, attribute, None)  # from an earlier cut
            stay = [before[i] for i in stay] if before else stay
            setattr(module, attribute, stay)
        for name, attribute in structure.widths:
            inside = plan.kept_inside(structure, declaration)
            inside = inside[plan.keep[structure.parent]].tolist()
            setattr(root.get_submodule(name), attribute, inside)
        for name, adapter in structure.adapters:
            root.get_submodule(name).__class__ = adapter
            adapted[name] = root.get_submodule(name)
    for (tensor, dim), positions in gone.items():
        _cut_tensor(root, tensor, dim, torch.cat(positions))
    for module in adapted.values():
        if hasattr(module, "after_cut_"):
            module.after_cut_()


def _check_can_be_cut(declaration):
    """Refuses a model that cannot be cut, before anything is changed."""
    root = declaration.root
    if is_masked(root):
        raise ValueError(
            "the model is masked, and its masks fit the uncut shapes only; "
            "call detach_ first, or use the pruner's cut_, which does"
        )
    if not _is_as_declared(declaration):
        raise ValueError(
            "the model was cut since it was declared; declare again what is "
            "left, with the function that made this declaration"
        )
    for structure in declaration.structures:
        for name, factory in structure.removes:
            parent = root.get_submodule(name.rpartition(".")[0])
            is_list = type(parent) in (nn.ModuleList, FewerLayers)
            if factory is leave_out and not is_list:
                raise ValueError(
                    f"{name}: cannot be left out, for it lies in a "
                    f"{type(parent).__name__}; only layers in a "
                    "torch.nn.ModuleList can"
                )


def _is_as_declared(declaration):
    """Whether all modules and shapes are still as they were declared."""
    root, shapes = declaration.root, declaration.shapes
    try:
        for structure in declaration.structures:
            for name, _ in structure.removes:
                root.get_submodule(name)
        now = {name: tuple(tensor_of(root, name).shape) for name in shapes}
    except (AttributeError, ValueError):  # a module or tensor was removed
        return False
    return now == shapes


def _cut_tensor(root, name, dim, gone):
    module, _, name = name.rpartition(".")
    module = root.get_submodule(module)
    old = getattr(module, name)
    new = _without(old, dim, gone)
    if isinstance(old, nn.Parameter):  # a buffer stays a buffer
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)
    _refresh_sizes(module)


def _without(tensor, dim, gone):
    """Copies a tensor without the positions that are removed along an axis.

    Without an axis the positions are those of the flattened tensor (see
    `Slices`).
    """
    if dim is not None:
        stay = torch.ones(tensor.shape[dim], dtype=torch.bool)
        stay[gone] = False
        stay = stay.nonzero().flatten().to(tensor.device)
        return tensor.index_select(dim, stay)
    stay = torch.ones(tensor.numel(), dtype=torch.bool)
    stay[gone] = False
    stay = stay.nonzero().flatten().to(tensor.device)
    flat = tensor.reshape(-1).index_select(0, stay)
    rows = tensor.shape[:-1].numel()
    return flat if len(flat) % rows else flat.view(*tensor.shape[:-1], -1)


def _replace_module(root, name, factory):
    parent, _, child = name.rpartition(".")
    parent = root.get_submodule(parent)
    new = factory(getattr(parent, child))
    if new is None:
        parent.__class__ = FewerLayers
        del parent._modules[child]
        _renumber(parent)
    else:
        setattr(parent, child, new)


def _renumber(layers):
    """Tells decoder layers of transformers their place in a cache."""
    for place, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place


def _refresh_sizes(module):
    """Updates the attributes in which torch's layers keep their sizes."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
        module.out_channels = module.weight.shape[0]
        depthwise = module.groups > 1
        module.in_channels = module.weight.shape[0 if depthwise else 1]
