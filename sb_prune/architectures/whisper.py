"""Structures of Whisper (Radford et al., "Robust Speech Recognition via
Large-Scale Weak Supervision", 2022, 2212.04356).

In the encoder these are the channels of its first convolution, attention heads,
hidden units of the feed-forward modules, whole modules and layers; in the
decoder heads of self- and cross-attention, hidden units, modules and layers.
The models are those of Hugging Face inside SpeechBrain's lobe `Whisper`.

Norms come before modules and are removed with them. The outputs of the second
convolution and the embeddings are the residual stream and stay. Lengths in this
file are frames of the log-mel, 100 in a second.

Shapes: S frames of the encoder, T tokens, d model width, h hidden units.
"""

from dataclasses import dataclass, replace
from typing import Callable

from sb_prune.architectures.feed_forward import two_linears
from sb_prune.architectures.heads import INSIDE_HEADS, absent_self_attention
from sb_prune.architectures.indices import consecutive
from sb_prune.architectures.parts import (
    identity,
    no_operations,
    unless_gone,
    weight_operations,
)
from sb_prune.architectures.projections import (
    attention_of_projections,
    dims_of_projections,
)
from sb_prune.architectures.stacks import (
    NAMES,
    Layer,
    check_known,
    check_no_adapters,
    chosen_structures,
)
from sb_prune.cut.surgery import Absent
from sb_prune.declare.structure import (
    Declaration,
    Operation,
    Slices,
    Structure,
    dotted,
)
from sb_prune.support.values import ListOf, Number, Pattern, Text, checked

ENCODER_KINDS = (
    "front_end_channels",
    "layers",
    "ffn_modules",
    "attention_modules",
    "ffn_units",
    "heads",
)
DECODER_KINDS = (
    "layers",
    "ffn_modules",
    "attention_modules",
    "cross_attention_modules",
    "ffn_units",
    "heads",
    "cross_heads",
)
KINDS = tuple(dict.fromkeys(ENCODER_KINDS + DECODER_KINDS))
SIDES = ("encoder", "decoder")
SIDE = Text("encoder or decoder")


@checked
def whisper_structures(
    root,
    kinds: NAMES = None,
    only: Pattern() = "",
    sides: ListOf(SIDE, least=1, example="[encoder]") = None,
    tokens_per_frame: Number(above=0) = 0.04,
):
    """Declares what can be cut in the encoder and the decoder of Whisper.

    Arguments
    ---------
    root : torch.nn.Module
        E.g. one of SpeechBrain's lobes `Whisper`.
    kinds : list of str, optional
        Which of `KINDS` to declare, by default all; query_key_dims and
        value_dims beside heads let those of the encoder become unequal.
    only : str
        Regular expression that structure names must contain; empty: all.
    sides : list of str, optional
        Which of encoder and decoder to declare, by default both that there
        are. The budget counts the parameters and MACs of these alone, with
        their embeddings.
    tokens_per_frame : float
        Number of tokens per frame of the log-mel. MACs are counted for one
        forward pass over the whole transcript, as in training, without those
        of the logits. The default stands for 4 tokens per second.

    Returns
    -------
    Declaration
        Its `operations` take the number of frames of the log-mel, by default
        that of the context of the model: 3,000, which are 30 s.

    Raises
    ------
    ValueError
        If there is not one such model below root, a side is missing, a kind is
        unknown, or a kind or `only` matches nothing.

    Example
    -------
    >>> from transformers import WhisperConfig, WhisperModel
    >>> config = WhisperConfig(
    ...     vocab_size=9, d_model=8, encoder_layers=1, decoder_layers=1,
    ...     encoder_attention_heads=2, decoder_attention_heads=2,
    ...     encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0,
    ... )
    >>> declaration = whisper_structures(WhisperModel(config))
    >>> for structure in declaration.structures:
    ...     if structure.is_leaf:
    ...         print(structure.name, structure.units)
    encoder.conv1.channels 8
    encoder.layers.0.self_attn.heads 2
    encoder.layers.0.ffn.units 16
    decoder.layers.0.self_attn.heads 2
    decoder.layers.0.encoder_attn.heads 2
    decoder.layers.0.ffn.units 16
    """
    check_known(kinds, KINDS + INSIDE_HEADS)
    described = [
        _decoder(name, module, tokens_per_frame)
        if side == "decoder"
        else _encoder(name, module)
        for side, (name, module) in _find(root, sides).items()
    ]
    layers = {n: layer for s in described for n, layer in s.layers.items()}
    channels = [channel for side in described for channel in side.channels]
    return Declaration(
        root=root,
        scope=tuple(side.name for side in described),
        structures=chosen_structures(
            root, layers, KINDS, kinds, only, channels
        ),
        operations=lambda frames: [
            operation
            for side in described
            for operation in side.all_operations(frames)
        ],
        layers=tuple(layers),
        layerdrop=max(side.layerdrop for side in described),
        blocks=tuple(block for side in described for block in side.blocks),
        output_frames=encoder_frames,
        usual_frames=2 * described[0].context,
        time_axis=2,
    )


def encoder_frames(frames):
    """Number of frames of the encoder for so many of the log-mel."""
    return (frames - 1) // 2 + 1


