"""Structures of SpeechBrain's `TransformerEncoder` and `TransformerDecoder`.

These are heads of self- and cross-attention, hidden units of the feed-forward
modules, whole modules and layers. If the norm comes before a module
(`normalize_before: True`), it is removed with the module. If it comes after,
it normalises the residual stream and stays.
"""

from functools import partial

from speechbrain.lobes.models.transformer.Transformer import (
    TransformerDecoder,
    TransformerEncoder,
)

from sb_prune.architectures.attention import attention
from sb_prune.architectures.feed_forward import feed_forward
from sb_prune.architectures.stacks import NAMES, Layer, declare
from sb_prune.support.values import Number, Pattern, checked

KINDS = ("layers", "ffn_modules", "attention_modules", "ffn_units", "heads")
DECODER_KINDS = (*KINDS, "cross_attention_modules", "cross_heads")


@checked
def transformer_structures(root, kinds: NAMES = None, only: Pattern() = ""):
    """Declares what can be cut in every `TransformerEncoder` below a module.

    Arguments
    ---------
    root : torch.nn.Module
        E.g. a `TransformerASR`, or the encoder itself.
    kinds : list of str, optional
        Which of `KINDS` to declare; by default all.
    only : str
        Regular expression that structure names must contain; empty: all.

    Returns
    -------
    Declaration

    Raises
    ------
    ValueError
        If there is no Transformer encoder below root, a kind is unknown, or
        a kind or `only` matches nothing.

    Example
    -------
    >>> encoder = TransformerEncoder(1, nhead=2, d_ffn=16, d_model=8)
    >>> declaration = transformer_structures(encoder)
    >>> [(s.kind, s.units) for s in declaration.structures if s.is_leaf]
    [('heads', 2), ('ffn_units', 16)]
    """
    return declare(root, TRANSFORMER, KINDS, kinds, only)


@checked
def decoder_structures(
    root,
    kinds: NAMES = None,
    only: Pattern() = "",
    tokens_per_frame: Number(above=0) = 0.16,
):
    """Declares what can be cut in every `TransformerDecoder` below a module.

    Arguments
    ---------
    root : torch.nn.Module
        E.g. a `TransformerASR`, or the decoder itself.
    kinds : list of str, optional
        Which of `DECODER_KINDS` to declare; by default all.
    only : str
        Regular expression that structure names must contain; empty: all.
    tokens_per_frame : float
        Number of tokens per encoder frame. MACs are counted for one forward
        pass over the whole transcript, as in training. The default stands for
        4 tokens per second of 25 frames.

    Returns
    -------
    Declaration

    Raises
    ------
    ValueError
        If there is no Transformer decoder below root, a kind is unknown, or
        a kind or `only` matches nothing.

    Example
    -------
    >>> decoder = TransformerDecoder(1, nhead=2, d_ffn=16, d_model=8)
    >>> declaration = decoder_structures(decoder)
    >>> [(s.kind, s.units) for s in declaration.structures if s.is_leaf]
    [('heads', 2), ('cross_heads', 2), ('ffn_units', 16)]
    """
    architecture = transformer_decoder(tokens_per_frame)
    return declare(root, architecture, DECODER_KINDS, kinds, only)


def encoder_layer(name, layer):
    """Describes a TransformerEncoderLayer.

    Arguments
    ---------
    name : str
        Name of the layer from the root.
    layer : torch.nn.Module

    Returns
    -------
    Layer
    """
    att, ffn = f"{name}.self_att", f"{name}.pos_ffn"
    first, second = _norms_that_go(name, layer, 2)
    return Layer(
        parts=(
            attention(att, layer.self_att, norm=first),
            feed_forward(ffn, layer.pos_ffn, norm=second),
        )
    )


def decoder_layer(name, layer, tokens_per_frame):
    """Describes a TransformerDecoderLayer.

    Arguments
    ---------
    name : str
        Name of the layer from the root.
    layer : torch.nn.Module
    tokens_per_frame : float
        Decoder steps per encoder frame.

    Returns
    -------
    Layer
    """

    def tokens(frames):
        return max(1, round(tokens_per_frame * frames))

    def memory(frames):
        return frames

    att, cross = f"{name}.self_attn", f"{name}.multihead_attn"
    first, second, third = _norms_that_go(name, layer, 3)
    return Layer(
        parts=(
            attention(att, layer.self_attn, first, tokens),
            attention(cross, layer.multihead_attn, second, tokens, memory),
            feed_forward(
                f"{name}.pos_ffn", layer.pos_ffn, norm=third, steps=tokens
            ),
        )
    )


def transformer_decoder(tokens_per_frame):
    """Makes the entry of the decoder for the `architectures` of `declare`.

    Arguments
    ---------
    tokens_per_frame : float
        Decoder steps per encoder frame.

    Returns
    -------
    dict
        TransformerDecoder -> function (name, layer) -> Layer.

    Raises
    ------
    ValueError
        If tokens_per_frame is not positive.
    """
    if not tokens_per_frame > 0:
        raise ValueError(
            f"tokens_per_frame: {tokens_per_frame} must be positive; write "
            "e.g. 0.16: 4 tokens per second of 25 frames"
        )
    layer = partial(decoder_layer, tokens_per_frame=tokens_per_frame)
    return {TransformerDecoder: layer}


TRANSFORMER = {TransformerEncoder: encoder_layer}


def _norms_that_go(name, layer, count):
    """Lists the norms before the modules of a layer, which go with them.

    They are None if norms come after the modules.
    """
    if not layer.normalize_before:
        return [None] * count
    return [f"{name}.norm{i + 1}" for i in range(count)]
