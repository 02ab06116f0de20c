"""Narrow students of speech encoders, whose layers may reuse attention maps.

A student has all the layers of its teacher, but narrower ones. Some of them
compute no attention map of their own: they use that of the layer below again,
and so need neither queries nor keys (Jang et al., "Recycle-and-Distill:
Universal Compression Strategy for Transformer-based Speech SSL Models with
Attention Map Reusing and Masking Distillation", Interspeech 2023, 2305.11685).
The map is reused after its softmax, without changes.
"""

from copy import deepcopy

import torch
from speechbrain.utils.distributed import run_on_main
from transformers import (
    AutoConfig,
    AutoModel,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from sb_prune.cut.edits import ENTRY, FORMAT
from sb_prune.cut.modules.whisper import drop_decoder_
from sb_prune.cut.student_shape import StudentShape, check_pattern

FAMILIES = (Wav2Vec2Model, HubertModel, WavLMModel, WhisperModel)


def make_student(
    teacher,
    hidden_size=None,
    intermediate_size=None,
    conv=None,
    reuse=None,
    **settings,
):
    """Makes a student of a speech encoder.

    Every tensor that has the teacher's shape starts with the teacher's values.
    Sizes that are not given are those of the teacher.

    Arguments
    ---------
    teacher : Wav2Vec2Model, HubertModel, WavLMModel or WhisperModel
        Of Whisper the encoder has students; its decoder is left out.
    hidden_size : int, optional
        Model width.
    intermediate_size : int, optional
        Hidden units of the feed-forward modules.
    conv : list of [int, int, int], optional
        Channels, kernel and stride of each convolution of the front-end. If
        the last one has `hidden_size` channels, no projection follows it. Both
        of Whisper's have `hidden_size`.
    reuse : list of bool, optional
        For each layer, whether it reuses the attention map of the layer below.
    settings : object
        Other entries of the teacher's config to change.

    Returns
    -------
    torch.nn.Module
        Of the teacher's class, with layerdrop 0. Its `config` has an entry for
        the edit `StudentShape`, with which the lobes build it again.

    Raises
    ------
    ValueError
        If the teacher is of another class, the width is not divisible by the
        number of heads, the convolutions make another number of frames than
        the teacher's or are Whisper's, or `reuse` has the wrong length or is True for the first
        layer.

    Example
    -------
    >>> from transformers import HubertConfig
    >>> teacher = HubertModel(HubertConfig(
    ...     hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    ...     intermediate_size=32, conv_dim=[8, 8], conv_kernel=[10, 3],
    ...     conv_stride=[5, 2], num_conv_pos_embeddings=4,
    ...     num_conv_pos_embedding_groups=2,
    ... ))
    >>> student = make_student(
    ...     teacher, hidden_size=8, conv=[[4, 10, 5], [8, 3, 2]],
    ...     reuse=[False, True],
    ... )
    >>> student(torch.randn(1, 400)).last_hidden_state.shape
    torch.Size([1, 39, 8])
    >>> [name for name, _ in student.encoder.layers[1].attention.named_children()]
    ['v_proj', 'out_proj']
    """  # noqa: E501
    if not isinstance(teacher, FAMILIES):
        raise ValueError(
            f"teacher: a {type(teacher).__name__} has no students here; use "
            f"one of {[family.__name__ for family in FAMILIES]}"
        )
    config = deepcopy(teacher.config)
    is_whisper = isinstance(config, WhisperConfig)
    # a skipped layer would leave no map to reuse
    setattr(config, "encoder_layerdrop" if is_whisper else "layerdrop", 0.0)
    if hidden_size is not None:
        config.hidden_size = hidden_size
    if intermediate_size is not None:
        units = "encoder_ffn_dim" if is_whisper else "intermediate_size"
        setattr(config, units, intermediate_size)
    if conv is not None:
        if is_whisper:
            raise ValueError(
                "conv: Whisper's two convolutions are as wide as the model; "
                "leave conv out"
            )
        config.conv_dim, config.conv_kernel, config.conv_stride = (
            list(values) for values in zip(*conv)
        )
        config.num_feat_extract_layers = len(conv)
        _check_frames(config, teacher.config)
    for name, value in settings.items():
        if not hasattr(config, name):
            raise ValueError(f"{name}: no entry of the teacher's config")
        setattr(config, name, value)
    _check_config(config)
    layers = config.num_hidden_layers
    reuse = [False] * layers if reuse is None else [bool(r) for r in reuse]
    check_pattern(reuse, layers)
    student = _family_of(config)._from_config(config)
    if is_whisper:
        drop_decoder_(student)
    StudentShape(reuse=reuse).apply_(student)
    edit = {"student": {"reuse": reuse}}
    setattr(student.config, ENTRY, {"format": FORMAT, "edits": [edit]})
    copy_what_fits_(student, teacher)
    return student


def write_student(folder, teacher, **options):
    """Makes a student and writes it as a Hugging Face folder.

    Arguments
    ---------
    folder : str
        Files in it are overwritten; of several processes only one writes.
    teacher : str
        Folder of the teacher, or its name on the Hugging Face hub.
    **options
        Arguments of `make_student`.

    Returns
    -------
    str
        The folder, as `source` for the lobes in `sb_prune.lobes`.

    Raises
    ------
    ValueError
        If the teacher is pruned, or a student itself.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> from transformers import HubertConfig
    >>> teacher = HubertModel(HubertConfig(
    ...     hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    ...     intermediate_size=32, conv_dim=[8, 8], conv_kernel=[10, 3],
    ...     conv_stride=[5, 2], num_conv_pos_embeddings=4,
    ...     num_conv_pos_embedding_groups=2,
    ... ))
    >>> teacher.save_pretrained(folder / "teacher")
    >>> _ = Wav2Vec2FeatureExtractor().save_pretrained(folder / "teacher")
    >>> source = write_student(
    ...     str(folder / "student"), str(folder / "teacher"),
    ...     intermediate_size=8,
    ... )
    >>> AutoModel.from_pretrained(source).config.intermediate_size
    8
    """
    run_on_main(_write_student, [folder, teacher, options])
    return folder


def _write_student(folder, teacher, options):
    if hasattr(AutoConfig.from_pretrained(teacher), ENTRY):
        raise ValueError(
            f"teacher: {teacher} is pruned, or a student itself; name the "
            "dense encoder that it was made of"
        )
    model = make_student(AutoModel.from_pretrained(teacher), **options)
    model.save_pretrained(folder)
    is_whisper = isinstance(model, WhisperModel)
    kind = WhisperFeatureExtractor if is_whisper else Wav2Vec2FeatureExtractor
    kind.from_pretrained(teacher).save_pretrained(folder)


def _check_config(config):
    heads = config.num_attention_heads
    if config.hidden_size % heads:
        raise ValueError(
            f"hidden_size: {config.hidden_size} is not divisible by the "
            f"{heads} heads; write a multiple, e.g. "
            f"{config.hidden_size // heads * heads}"
        )


def _check_frames(config, teacher):
    """Refuses convolutions with another frame rate than the teacher's.

    The student is trained to follow the teacher in every frame.
    """
    found, wanted = (_frames(c, 160_000) for c in (config, teacher))
    if found != wanted:
        raise ValueError(
            f"conv: these convolutions make {found} frames of 10 s, the "
            f"teacher's {wanted}; choose kernels and strides that make as many"
        )


def _frames(config, samples):
    for kernel, stride in zip(config.conv_kernel, config.conv_stride):
        samples = (samples - kernel) // stride + 1
    return samples


def _family_of(config):
    return next(f for f in FAMILIES if isinstance(config, f.config_class))


@torch.no_grad()
def copy_what_fits_(student, teacher):
    """Copies every tensor of the teacher whose name and shape the student has.

    Arguments
    ---------
    student, teacher : torch.nn.Module

    Returns
    -------
    list of str
        Names of the copied tensors.
    """
    source = teacher.state_dict()
    copied = []
    for name, tensor in student.state_dict().items():
        if name in source and source[name].shape == tensor.shape:
            tensor.copy_(source[name])
            copied.append(name)
    return copied
