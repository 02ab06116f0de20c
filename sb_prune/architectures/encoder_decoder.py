"""Structures of an encoder-decoder with any of the encoders declared here.

Encoder and decoder compete for one budget. To give each its own, write
`ParameterBudget({"encoder": 0.6, "decoder": 0.4})`.
"""

from sb_prune.architectures import branchformer, conformer, transformer
from sb_prune.architectures.stacks import NAMES, declare, find_stacks
from sb_prune.support.values import Number, Pattern, checked

KINDS = tuple(
    dict.fromkeys(
        conformer.KINDS + branchformer.KINDS + transformer.DECODER_KINDS
    )
)
ENCODERS = {
    **conformer.CONFORMER,
    **branchformer.BRANCHFORMER,
    **transformer.TRANSFORMER,
}


@checked
def encoder_decoder_structures(
    root,
    kinds: NAMES = None,
    only: Pattern() = "",
    tokens_per_frame: Number(above=0) = 0.16,
):
    """Declares what can be cut in the encoder and the decoder of a model.

    Arguments
    ---------
    root : torch.nn.Module
        E.g. a `TransformerASR` whose encoder is a Conformer, a Branchformer
        or a Transformer.
    kinds : list of str, optional
        Which of `KINDS` to declare; by default all that the model has.
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
        If encoder or decoder is missing, a kind is unknown, or a kind or
        `only` matches nothing.

    Example
    -------
    >>> from speechbrain.lobes.models.transformer.TransformerASR import (
    ...     TransformerASR,
    ... )
    >>> model = TransformerASR(
    ...     10, 4, 8, nhead=2, num_encoder_layers=1, num_decoder_layers=1,
    ...     d_ffn=16, causal=False,
    ... )
    >>> declaration = encoder_decoder_structures(model, kinds=["layers"])
    >>> [s.name for s in declaration.structures]
    ['encoder.layers.0', 'decoder.layers.0']
    """
    decoder = transformer.transformer_decoder(tokens_per_frame)
    for side in (ENCODERS, decoder):
        find_stacks(root, side)
    return declare(root, {**ENCODERS, **decoder}, KINDS, kinds, only)
