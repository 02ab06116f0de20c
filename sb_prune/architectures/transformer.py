"""Structures of SpeechBrain's `TransformerEncoder` and `TransformerDecoder`.

Heads of self- and cross-attention, FFN hidden units, whole modules and layers.
Where norms come first, the norm of a module goes with it; where they come
last (`normalize_before: False`), they normalise what passes by and stay.
"""

from functools import partial

from speechbrain.lobes.models.transformer.Transformer import (
    TransformerDecoder,
    TransformerEncoder,
)

from sb_prune.architectures.parts import attention, feed_forward
from sb_prune.architectures.stacks import Layer, declare

KINDS = ("layers", "ffn_modules", "attention_modules", "ffn_units", "heads")
DECODER_KINDS = (*KINDS, "cross_attention_modules", "cross_heads")


def transformer_structures(root, kinds=None, only=""):
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


def decoder_structures(root, kinds=None, only="", tokens_per_frame=0.16):
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
        Decoder steps per encoder frame, for MACs, which are those of one
        forward over the whole transcript, as in training. The default: 4
        tokens per second of 25 frames.

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
    """A TransformerEncoderLayer.

    Arguments
    ---------
    name : str
        From the root.
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
    """A TransformerDecoderLayer.

    Arguments
    ---------
    name : str
        From the root.
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
    """The decoder, as `declare` reads it.

    Arguments
    ---------
    tokens_per_frame : float
        Decoder steps per encoder frame.

    Returns
    -------
    dict

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
    """Names of norms that feed one module only; None after the residual."""
    if not layer.normalize_before:
        return [None] * count
    return [f"{name}.norm{i + 1}" for i in range(count)]
