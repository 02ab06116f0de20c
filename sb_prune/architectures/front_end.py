"""Structures of SpeechBrain's `ConvolutionFrontEnd`.

These are the output channels of each convolution. The next convolution reads
them; those of the last block are read by the input Linear of the Transformer
behind the front-end. That is another entry of the recipe's `modules`, so the
`pruning` block lists both.

Shapes: B utterances, T frames, F frequencies, C channels. The output of a block
is (B, T, F, C), which the Transformer flattens: channel c is read by the
columns c, C + c, 2 C + c, ... of the Linear.
"""

from dataclasses import dataclass
from functools import partial
from typing import Optional

import torch
from speechbrain.lobes.models.convolution import ConvBlock, ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.CNN import Conv2d, get_padding_elem
from speechbrain.nnet.normalization import LayerNorm

from sb_prune.architectures.activations import refused_activation
from sb_prune.architectures.stacks import check_no_adapters
from sb_prune.cut.modules.speechbrain import FewerChannels
from sb_prune.declare.structure import (
    Declaration,
    Operation,
    Slices,
    Structure,
    dotted,
)
from sb_prune.support.values import Text, checked

KIND = "front_end_channels"


@checked
def front_end_structures(root, reader: Text("the name of a Linear") = None):
    """Declares the channels of the `ConvolutionFrontEnd` below a module.

    Arguments
    ---------
    root : torch.nn.Module
        Holds the front-end and what reads its output.
    reader : str, optional
        Name, from the root, of the `torch.nn.Linear` that reads the flattened
        output; by default the input layer of the `TransformerASR`.

    Returns
    -------
    Declaration
        Its `operations` take the number of feature frames. The reader is in
        its scope: it shrinks with the channels of the last block.

    Raises
    ------
    ValueError
        If there is not one front-end below root, its convolutions or norms
        cannot be cut, or the Linear that reads it is not found.

    Example
    -------
    >>> front_end = ConvolutionFrontEnd(
    ...     (1, 8, 12), 2, 1, [4, 6], [3, 3], [2, 2], residuals=[False, False]
    ... )
    >>> root = torch.nn.ModuleDict(
    ...     {"CNN": front_end, "reader": torch.nn.Linear(3 * 6, 5)}
    ... )
    >>> declaration = front_end_structures(root, reader="reader")
    >>> for structure in declaration.structures:
    ...     print(structure.name, structure.units)
    CNN.convblock_0.convs.conv_0.channels 4
    CNN.convblock_1.convs.conv_0.channels 6
    >>> declaration.output_frames(100)
    25
    """
    check_no_adapters(root)
    name, front_end = _only(root, ConvolutionFrontEnd)
    if reader is None:
        transformer, _ = _only(root, TransformerASR)
        reader = dotted(transformer, "custom_src_module.layers.0.w")
    convolutions = _convolutions(name, front_end)
    last = convolutions[-1].makes
    shapes = partial(_shapes, convolutions, front_end.input_shape[2])
    channels = convolutions[-1].shape[0]
    spread = _spread(root, reader, shapes(1)[last][1], channels)
    reader_size = root.get_submodule(reader).weight.numel()
    return Declaration(
        root=root,
        scope=(name, reader),
        structures=tuple(_structures(convolutions, reader, spread)),
        operations=lambda frames: _operations(
            convolutions, shapes(frames), reader, reader_size
        ),
        output_frames=lambda frames: shapes(frames)[last][0],
        blocks=tuple(dotted(name, block) for block in front_end),
        usual_frames=1000,
    )


@dataclass(frozen=True)
class _Convolution:
    """One convolution, with the numbers of the maps that it reads and makes.

    Feature maps are numbered from 0, the input features. A map with the same
    number from several convolutions is the sum of their outputs.

    Arguments
    ---------
    name : str
        Name from the root.
    layer : Conv2d
    shape : torch.Size
        Shape of its weight: (C made, C read, kernel F, kernel T).
    norm : str or None
        Name of torch's LayerNorm over (F, C) after it.
    reads, makes : int
        Numbers of its input and output maps.
    """

    name: str
    layer: Conv2d
    shape: torch.Size
    norm: Optional[str]
    reads: int
    makes: int

    @property
    def drops_axis(self):
        """Whether its output has no axis of channels, for there is only one.

        This channel must stay.
        """
        return self.layer.unsqueeze and self.shape[0] == 1


def _only(root, kind):
    """Finds name and module of the only instance of a class below root."""
    found = {n: m for n, m in root.named_modules() if isinstance(m, kind)}
    if len(found) == 1:
        return next(iter(found.items()))
    if kind is TransformerASR:
        raise ValueError(
            f"module: {len(found)} TransformerASR found to read the "
            "front-end's output; list both, e.g. module: [CNN, Transformer], "
            "or write `reader:` with the name of the Linear under "
            "front_end_structures"
        )
    raise ValueError(
        f"module: {len(found)} {kind.__name__} found, not 1; list the one to "
        "cut and what it feeds, e.g. module: [CNN, Transformer]"
    )


def _convolutions(name, front_end):
    """Lists every convolution, in the order in which data flow."""
    found, made = [], 0
    for block_name, block in front_end.items():
        prefix, entry = dotted(name, block_name), made
        if not isinstance(block, ConvBlock):
            raise ValueError(
                f"{prefix}: a front-end with a {type(block).__name__} cannot "
                "be cut; leave front_end_structures out of `structures`"
            )
        layers = [n for n in block.convs if n.startswith("conv_")]
        for i, layer in enumerate(layers):
            parts = (f"{prefix}.convs", block.convs, layer, f"norm_{i}")
            found.append(_convolution(*parts, reads=made, makes=made + 1))
            _check_activation(found[-1], block.convs[f"act_{i}"])
            made += 1
        if block.reduce_conv is not None:  # is added to the block's output
            parts = (f"{prefix}.reduce_conv", block.reduce_conv, "conv", "norm")
            found.append(_convolution(*parts, reads=entry, makes=made))
    return found


