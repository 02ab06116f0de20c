"""What all tests share: a small Conformer ASR whose every weight matters.

Shapes: B utterances, T frames, f features, d model width.
"""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerDecoder,
    TransformerEncoder,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.wav2vec import EncoderWrapper, W2VLatentExtractor
from speechbrain.nnet.attention import RelPosEncXL
from speechbrain.nnet.containers import ModuleList
from speechbrain.nnet.linear import Linear
from speechbrain.utils.importutils import LazyModule

from sb_prune.cut.masking import attach_, detach_
from sb_prune.cut.surgery import cut_
from sb_prune.declare.plan import Plan

FEATURES = 6
FREQUENCIES = 12  # of the features of a front-end

# hypothesis asks every module for its file, and a lazy one would be imported
LazyModule.__file__ = None

torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring

# Runs wait for the disk at every checkpoint, so temporary folders are in memory
# where there is enough; $PYTEST_DEBUG_TEMPROOT names another place.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def _redraw_(model, generator):
    """Norms and biases start at 1 and 0, where mistakes would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3, generator=generator)
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.add_(1)


def _make_decoder_relative_(model, layers, dropout):
    """A stock decoder whose attention, unlike TransformerASR's, is relative."""
    positions = RelPosEncXL(16)
    model.decoder = TransformerDecoder(
        layers,
        nhead=4,
        d_ffn=32,
        d_model=16,
        dropout=dropout,
        normalize_before=True,
        causal=True,
        attention_type="RelPosMHAXL",
    )

    def add_positions(decoder, args, kwargs):
        kwargs["pos_embs_tgt"] = positions(kwargs["tgt"])
        kwargs["pos_embs_src"] = positions(kwargs["memory"])
        return args, kwargs

    model.decoder.register_forward_pre_hook(add_positions, with_kwargs=True)


@pytest.fixture(scope="session")
def make_asr():
    """Factory of a `TransformerASR` in eval mode, by default a Conformer."""

    def make(
        attention="RelPosMHAXL",
        causal=False,
        layers=2,
        seed=0,
        dropout=0.0,
        relative_decoder=False,
        **options,
    ):
        relative = attention == "RelPosMHAXL"
        defaults = {
            "tgt_vocab": 5,
            "encoder_module": "conformer",
            "normalize_before": True,
            "num_decoder_layers": 0,
        }
        model = TransformerASR(
            input_size=FEATURES,
            d_model=16,
            nhead=4,
            num_encoder_layers=layers,
            d_ffn=32,
            dropout=dropout,
            kernel_size=5,
            attention_type=attention,
            positional_encoding=None if relative else "fixed_abs_sine",
            causal=causal,
            **defaults | options,
        )
        if relative_decoder:
            _make_decoder_relative_(model, layers, dropout)
        _redraw_(model, torch.Generator().manual_seed(seed))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def encode():
    """Function: model -> its encoding (B, T, d) of fixed random input."""

    def run(model, batch=3, frames=13, padded=True):
        generator = torch.Generator().manual_seed(99)
        source = torch.randn(4, frames, FEATURES, generator=generator)[:batch]
        lengths = torch.linspace(1, 0.5, batch) if padded else None
        return model.encode(source, lengths)

    return run


@pytest.fixture(scope="session")
def transcribe():
    """Function: model -> outputs of encoder and decoder (B, T + L, d)."""

    def run(model, batch=3, frames=13, padded=True, tokens=6):
        generator = torch.Generator().manual_seed(99)
        source = torch.randn(4, frames, FEATURES, generator=generator)[:batch]
        target = torch.randint(1, 5, (4, tokens), generator=generator)[:batch]
        lengths = None
        if padded:
            lengths = torch.linspace(1, 0.5, batch)
            steps = torch.arange(tokens) / tokens
            target = target.masked_fill(steps >= lengths[:, None], 0)
        return torch.cat(model(source, target, lengths), dim=1)

    return run


@pytest.fixture(scope="session")
def random_plan():
    """Function: declaration -> a random plan that surgery accepts."""

    def draw(declaration, seed=0, keep=0.6):
        generator = torch.Generator().manual_seed(seed)
        kept = {}
        for structure in declaration.structures:
            chance = torch.rand(structure.units, generator=generator)
            kept[structure.name] = chance < keep
            if structure.removes:
                continue
            pieces = (
                declaration.by_holder(structure, values)
                for values in (kept[structure.name], chance)
            )
            for inside, drawn in zip(*pieces):
                inside[drawn.argmin()] = True
        return Plan(kept)

    return draw


@pytest.fixture(scope="session")
def masked_and_cut():
    """Function: what a model computes masked by a plan, then cut to it."""

    @torch.no_grad()
    def both(declaration, plan, run):
        model = declaration.root
        attach_(declaration).set_(plan.values(declaration))
        masked = run(model)
        detach_(model)
        cut_(declaration, plan)
        return masked, run(model)

    return both


