"""SpeechBrain's Transformer decoder as two graphs: encoder, and one step.

The encoder gives the keys and values that each layer of the decoder reads from
the audio, and the scores of CTC if the search needs them. A step reads these,
and the keys and values of all tokens before; it returns the latter with the new
token added. All hypotheses of an utterance read the same.

Shapes: B batch, S samples, T frames, N hypotheses of a batch, P tokens before,
Q and W widths of all queries and all values of a layer, V tokens in the
vocabulary.
"""

from dataclasses import dataclass, field

import torch
from speechbrain.nnet.attention import MultiheadAttention

from sb_prune.cut.modules.attention import FewerHeads
from sb_prune.cut.surgery import Absent
from sb_prune.deploy.adapters import traceable
from sb_prune.deploy.front_end import begin_graph
from sb_prune.deploy.graphs import Input, write_graph


class SelfReader(torch.nn.Module):
    """Self-attention of one new token.

    Arguments
    ---------
    heads : FewerHeads
    """

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, query, key, value, attn_mask, **options):
        """Has the arguments of SpeechBrain's attention.

        Arguments
        ---------
        query : torch.Tensor
            (N, 1, d)
        key, value : torch.Tensor
            The same.
        attn_mask : Past
            Keys and values of the tokens before; gets those of the new one.

        Returns
        -------
        torch.Tensor
            (N, 1, d)
        None
        """
        q, k, v = self.heads.project(q=query, k=query, v=query)
        k, v = attn_mask.add(k, v)
        output, _ = self.heads.attend(q, k, v, q.new_zeros(1, 1, 1, 1))
        return self.heads.out_proj(output), None


class AudioReader(torch.nn.Module):
    """Cross-attention of one new token of each hypothesis.

    Arguments
    ---------
    heads : FewerHeads
    """

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, query, key, value, **options):
        """Has the arguments of SpeechBrain's attention.

        Arguments
        ---------
        query : torch.Tensor
            (N, 1, d)
        key : Heard
            What there is to read.
        value : Heard
            The same.

        Returns
        -------
        torch.Tensor
            (N, 1, d)
        None
        """
        k, v = key.take()
        (q,) = self.heads.project(q=query)
        # hypotheses of an utterance ask as if they were steps of one
        q = q.reshape(k.shape[0], -1, q.shape[-1])
        output, _ = self.heads.attend(q, k, v, key.bias)
        return self.heads.out_proj(output).reshape(query.shape), None


@dataclass
class Past:
    """Keys and values of the tokens before, layer after layer.

    Arguments
    ---------
    before : list of torch.Tensor
        (N, P, Q) keys, then (N, P, W) values, of each layer.
    """

    before: list
    kept: list = field(default_factory=list)

    def add(self, *new):
        """Keys and values of a layer with new ones."""
        at = len(self.kept)
        pairs = zip(self.before[at : at + 2], new)
        self.kept += [torch.cat(pair, dim=1) for pair in pairs]
        return self.kept[at:]


@dataclass
class Heard:
    """Keys and values of the audio, layer after layer.

    Arguments
    ---------
    read : list of torch.Tensor
        (B, T, Q) keys, then (B, T, W) values, of each layer.
    bias : torch.Tensor
        (B, 1, 1, T), -inf where there is padding.
    """

    read: list
    bias: torch.Tensor
    taken: int = 0

    def take(self):
        """Keys and values of the next layer."""
        self.taken += 2
        return self.read[self.taken - 2 : self.taken]


class Encoder(torch.nn.Module):
    """From waveforms, or features, to what the search reads of them.

    Arguments
    ---------
    encoder : torch.nn.Module
        (source, lens) -> states.
    step : DecoderStep
    ctc : torch.nn.Module, optional
        From states to logits of CTC.
    """

    def __init__(self, encoder, step, ctc=None):
        super().__init__()
        self.encoder, self.ctc = encoder, ctc
        self.readers = torch.nn.ModuleList(step.audio_readers)

    def forward(self, source, lens):
        """Encodes a batch.

        Arguments
        ---------
        source : torch.Tensor
            (B, S) waveforms, or (B, frames, features).
        lens : torch.Tensor
            (B,) relative lengths.

        Returns
        -------
        list of torch.Tensor
            (B, T, Q) keys, then (B, T, W) values, of each layer that reads
            them; then (B, T, V) log-probabilities of CTC.
        """
        states = self.encoder(source, lens)
        found = []
        for reader in self.readers:
            found += reader.heads.project(k=states, v=states)
        if self.ctc is not None:
            found.append(self.ctc(states).log_softmax(-1))
        return found