def _convolution(prefix, parts, layer, norm, reads, makes):
    name = f"{prefix}.{layer}"
    _check_layer(name, parts[layer])
    if norm in parts:
        _check_norm(f"{prefix}.{norm}", parts[norm])
    return _Convolution(
        name=name,
        layer=parts[layer],
        shape=parts[layer].conv.weight.shape,
        norm=f"{prefix}.{norm}.norm" if norm in parts else None,
        reads=reads,
        makes=makes,
    )


def _check_activation(convolution, activation):
    """Refuses an activation that mixes the channels of a convolution."""
    channels = convolution.shape[0]
    for kind, why in refused_activation(KIND, activation, channels):
        raise ValueError(
            f"structures: {kind} of {convolution.name} cannot be cut: {why}, "
            "or leave front_end_structures out of `structures`"
        )


def _check_layer(name, layer):
    plain = (
        type(layer) in (Conv2d, FewerChannels)  # the latter after a cut
        and type(layer.conv) is torch.nn.Conv2d
        # weight_norm changes the class above or, before SpeechBrain 1.1.2,
        # the weight
        and isinstance(layer.conv.weight, torch.nn.Parameter)
        and layer.conv.groups == 1
        and layer.max_norm is None
        and not (layer.swap or layer.skip_transpose)
    )
    if not plain:
        raise ValueError(
            f"{name}: of conv_module, only speechbrain.nnet.CNN.Conv2d "
            "without groups, weight_norm, max_norm, swap or skip_transpose "
            "can be cut; write that, or leave front_end_structures out of "
            "`structures`"
        )


def _check_norm(name, norm):
    if type(norm) is not LayerNorm or norm.norm.weight is None:
        raise ValueError(
            f"{name}: channels before this norm cannot be cut; write norm: "
            "!name:speechbrain.nnet.normalization.LayerNorm, or leave "
            "front_end_structures out of `structures`"
        )


def _spread(root, reader, frequencies, channels):
    """(C, F) int, the columns of the reader that read each channel."""
    modules = dict(root.named_modules())
    if not isinstance(modules.get(reader), torch.nn.Linear):
        raise ValueError(
            f"reader: {reader!r} is no torch.nn.Linear below `module`; write "
            "the name of the one that reads the front-end's output"
        )
    columns = modules[reader].weight.shape[1]
    if columns != frequencies * channels:
        raise ValueError(
            f"reader: {reader} reads {columns} features, but the front-end "
            f"makes {frequencies} x {channels}; write `reader:` with the name "
            "of the Linear that reads its output under front_end_structures"
        )
    return torch.arange(columns).view(frequencies, channels).T


def _structures(convolutions, reader, spread):
    for made in range(1, convolutions[-1].makes + 1):
        makers = [c for c in convolutions if c.makes == made]
        if any(c.drops_axis for c in makers):
            continue
        readers = [c for c in convolutions if c.reads == made]
        each = torch.arange(makers[0].shape[0]).unsqueeze(1)
        read = tuple(
            Slices(f"{c.name}.conv.weight", 1, each) for c in readers
        ) or (Slices(f"{reader}.weight", 1, spread),)
        yield Structure(
            name=f"{makers[0].name}.channels",
            kind=KIND,
            units=len(each),
            masks=read,
            cuts=read + tuple(s for c in makers for s in _made(c, each)),
            norms=tuple(Slices(c.norm, 1, each) for c in makers if c.norm),
            counts=tuple((c.name, "in_channels") for c in readers),
            adapters=tuple(
                (c.name, FewerChannels) for c in makers if c.layer.unsqueeze
            ),
        )


def _made(convolution, each):
    """Slices of the tensors of a convolution and its norm, one per channel."""
    name, norm = convolution.name, convolution.norm
    yield Slices(f"{name}.conv.weight", 0, each)
    if convolution.layer.conv.bias is not None:
        yield Slices(f"{name}.conv.bias", 0, each)
    if norm:
        yield Slices(f"{norm}.weight", 1, each)
        yield Slices(f"{norm}.bias", 1, each)


def _shapes(convolutions, frequencies, frames):
    """Computes the size (T, F) of every feature map."""
    shapes = {0: (frames, frequencies)}
    for convolution in convolutions:
        t, f = shapes[convolution.reads]
        shapes[convolution.makes] = (
            _output_length(convolution.layer, 1, t),
            _output_length(convolution.layer, 0, f),
        )
    return shapes


def _output_length(layer, axis, length):
    """Computes the length of an axis after a convolution (0: F, 1: T)."""
    kernel, stride = layer.kernel_size[axis], layer.stride[axis]
    dilation = layer.dilation[axis]
    if layer.padding == "same":
        length += sum(
            get_padding_elem(layer.in_channels, stride, kernel, dilation)
        )
    elif layer.padding == "causal" and axis == 0:  # as SpeechBrain's class does
        length += (kernel - 1) * layer.dilation[1]
    return (length - dilation * (kernel - 1) - 1) // stride + 1


def _operations(convolutions, shapes, reader, reader_size):
    """Lists the operations of the front-end and its reader on an utterance."""
    found = []
    for convolution in convolutions:
        t, f = shapes[convolution.makes]
        found.append(
            Operation(
                t * f * convolution.shape.numel(),
                convolution.name,
                tensor=f"{convolution.name}.conv.weight",
            )
        )
    macs = shapes[convolutions[-1].makes][0] * reader_size
    return found + [Operation(macs, reader, tensor=f"{reader}.weight")]
