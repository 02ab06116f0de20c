"""Structures of wav2vec 2.0, HuBERT and WavLM encoders.

These are the channels of every convolution of the front-end, attention heads,
hidden units of the feed-forward modules, whole modules and layers (Peng et al.,
"Structured Pruning of Self-Supervised Pre-trained Models for Speech Recognition
and Understanding", ICASSP 2023, 2302.14132).

The models are those of Hugging Face inside SpeechBrain's lobes `Wav2Vec2`,
`HuBERT` and `WavLM`, of the kind of base (norms after modules, GroupNorm in the
front-end) or large (norms before modules, LayerNorms), and SpeechBrain's own
`W2VLatentExtractor` with `EncoderWrapper`.

Norms after modules normalise the residual stream and stay when a module or
layer is removed. Lengths in this file are samples of the waveform.

Shapes: T frames, C channels, d model width, H heads, k head width.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Callable

from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.lobes.models.wav2vec import (
    EncoderWrapper,
    W2VLatentExtractor,
    W2VTargetQuantiser,
)

from sb_prune.architectures.feed_forward import two_linears
from sb_prune.architectures.heads import INSIDE_HEADS, absent_self_attention
from sb_prune.architectures.indices import consecutive
from sb_prune.architectures.parts import (
    NotCut,
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
from sb_prune.architectures.transformer import encoder_layer
from sb_prune.declare.structure import (
    Declaration,
    Operation,
    Slices,
    Structure,
    dotted,
)
from sb_prune.support.values import Pattern, Whole, checked

KINDS = (
    "front_end_channels",
    "layers",
    "ffn_modules",
    "attention_modules",
    "ffn_units",
    "heads",
)
TEN_SECONDS = 160_000  # samples
NOT_INSTALLED = "those of Hugging Face need the extra wav2vec2 of sb_prune"


@checked
def wav2vec2_structures(
    root,
    kinds: NAMES = None,
    only: Pattern() = "",
    channel_multiple: Whole(1) = 1,
):
    """Declares what can be cut in the wav2vec 2.0-like encoder of a module.

    Arguments
    ---------
    root : torch.nn.Module
        E.g. one of SpeechBrain's lobes `Wav2Vec2`, `HuBERT` or `WavLM`, or a
        ModuleDict of a `W2VLatentExtractor` and an `EncoderWrapper`.
    kinds : list of str, optional
        Which of `KINDS` to declare, by default all; query_key_dims and
        value_dims beside heads let these become unequal (Wang et al.,
        "Task-Agnostic Structured Pruning of Speech Representation Models",
        Interspeech 2023, 2306.01385). Heads that an earlier cut has made
        unequal are declared with the dims inside them, also by default: the
        number of such heads alone would not say what they cost.
    only : str
        Regular expression that structure names must contain; empty: all.
    channel_multiple : int
        Plans keep multiples of so many channels of each convolution. Wide
        convolutions on CPUs are fastest with multiples of 64.

    Returns
    -------
    Declaration
        Its `operations` take the number of samples.

    Raises
    ------
    ValueError
        If there is not one such encoder below root, it has parts that cannot
        be counted, a kind is unknown, or a kind or `only` matches nothing.

    Example
    -------
    >>> from transformers import Wav2Vec2Config, Wav2Vec2Model
    >>> config = Wav2Vec2Config(
    ...     hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=16, conv_dim=(4, 4), conv_kernel=(10, 3),
    ...     conv_stride=(5, 2), num_conv_pos_embeddings=4,
    ...     num_conv_pos_embedding_groups=2,
    ... )
    >>> declaration = wav2vec2_structures(Wav2Vec2Model(config))
    >>> for structure in declaration.structures:
    ...     print(structure.name, structure.units)
    feature_extractor.conv_layers.0.channels 4
    feature_extractor.conv_layers.1.channels 4
    encoder.layers.0 1
    encoder.layers.0.attention 1
    encoder.layers.0.attention.heads 2
    encoder.layers.0.feed_forward 1
    encoder.layers.0.feed_forward.units 16
    """
    check_known(kinds, KINDS + INSIDE_HEADS)
    encoder = _find(root)
    channels = _channels(
        encoder.convolutions, encoder.readers, channel_multiple
    )
    return Declaration(
        root=root,
        scope=encoder.scope,
        structures=chosen_structures(
            root, encoder.layers, KINDS, kinds, only, channels
        ),
        operations=encoder.operations,
        layers=tuple(encoder.layers),
        layerdrop=encoder.layerdrop,
        blocks=tuple(c.name for c in encoder.convolutions),
        output_frames=lambda samples: _lengths(encoder.convolutions, samples)[
            -1
        ],
        usual_frames=TEN_SECONDS,
    )


@dataclass(frozen=True)
class _Convolution:
    """One convolution of the front-end.

    Arguments
    ---------
    name : str
        Name of the module whose `conv` is torch's Conv1d.
    shape : torch.Size
        Shape of its weight: (C made, C read, kernel).
    stride : int
    has_bias : bool
    norms : tuple of str
        LayerNorms over its output channels.
    group_norms : tuple of str
        GroupNorms with one group for each output channel.
    """

    name: str
    shape: tuple
    stride: int
    has_bias: bool
    norms: tuple = ()
    group_norms: tuple = ()

    @property
    def weight(self):
        """Name of its weight."""
        return f"{self.name}.conv.weight"


@dataclass(frozen=True)
class _Encoder:
    """An encoder, described alike for all families.

    Arguments
    ---------
    scope : tuple of str
        Modules whose cost is counted.
    convolutions : tuple of _Convolution
        The convolutions of the front-end, in order.
    readers : tuple of str
        The Linears that read the output of the front-end: that of the encoder,
        and that of the quantizer in a model for pre-training. There are none
        where this output is the residual stream of the layers.
    between : callable
        frames (int) -> list of Operation between the front-end and the
        layers, including the Linear of the encoder.
    layers : dict
        Name -> Layer.
    layerdrop : float
        Probability with which training skips a layer.
    """

    scope: tuple
    convolutions: tuple
    readers: tuple
    between: Callable
    layers: dict
    layerdrop: float

    def operations(self, samples):
        """Lists the operations on an utterance of so many samples."""
        lengths = _lengths(self.convolutions, samples)
        found = [
            Operation(length * c.shape.numel(), c.name, tensor=c.weight)
            for c, length in zip(self.convolutions, lengths)
        ]
        frames = lengths[-1]
        found += self.between(frames)
        for layer in self.layers.values():
            found += layer.all_operations(frames)
        return found


def _lengths(convolutions, samples):
    """Computes the length after each convolution; none of them has padding."""
    lengths = []
    for convolution in convolutions:
        kernel = convolution.shape[2]
        samples = max(0, (samples - kernel) // convolution.stride + 1)
        lengths.append(samples)
    return lengths


def _channels(convolutions, readers, multiple):
    """Makes a structure for the output channels of each convolution."""
    weights = [(c.weight,) for c in convolutions[1:]]
    weights.append(tuple(f"{reader}.weight" for reader in readers))
    for convolution, reading in zip(convolutions, weights):
        if not reading:
            continue
        each = consecutive(convolution.shape[0])
        read = tuple(Slices(weight, 1, each) for weight in reading)
        norms = (*convolution.norms, *convolution.group_norms)
        made = [convolution.weight]
        if convolution.has_bias:
            made.append(f"{convolution.name}.conv.bias")
        made += [f"{n}.{t}" for n in norms for t in ("weight", "bias")]
        yield Structure(
            name=f"{convolution.name}.channels",
            kind="front_end_channels",
            units=len(each),
            masks=read,
            cuts=(*read, *(Slices(tensor, 0, each) for tensor in made)),
            norms=tuple(Slices(n, None, each) for n in convolution.norms),
            counts=tuple(
                (norm, attribute)
                for norm in convolution.group_norms
                for attribute in ("num_groups", "num_channels")
            ),
            multiple=multiple,
        )


# ----------------------------------------------------------------- families


def _find(root):
    """Finds and describes the only encoder below root."""
    check_no_adapters(root)
    families = {**_hugging_face(), W2VLatentExtractor: _native}
    found = [
        (name, module)
        for name, module in root.named_modules()
        if isinstance(module, tuple(families))
    ]
    if len(found) != 1:
        raise ValueError(
            f"module: {len(found)} encoders that can be cut found in "
            f"{_what_is(root)}; name a module with one of "
            f"{[family.__name__ for family in families]}"
            + ("" if len(families) > 1 else f"; {NOT_INSTALLED}")
        )
    name, module = found[0]
    describe = next(d for f, d in families.items() if isinstance(module, f))
    return describe(root, name, module)


def _what_is(root):
    """Names the class of a module and of the Hugging Face model inside it."""
    inner = getattr(root, "model", None)
    kinds = [type(module).__name__ for module in (root, inner) if module]
    return " with ".join(kinds)


def _hugging_face():
    """Model class -> function that describes it; empty without transformers."""
    try:
        from transformers import HubertModel, Wav2Vec2Model, WavLMModel
    except ImportError:  # the extra wav2vec2
        return {}
    return {
        Wav2Vec2Model: partial(_hugging_face_model, attention=_attention),
        HubertModel: partial(_hugging_face_model, attention=_attention),
        WavLMModel: partial(_hugging_face_model, attention=_biased_attention),
    }


def _hugging_face_model(root, name, model, attention):
    """Describes a model of transformers.

    `attention` is the function that describes the attention of its layers.
    """
    if _has_adapters(model):
        raise ValueError(
            f"module: {name or type(model).__name__} has adapters, which "
            "cannot be cut; load it with add_adapter=False and "
            "adapter_attn_dim=None"
        )
    projection = dotted(name, "feature_projection")
    stack = dotted(name, "encoder", "layers")
    return _Encoder(
        scope=(name,),
        convolutions=_hugging_face_convolutions(name, model),
        readers=(f"{projection}.projection", *_quantizers(root, model))
        if _has_projection(model)
        else (),
        between=_hugging_face_between(name, model),
        layers={
            f"{stack}.{i}": _layer(
                f"{stack}.{i}",
                layer,
                attention,
                model.config.do_stable_layer_norm,
            )
            for i, layer in model.encoder.layers.named_children()
        },
        layerdrop=model.config.layerdrop,
    )


def _has_projection(model):
    """Whether a Linear follows the front-end; some students have none."""
    return hasattr(model.feature_projection.projection, "weight")


def _quantizers(root, model):
    """Lists the quantizers that read the front-end, in pre-training."""
    return [
        dotted(name, "quantizer", "weight_proj")
        for name, module in root.named_modules()
        if type(module).__name__ == "Wav2Vec2ForPreTraining"
        and module.wav2vec2 is model
    ]


def _has_adapters(model):
    """Whether a model has adapters after its encoder or inside its layers."""
    behind = getattr(model, "adapter", None)
    inside = getattr(model.config, "adapter_attn_dim", None)
    return behind is not None or inside is not None


def _hugging_face_convolutions(name, model):
    found = []
    prefix = dotted(name, "feature_extractor", "conv_layers")
    last = len(model.feature_extractor.conv_layers) - 1
    over_channels = model.config.feat_extract_norm == "layer"
    for i, layer in enumerate(model.feature_extractor.conv_layers):
        norm = (
            (f"{prefix}.{i}.layer_norm",)
            if hasattr(layer, "layer_norm")
            else ()
        )
        norms = norm if over_channels else ()
        if i == last and hasattr(model.feature_projection, "layer_norm"):
            norms += (dotted(name, "feature_projection", "layer_norm"),)
        found.append(
            _Convolution(
                name=f"{prefix}.{i}",
                shape=layer.conv.weight.shape,
                stride=layer.conv.stride[0],
                has_bias=layer.conv.bias is not None,
                norms=norms,
                group_norms=() if over_channels else norm,
            )
        )
    return tuple(found)


def _hugging_face_between(name, model):
    """Operations of the feature projection and the positional convolution."""
    projection = weight_operations(
        dotted(name, "feature_projection"),
        model.feature_projection,
        ["projection"] if _has_projection(model) else [],
    )
    conv = model.encoder.pos_conv_embed.conv
    size, kernel = conv.weight.numel(), conv.kernel_size[0]
    more = 2 * conv.padding[0] - kernel + 1  # frames computed and discarded
    positions = dotted(name, "encoder", "pos_conv_embed")
    return lambda frames: [
        *projection(frames),
        Operation((frames + more) * size, positions),
    ]


def _native(root, name, extractor):
    """Describes SpeechBrain's own model: an extractor beside an encoder."""
    wrappers = {
        n: m for n, m in root.named_modules() if isinstance(m, EncoderWrapper)
    }
    if len(wrappers) != 1:
        raise ValueError(
            f"module: {len(wrappers)} EncoderWrapper found to read the "
            "W2VLatentExtractor's output; list both, e.g. module: "
            "[latent_extractor, latent_encoder]"
        )
    wrapper_name, wrapper = next(iter(wrappers.items()))
    if not isinstance(wrapper.latent_encoder, TransformerEncoder):
        raise ValueError(
            f"module: {wrapper_name}.latent_encoder is a "
            f"{type(wrapper.latent_encoder).__name__}; only a "
            "TransformerEncoder can be cut here"
        )
    stack = dotted(wrapper_name, "latent_encoder", "layers")
    return _Encoder(
        scope=(name, wrapper_name),
        convolutions=_native_convolutions(name, extractor),
        readers=(
            dotted(wrapper_name, "input_projector"),
            *(
                dotted(n, "quantiser", "weight_proj")
                for n, m in root.named_modules()
                if isinstance(m, W2VTargetQuantiser)
            ),
        ),
        between=weight_operations(wrapper_name, wrapper, ["input_projector"]),
        layers={
            f"{stack}.{i}": encoder_layer(f"{stack}.{i}", layer)
            for i, layer in wrapper.latent_encoder.layers.named_children()
        },
        layerdrop=wrapper.latent_encoder.layerdrop_prob,
    )


