"""What the benchmarks share: one switch, one JSON line, the models."""

import argparse
import ctypes
import json

import torch
import transformers
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.activations import Swish

ATTENTIONS = ("RelPosMHAXL", "RoPEMHA", "regularMHA")
FAMILIES = {
    "Wav2Vec2": ("eager", "sdpa"),
    "Hubert": ("eager", "sdpa"),
    "WavLM": ("eager",),
}

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def run(measure):
    """Runs `measure(full)` as a script and prints its dict as one line."""
    torch.set_num_threads(1)  # two on a busy machine spend their time waiting
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--full", action="store_true", help="larger sizes")
    print(json.dumps(measure(parser.parse_args().full)), flush=True)


def keep_freed_memory():
    """Without it, page faults vary by 10% of a step from model to model."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # glibc
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def conformer(
    layers=12,
    width=144,
    hidden=1024,
    attention="RelPosMHAXL",
    causal=False,
    seed=0,
    kernel=31,
):
    """A `TransformerASR` encoder; by default SpeechBrain's Conformer-small."""
    torch.manual_seed(seed)
    relative = attention == "RelPosMHAXL"
    return TransformerASR(
        tgt_vocab=5,
        input_size=width,
        d_model=width,
        nhead=4,
        num_encoder_layers=layers,
        num_decoder_layers=0,
        d_ffn=hidden,
        dropout=0.0,
        kernel_size=kernel,
        activation=torch.nn.GELU,
        conformer_activation=Swish,
        encoder_module="conformer",
        attention_type=attention,
        positional_encoding=None if relative else "fixed_abs_sine",
        normalize_before=True,
        causal=causal,
    )


def encoders(full):
    """Small encoders of waveforms, or of 12 layers with their usual front-end.

    Arguments
    ---------
    full : bool

    Returns
    -------
    iterator of torch.nn.Module
        Every family, norm mode and attention, in eval mode.
    """
    shape = {"num_hidden_layers": 12} if full else {"num_hidden_layers": 3}
    if not full:
        shape |= {"conv_dim": (32,) * 7}
    for family, attentions in FAMILIES.items():
        for attention in attentions:
            for norms_first in (False, True):
                torch.manual_seed(0)
                config = getattr(transformers, f"{family}Config")(
                    hidden_size=192,
                    num_attention_heads=6,
                    intermediate_size=768,
                    num_conv_pos_embeddings=32,  # it stays, so let it be small
                    feat_extract_norm="layer" if norms_first else "group",
                    do_stable_layer_norm=norms_first,
                    attn_implementation=attention,
                    **shape,
                )
                model = getattr(transformers, f"{family}Model")(config)
                yield model.eval()


def random_scores(declaration, seed, spread=1.0):
    """(N,) scores; structures differ in their mean by up to `spread`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [
            torch.rand(s.units, generator=generator)
            + spread * torch.rand(1, generator=generator)
            for s in declaration.structures
        ]
    )
