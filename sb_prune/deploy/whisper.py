"""Whisper as two graphs: the encoder, and one step of the decoder.

The encoder gives the keys and values that each layer of the decoder reads from
the audio. A step reads these and the keys and values of all tokens before, and
returns those with the new tokens added.

Shapes: B batch, S samples, T frames, d model width, P tokens before, L new
tokens, H heads of a layer, D dims of a head, V tokens in the vocabulary.
"""

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import WhisperAttention

from sb_prune.deploy.graphs import Input, write_graph
from sb_prune.deploy.runtime.settings import FEATURES
from sb_prune.deploy.states import States
from sb_prune.support.audio import SAMPLE_RATE
from sb_prune.support.context import FRAME

SAMPLES = 2 * SAMPLE_RATE + FRAME  # of the noise that graphs are traced with


class Encoder(torch.nn.Module):
    """From waveforms, or their spectrum, to what the decoder reads of them.

    Arguments
    ---------
    lobe : sb_prune.lobes.Whisper or SpeechBrain's
    """

    def __init__(self, lobe):
        super().__init__()
        self.states = States(lobe)
        self.readers = torch.nn.ModuleList(
            layer.encoder_attn
            for layer in lobe.model.decoder.layers
            if isinstance(layer.encoder_attn, WhisperAttention)
        )

    def forward(self, source):
        """Encodes a batch.

        Arguments
        ---------
        source : torch.Tensor
            What `States` takes.

        Returns
        -------
        list of torch.Tensor
            (B, H, T, D) keys, then values, of each layer that reads them.
        """
        states, read = self.states(source), []
        for reader in self.readers:
            for project in (reader.k_proj, reader.v_proj):
                heads = project(states).unflatten(-1, (-1, reader.head_dim))
                read.append(heads.transpose(1, 2))
        return read


class DecoderStep(torch.nn.Module):
    """From new tokens to the logits of the next.

    Arguments
    ---------
    lobe : sb_prune.lobes.Whisper or SpeechBrain's
    """

    def __init__(self, lobe):
        super().__init__()
        self.decoder = lobe.model.decoder
        layers = list(enumerate(self.decoder.layers))
        self.heard = [  # positions of the layers that read the audio
            n
            for n, layer in layers
            if isinstance(layer.encoder_attn, WhisperAttention)
        ]
        self.shapes = [  # (heads, dims) that a layer keeps of each token
            (a.num_heads, a.head_dim)
            if isinstance(a, WhisperAttention)
            else (1, 1)
            for a in (layer.self_attn for _, layer in layers)
        ]

    def forward(self, tokens, past, read):
        """Decodes tokens.

        Arguments
        ---------
        tokens : torch.Tensor
            (B, L) int
        past : list of torch.Tensor
            (B, H, P, D) keys, then values, of each layer.
        read : list of torch.Tensor
            (B, H, T, D) what `Encoder` returns.

        Returns
        -------
        tuple of torch.Tensor
            (B, V) logits after the last token, then `past` of P + L tokens.
        """
        before = past[0].shape[2]
        places = torch.arange(tokens.shape[1], device=tokens.device) + before
        x = self.decoder.embed_tokens(tokens)
        x = x + self.decoder.embed_positions.weight[places]
        seen = torch.arange(before + tokens.shape[1], device=tokens.device)
        later = seen > places.unsqueeze(1)
        mask = x.new_zeros(later.shape).masked_fill(later, -torch.inf)
        cache = self._cache(past, read)
        for layer in self.decoder.layers:
            # the states are in the cache; only that there are some is asked
            x = layer(
                x,
                attention_mask=mask[None, None],
                encoder_hidden_states=x[:, :1],
                cache=cache,
            )
        last = self.decoder.layer_norm(x[:, -1])
        logits = last @ self.decoder.embed_tokens.weight.T
        kept = cache.self_attention_cache.layers
        return (logits, *(t for k in kept for t in (k.keys, k.values)))

    def _cache(self, past, read):
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for n in range(len(self.decoder.layers)):
            cache.self_attention_cache.update(*past[2 * n : 2 * n + 2], n)
        for n, layer in enumerate(self.heard):
            pair = read[2 * n : 2 * n + 2]
            cache.cross_attention_cache.update(*pair, layer)
            cache.is_updated[layer] = True
        return cache


def write_graphs(lobe, folder, apart):
    """Writes `encoder.onnx` and `decoder.onnx`, perhaps `features.onnx`.

    Arguments
    ---------
    lobe : sb_prune.lobes.Whisper or SpeechBrain's
    folder : Path
    apart : bool
        Whether the log mel spectrum is a graph of its own.

    Returns
    -------
    list of (int, int)
        (H, D) of each layer, of which a step has the keys and values of all
        tokens before.
    """
    encoder, step = Encoder(lobe).eval(), DecoderStep(lobe).eval()
    inputs = {"wavs": Input(torch.randn(2, SAMPLES), (0, 1))}
    if apart:
        log_mel = encoder.states.take_log_mel_()
        write_graph(log_mel, inputs, ["features"], folder / FEATURES)
        spectrum = log_mel(inputs["wavs"].example)
        inputs = {"features": Input(spectrum, (0, 2))}
    names = [f"read_{n}" for n in range(2 * len(encoder.readers))]
    path = folder / "encoder.onnx"
    write_graph(encoder, inputs, names, path)
    past = [
        Input(torch.randn(2, heads, 3, dims), (0, 2))
        for heads, dims in step.shapes
        for _ in "kv"
    ]
    read = [
        Input(torch.randn(2, r.num_heads, 5, r.head_dim), (0, 2))
        for r in encoder.readers
        for _ in "kv"
    ]
    tokens = Input(torch.ones(2, 4, dtype=torch.long), (0, 1))
    write_graph(
        step,
        {"tokens": tokens, "past": past, "read": read},
        ["logits", *(f"kept_{n}" for n in range(len(past)))],
        folder / "decoder.onnx",
    )
    return step.shapes