class DecoderStep(torch.nn.Module):
    """From one new token of each hypothesis to the logits of the next.

    Arguments
    ---------
    transformer : TransformerASR
    linear : torch.nn.Module
        From its states to logits.

    Raises
    ------
    ValueError
        If its attention is of another kind.
    """

    def __init__(self, transformer, linear):
        super().__init__()
        copied = traceable(transformer)
        self.embedding, self.decoder = copied.custom_tgt_module, copied.decoder
        self.linear = linear
        relative = copied.attention_type in ("RelPosMHAXL", "RoPEMHA")
        name = "positional_encoding" + "_decoder" * relative
        self.register_buffer("places", getattr(copied, name).pe[0].clone())
        self.self_readers, self.audio_readers = [], []  # those that are left
        for layer in self.decoder.layers:
            for readers, made, name in (
                (self.self_readers, SelfReader, "self_attn"),
                (self.audio_readers, AudioReader, "multihead_attn"),
            ):
                attention = getattr(layer, name)
                reader = Absent(extra_outputs=1)
                if not isinstance(attention, Absent):
                    reader = made(_heads(attention))
                    readers.append(reader)
                setattr(layer, name, reader)

    def forward(self, tokens, place, past, read, frames):
        """Decodes one token of each hypothesis.

        Arguments
        ---------
        tokens : torch.Tensor
            (N, 1) int
        place : torch.Tensor
            (1,) int, how many tokens there were before.
        past : list of torch.Tensor
            See `Past`.
        read : list of torch.Tensor
            See `Heard`.
        frames : torch.Tensor
            (B,) int, of each utterance.

        Returns
        -------
        tuple of torch.Tensor
            (N, V) logits, then `past` of P + 1 tokens.
        """
        x = self.embedding(tokens) + self.places[place]
        steps = torch.arange(read[0].shape[1], device=x.device)
        padding = steps >= frames[:, None]
        bias = x.new_zeros(padding.shape).masked_fill(padding, -torch.inf)
        past, heard = Past(past), Heard(read, bias[:, None, None])
        for layer in self.decoder.layers:
            x, *_ = layer(x, heard, tgt_mask=past)
        return (self.linear(self.decoder.norm(x))[:, 0], *past.kept)


def _heads(attention):
    """Attention of torch, or of a cut model, as one class."""
    heads = getattr(attention, "att", None)
    if type(attention) is not MultiheadAttention or heads.bias_k is not None:
        raise ValueError(
            f"{type(attention).__name__} in a decoder cannot be deployed; only "
            "MultiheadAttention without bias_kv can"
        )
    if heads.in_proj_weight is None:
        raise ValueError(
            "a decoder whose width is not that of the encoder cannot be "
            "deployed"
        )
    if type(heads) is torch.nn.MultiheadAttention:
        heads.__class__ = FewerHeads  # of the copy; all of them are left
    return heads


def widths(heads):
    """(Q, W) of an attention."""
    rows = heads.rows()
    return rows[1], rows[2]


def write_graphs(encoder, transformer, linear, ctc, sample_rate, folder, apart):
    """Writes `encoder.onnx` and `decoder.onnx`, perhaps `features.onnx`.

    Arguments
    ---------
    encoder : torch.nn.Module
        (wavs, lens) -> states.
    transformer : TransformerASR
    linear : torch.nn.Module
        From its states to logits.
    ctc : torch.nn.Module or None
        From states of the encoder to logits of CTC.
    sample_rate : int
    folder : Path
    apart : bool
        Whether features are a graph of their own.

    Returns
    -------
    list of int
        Widths of the keys, then values, of each layer, of which a step has
        those of all tokens before.
    int
        Tokens at most.

    Raises
    ------
    ValueError
        If the decoder has attention of another kind, or reads no audio, or
        the encoder has no features.
    """
    step = DecoderStep(transformer, linear).eval()
    if not step.audio_readers:
        raise ValueError("no layer of the decoder reads the audio any more")
    options = (sample_rate, folder, apart)
    encoder, inputs = begin_graph(traceable(encoder), *options)
    graph = Encoder(encoder, step, ctc).eval()
    names = [f"read_{n}" for n in range(2 * len(step.audio_readers))]
    write_graph(
        graph,
        inputs,
        names + ["ctc"] * (ctc is not None),
        folder / "encoder.onnx",
    )
    past, read = (
        [width for reader in readers for width in widths(reader.heads)]
        for readers in (step.self_readers, step.audio_readers)
    )
    write_graph(
        step,
        {
            "tokens": Input(torch.ones(6, 1, dtype=torch.long), (0,)),
            "place": Input(torch.tensor([3]), ()),
            "past": [Input(torch.randn(6, 3, w), (0, 1)) for w in past],
            "read": [Input(torch.randn(2, 5, w), (0, 1)) for w in read],
            "frames": Input(torch.tensor([5, 4]), (0,)),
        },
        ["logits", *(f"kept_{n}" for n in range(len(past)))],
        folder / "decoder.onnx",
    )
    return past, len(step.places)