def _native_convolutions(name, extractor):
    found = []
    blocks = list(extractor.extractor.items())
    for i, (block_name, block) in enumerate(blocks):
        prefix = dotted(name, "extractor", block_name, "convs")
        conv = block.convs.conv_0
        norms = (f"{prefix}.norm_0.norm",)
        if i == len(blocks) - 1:
            norms += (dotted(name, "norm"),)
        found.append(
            _Convolution(
                name=f"{prefix}.conv_0",
                shape=conv.conv.weight.shape,
                stride=conv.stride,
                has_bias=conv.conv.bias is not None,
                norms=norms,
            )
        )
    return tuple(found)


# ------------------------------------------------------------------- layers


def _layer(name, layer, attention, norms_first):
    """Describes a layer of transformers; norms after modules are kept."""
    att, ffn = f"{name}.attention", f"{name}.feed_forward"
    first = f"{name}.layer_norm" if norms_first else None
    second = f"{name}.final_layer_norm" if norms_first else None
    parts = ("intermediate_dense", "intermediate_act_fn", "output_dense")
    return Layer(
        parts=(
            attention(att, layer.attention, first),
            two_linears(ffn, layer.feed_forward, parts, norm=second),
        )
    )


@unless_gone
def _attention(name, module, norm, absent=absent_self_attention, more=0):
    """Describes attention of wav2vec 2.0 and HuBERT.

    `more` are further MACs per frame, which are spread evenly over the heads.
    """
    from sb_prune.cut.modules.wav2vec2 import unequal

    if hasattr(module, "attention_map"):
        return _shares_map(name, module, more)
    part = attention_of_projections(name, module, norm, absent=absent)
    of_heads = {"structures": (f"{name}.heads",)}
    return replace(
        part,
        operations=lambda frames: [
            *part.operations(frames),
            Operation(more * frames, name, **of_heads),
        ],
        inside=dims_of_projections(name, module, unequal(module)),
        refused=_refused_dims(module),
    )