@pytest.fixture(scope="session")
def backward_gates():
    """Function: gives every mask, so every gate, a random gradient."""

    def backward(declaration, seed, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        total = 0
        masks = [m.tensor for s in declaration.structures for m in s.masks]
        for name in dict.fromkeys(masks):
            module, _, tensor = name.rpartition(".")
            masked = getattr(declaration.root.get_submodule(module), tensor)
            noise = torch.randn(masked.shape, generator=generator)
            total = total + (masked * noise).sum() * scale
        total.backward()

    return backward


@pytest.fixture(scope="session")
def make_front_end(make_asr):
    """Factory of {CNN, Transformer}: a front-end and what it feeds."""

    def make(attention="RelPosMHAXL", layers=2, seed=0, dropout=0.0, **front):
        arguments = {
            "num_blocks": 2,
            "num_layers_per_block": 1,
            "out_channels": (6, 4),
            "kernel_sizes": (3, 3),
            "strides": (2, 2),
            "residuals": (False, False),
            **front,
        }
        front_end = ConvolutionFrontEnd(
            (2, 30, FREQUENCIES), dropout=dropout, **arguments
        )
        *_, frequencies, channels = front_end.get_output_shape()
        asr = make_asr(attention, layers=layers, dropout=dropout)
        asr.custom_src_module = ModuleList(
            Linear(input_size=frequencies * channels, n_neurons=16),
            torch.nn.Dropout(dropout),
        )
        root = torch.nn.ModuleDict({"CNN": front_end, "Transformer": asr})
        _redraw_(root, torch.Generator().manual_seed(seed))
        return root.eval()

    return make


@pytest.fixture(scope="session")
def encode_features():
    """Function: {CNN, Transformer} -> its encoding of fixed random input."""

    def run(root, batch=3, frames=23, padded=True):
        generator = torch.Generator().manual_seed(99)
        shape = (4, frames, FREQUENCIES)
        features = torch.randn(shape, generator=generator)[:batch]
        lengths = torch.linspace(1, 0.5, batch) if padded else None
        return root["Transformer"].encode(root["CNN"](features), lengths)

    return run


@pytest.fixture(scope="session")
def make_wav2vec2():
    """Factory of a small wav2vec 2.0-like encoder in eval mode.

    `family` is that of a Hugging Face model, or "SpeechBrain" for its own.
    """

    def make(family="Wav2Vec2", seed=0, **options):
        make = _speechbrain_wav2vec2
        if family != "SpeechBrain":
            make = partial(_hugging_face, family)
        model = make(**options)
        _redraw_(model, torch.Generator().manual_seed(seed))
        return model.eval()

    return make


def _hugging_face(
    family, norms_first=False, attention="eager", layers=2, dropout=0.0
):
    config = getattr(transformers, f"{family}Config")(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=32,
        conv_dim=(6, 5, 4),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        conv_bias=norms_first,
        feat_extract_norm="layer" if norms_first else "group",
        do_stable_layer_norm=norms_first,
        num_conv_pos_embeddings=6,
        num_conv_pos_embedding_groups=2,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
        feat_proj_dropout=dropout,
        layerdrop=0.0,
        mask_time_prob=0.0,
        attn_implementation=attention,
        **{"num_buckets": 8} if family == "WavLM" else {},
    )
    return getattr(transformers, f"{family}Model")(config)


def _speechbrain_wav2vec2(norms_first=True, layers=2, dropout=0.0):
    extractor = W2VLatentExtractor([6, 5, 4], [10, 3, 2], [5, 2, 2], dropout)
    encoder = TransformerEncoder(
        layers,
        nhead=4,
        d_ffn=32,
        d_model=16,
        dropout=dropout,
        normalize_before=norms_first,
    )
    wrapper = EncoderWrapper(4, 16, encoder, dropout_encoder_input=dropout)
    return torch.nn.ModuleDict(
        {"latent_extractor": extractor, "latent_encoder": wrapper}
    )


@pytest.fixture(scope="session")
def encode_waveform():
    """Function: encoder -> its encoding (B, T, d) of fixed random input."""

    def run(model, batch=3, samples=700, padded=True):
        generator = torch.Generator().manual_seed(99)
        wavs = torch.randn(4, samples, generator=generator)[:batch]
        lengths = torch.linspace(1, 0.5, batch) if padded else None
        if "latent_extractor" in dict(model.named_children()):
            latents = model["latent_extractor"](wavs)
            return model["latent_encoder"](latents, lengths)["embeddings"]
        mask = None
        if padded:
            mask = torch.arange(samples) < (lengths * samples)[:, None]
        return model(wavs, attention_mask=mask).last_hidden_state

    return run