@dataclass(frozen=True)
class _Side:
    """The encoder, or the decoder.

    Arguments
    ---------
    name : str
        Name of the module from the root.
    layers : dict
        Name -> Layer.
    operations : callable
        frames (int) -> list of Operation outside of the layers.
    layerdrop : float
        Probability with which training skips a layer.
    context : int
        Frames of the encoder that the model was trained with.
    blocks : tuple of str
        Convolutions whose channels can be cut.
    channels : tuple of Structure
        These channels.
    """

    name: str
    layers: dict
    operations: Callable
    layerdrop: float
    context: int
    blocks: tuple = ()
    channels: tuple = ()

    def all_operations(self, frames):
        """Lists the operations on an utterance of so many frames."""
        found = self.operations(frames)
        for layer in self.layers.values():
            found = found + layer.all_operations(frames)
        return found


def _find(root, sides):
    """Finds the sides of the only model below root: side -> (name, module)."""
    check_no_adapters(root)
    found = {
        side: [
            (name, module)
            for name, module in root.named_modules()
            if isinstance(module, family)
        ]
        for side, family in _families().items()
    }
    for side in sides or ():
        if side not in found:
            raise ValueError(
                f"sides: {side!r}; write {' or '.join(SIDES)}, or both"
            )
    for side, modules in found.items():
        wanted = side in (sides or ["encoder"])
        if len(modules) > 1 or (wanted and not modules):
            raise ValueError(
                f"module: {len(modules)} {side}s of Whisper found in "
                f"{type(root).__name__}; name a module with one, e.g. "
                "SpeechBrain's lobe Whisper"
            )
    return {
        side: modules[0]
        for side, modules in found.items()
        if modules and side in (sides or SIDES)
    }


def _families():
    """Side -> class of transformers."""
    from transformers.models.whisper.modeling_whisper import (
        WhisperDecoder,
        WhisperEncoder,
    )

    return {"encoder": WhisperEncoder, "decoder": WhisperDecoder}


def _encoder(name, encoder):
    convolutions = {
        f"{conv}.weight": encoder.get_submodule(conv).weight.numel()
        for conv in ("conv1", "conv2")
    }

    def operations(frames):
        lengths = (frames, encoder_frames(frames))
        return [
            Operation(length * size, name, tensor=dotted(name, tensor))
            for length, (tensor, size) in zip(lengths, convolutions.items())
        ]

    return _Side(
        name=name,
        layers={
            layer_name: _encoder_layer(layer_name, layer)
            for layer_name, layer in _layers(name, encoder)
        },
        operations=operations,
        layerdrop=encoder.layerdrop,
        context=encoder.config.max_source_positions,
        blocks=(dotted(name, "conv1"),),
        channels=(_channels(name, encoder.conv1.out_channels),),
    )


def _decoder(name, decoder, tokens_per_frame):
    def tokens(frames):
        return max(1, round(tokens_per_frame * frames))

    return _Side(
        name=name,
        layers={
            layer_name: _decoder_layer(layer_name, layer, tokens)
            for layer_name, layer in _layers(name, decoder)
        },
        operations=no_operations,
        layerdrop=decoder.layerdrop,
        context=decoder.config.max_source_positions,
    )


def _layers(name, side):
    for index, layer in side.layers.named_children():
        yield dotted(name, "layers", index), layer


def _channels(encoder, channels):
    """Structure of the outputs of the first convolution."""
    each = consecutive(channels)
    read = Slices(dotted(encoder, "conv2.weight"), 1, each)
    conv = dotted(encoder, "conv1")
    made = (Slices(f"{conv}.{t}", 0, each) for t in ("weight", "bias"))
    return Structure(
        name=f"{conv}.channels",
        kind="front_end_channels",
        units=channels,
        masks=(read,),
        cuts=(read, *made),
    )


# ------------------------------------------------------------------- layers


def _encoder_layer(name, layer):
    from sb_prune.cut.modules.map_reuse import WhisperMapMaker, WhisperMapReader
    from sb_prune.cut.modules.whisper import UnequalWhisperAttention

    att = f"{name}.self_attn"
    if isinstance(layer.self_attn, (WhisperMapMaker, WhisperMapReader)):
        raise ValueError(
            f"{att}: several layers share its attention map; to prune a "
            "student of Whisper, make it without `reuse`"
        )
    part = _attention(att, layer.self_attn, encoder_frames)
    if part is not None:
        inside = dims_of_projections(
            att, layer.self_attn, UnequalWhisperAttention
        )
        part = replace(part, inside=inside)
    return Layer(parts=(part, _feed_forward(name, layer, encoder_frames)))


def _decoder_layer(name, layer, tokens):
    from sb_prune.cut.modules.whisper import AbsentCachedAttention

    return Layer(
        parts=(
            _attention(
                f"{name}.self_attn",
                layer.self_attn,
                tokens,
                absent=AbsentCachedAttention,
            ),
            _attention(
                f"{name}.encoder_attn",
                layer.encoder_attn,
                tokens,
                memory=encoder_frames,
            ),
            _feed_forward(name, layer, tokens),
        )
    )


def _feed_forward(name, layer, steps):
    """Describes the two Linears, which lie in the layer itself."""
    if isinstance(layer.fc2, Absent):
        return None
    first, second = f"{name}.fc1", f"{name}.fc2"
    part = two_linears(
        f"{name}.ffn", layer, ("fc1", "activation_fn", "fc2"), path=name
    )
    norm = f"{name}.final_layer_norm"
    removes = ((second, Absent), *identity(first), *identity(norm))
    return replace(
        part,
        module=replace(part.module, removes=removes),
        operations=weight_operations(
            second, layer, ["fc1", "fc2"], steps, path=name
        ),
    )


@unless_gone
def _attention(name, module, steps, memory=None, absent=absent_self_attention):
    """Describes attention; `memory` is that of cross-attention (frames -> S).

    Its norm comes before it.
    """
    norm = f"{name}_layer_norm"
    return attention_of_projections(name, module, norm, steps, memory, absent)
