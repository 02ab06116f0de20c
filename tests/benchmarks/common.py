"""What the benchmarks share: one switch, one JSON line, the models."""

import argparse
import ctypes
import json
from functools import partial

import torch
import transformers
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.activations import Swish

from sb_prune import (
    ParameterBudget,
    cut_,
    mac_cost,
    parameter_cost,
    wav2vec2_structures,
)
from sb_prune.cut.folding import fold_
from sb_prune.learn.fitting import fit_plan, leaf_prices
from sb_prune.support.measure import measure_speed

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
    **options,
):
    """A `TransformerASR` encoder; by default SpeechBrain's Conformer-small.

    `options` are further arguments of the class, e.g. `encoder_module`.
    """
    torch.manual_seed(seed)
    relative = attention == "RelPosMHAXL"
    defaults = {
        "input_size": width,
        "num_decoder_layers": 0,
        "encoder_module": "conformer",
        "normalize_before": True,
    }
    return TransformerASR(
        tgt_vocab=5,
        d_model=width,
        nhead=4,
        num_encoder_layers=layers,
        d_ffn=hidden,
        dropout=0.0,
        kernel_size=kernel,
        activation=torch.nn.GELU,
        conformer_activation=Swish,
        attention_type=attention,
        positional_encoding=None if relative else "fixed_abs_sine",
        causal=causal,
        **defaults | options,
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
    return (make() for make in encoder_factories(full))


def encoder_factories(full):
    """Functions that make the `encoders`, one after another."""
    shape = {"num_hidden_layers": 12} if full else {"num_hidden_layers": 3}
    if not full:
        shape |= {"conv_dim": (32,) * 7}
    for family, attentions in FAMILIES.items():
        for attention in attentions:
            for norms_first in (False, True):
                yield partial(
                    _encoder,
                    family,
                    feat_extract_norm="layer" if norms_first else "group",
                    do_stable_layer_norm=norms_first,
                    attn_implementation=attention,
                    **shape,
                )


def _encoder(family, **shape):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        hidden_size=192,
        num_attention_heads=6,
        intermediate_size=768,
        num_conv_pos_embeddings=32,  # it stays, so let it be small
        **shape,
    )
    return getattr(transformers, f"{family}Model")(config).eval()


WHISPER_TOKENS, WHISPER_VOCABULARY = 20, 100


def whispers(full):
    """Whispers of each attention, in eval mode; full: that of the base.

    Arguments
    ---------
    full : bool

    Returns
    -------
    iterator of transformers.WhisperModel
    """
    shape = {"d_model": 512, "heads": 8, "layers": 6, "context": 250}
    small = {"d_model": 64, "heads": 4, "layers": 3, "context": 50}
    for attention in ("eager", "sdpa"):
        yield whisper(attention, **(shape if full else small))


def whisper(
    attention="sdpa",
    d_model=512,
    heads=8,
    layers=6,
    context=1500,
    vocabulary=WHISPER_VOCABULARY,
):
    """A `WhisperModel` of random weights; by default Whisper-base's shape."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=vocabulary,
        d_model=d_model,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
        decoder_ffn_dim=4 * d_model,
        max_source_positions=context,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation=attention,
    )
    return transformers.WhisperModel(config).eval()


def whisper_input(model, batch):
    """Log-mel (batch, mels, frames) and tokens for all of the context."""
    config = model.config
    frames = 2 * config.max_source_positions
    mel = torch.randn(batch, config.num_mel_bins, frames)
    return mel, torch.randint(3, config.vocab_size, (batch, WHISPER_TOKENS))


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


def landing_error(declaration, group, plan):
    """Unused budget of a plan, in units of the cheapest open leaf.

    Below 1 is as close as a plan can be.
    """
    left = float(group.cost.of_kept(plan.kept_counts(declaration)))
    unused = group.dense * (1 - group.target) - left
    if unused < -1e-6 * group.dense:
        raise AssertionError(f"{-unused} {group.unit} over the budget")
    return unused / min(leaf_prices(declaration, group, plan).values())


def compare_speed(make, cuts, full, seconds=10):
    """Real speed of cut encoders of waveforms, beside the share of MACs left.

    Two threads, one utterance, the dense encoder and the cut ones (as
    exported) timed in turns.

    Arguments
    ---------
    make : callable
        Makes the dense Hugging Face model.
    cuts : dict
        Name -> function: dense model -> (declaration, plan).
    full : bool
        More turns.
    seconds : float
        Of the utterance.

    Returns
    -------
    dict
        Name -> params_reduction, macs_ratio, speedup, efficiency.
    """
    torch.set_num_threads(2)
    torch.manual_seed(0)
    models, left = {"dense": make().eval()}, {}
    for name, cut in cuts.items():
        torch.manual_seed(0)
        models[name] = make().eval()
        left[name] = _cut_(models[name], cut, 16000 * seconds)
    speed = measure_speed(
        {
            name: lambda wavs, _, model=model: model(wavs)
            for name, model in models.items()
        },
        seconds,
        runs=25 if full else 5,
    )
    found = {}
    for name, (parameters, macs) in left.items():
        speedup = speed["dense"] / speed[name]
        found[name] = {
            "params_reduction": round(1 - parameters, 4),
            "macs_ratio": round(macs, 4),
            "speedup": round(speedup, 3),
            "efficiency": round(speedup * macs, 3),
        }
    return found


def _cut_(model, cut, samples):
    """Cuts a model; returns the shares of parameters and MACs left."""
    declaration, plan = cut(model)
    kept = plan.kept_counts(declaration)
    costs = parameter_cost(declaration), mac_cost(declaration, samples)
    cut_(declaration, plan)
    fold_(model)
    return [float(cost.of_kept(kept)) / cost.dense() for cost in costs]


def random_cut(target, kinds, multiple):
    """A cut for `compare_speed` that draws what goes.

    Arguments
    ---------
    target : float or dict
        Share of the parameters to remove, or one for each part.
    kinds : list of str or None
        Of structures; those of different means where whole modules may go.
    multiple : int
        Of the channels.

    Returns
    -------
    callable
    """

    def cut(model):
        declaration = wav2vec2_structures(
            model, kinds, channel_multiple=multiple
        )
        groups = ParameterBudget(target).groups(declaration)
        whole = any(s.removes for s in declaration.structures)
        scores = random_scores(declaration, seed=0, spread=float(whole))
        return declaration, fit_plan(declaration, groups, scores)

    return cut