def _shares_map(name, module, more):
    """Describes attention of a student whose map several layers use.

    Its heads are those of all these layers, so they stay.
    """
    makes = hasattr(module, "q_proj")
    projections = ["q_proj", "k_proj"] * makes + ["v_proj", "out_proj"]
    linears = weight_operations(name, module, projections)
    width = module.embed_dim
    return NotCut(
        name,
        type(module).__name__,
        ("attention_modules", "heads", *INSIDE_HEADS),
        "no `reuse` where the student is made",
        lambda frames: [
            *linears(frames),
            Operation((1 + makes) * frames * frames * width, name),
            Operation(more * frames, name),
        ],
    )


def _refused_dims(module):
    """Refuses dims inside heads for other kernels than eager and sdpa."""
    config = getattr(module, "config", None)  # WavLM's has none
    implementation = getattr(config, "_attn_implementation", "eager")
    if implementation in ("eager", "sdpa"):
        return ()
    why = (
        f"attn_implementation: {implementation} has no heads of unequal "
        "widths; write sdpa"
    )
    return tuple((kind, why) for kind in INSIDE_HEADS)


@unless_gone
def _biased_attention(name, module, norm):
    """Describes attention of WavLM.

    The first layer keeps the position bias, which all layers use.
    """
    from sb_prune.cut.modules.wavlm import (
        AbsentBiasedAttention,
        BiasOnly,
        FewerBiasedHeads,
        UnequalBiasedHeads,
    )

    has_bias = hasattr(module, "rel_attn_embed")
    absent = BiasOnly if has_bias else AbsentBiasedAttention
    gate = getattr(module, "gru_rel_pos_linear", None)  # not in all students
    more = 0 if gate is None else gate.weight.numel() * module.num_heads
    part = _attention(name, module, norm, absent, more)
    if isinstance(part, NotCut):
        return part
    strength = consecutive(module.num_heads)
    return replace(
        part,
        module=replace(
            part.module,
            stays=(f"{name}.rel_attn_embed",) if has_bias else (),
        ),
        units=replace(
            part.units,
            cuts=(
                *part.units.cuts,
                Slices(f"{name}.gru_rel_pos_const", 1, strength),
            ),
            positions=((name, "kept_heads"), *part.units.positions),
            adapters=part.units.adapters or ((name, FewerBiasedHeads),),
        ),
        inside=tuple(
            replace(dims, adapters=((name, UnequalBiasedHeads),))
            for dims in part.inside
        ),
    )
