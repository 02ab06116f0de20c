"""What the benchmarks share: one switch, one JSON line, one Conformer."""

import argparse
import ctypes
import json

import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.activations import Swish

ATTENTIONS = ("RelPosMHAXL", "RoPEMHA", "regularMHA")


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
