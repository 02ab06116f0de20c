"""What of a stock model cannot be traced, and what takes its place.

The model itself stays stock: `traceable` returns a copy that shares all weights
and holds other modules in place of a few, and inside `traceable_functions` some
functions of SpeechBrain and torch are others.
"""

import copy
import math
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from speechbrain.dataio import dataio
from speechbrain.nnet import attention

from sb_prune.deploy.features import PlainFbank
from sb_prune.deploy.states import AlignedStates


class GlobalNormalization(torch.nn.Module):
    """Computes what an `InputNormalization` with global statistics does.

    Arguments
    ---------
    stock : InputNormalization
        Its statistics are known.
    """

    def __init__(self, stock):
        super().__init__()
        deviation = stock.glob_std
        if stock.std_norm is False:
            deviation = torch.ones_like(stock.glob_mean)
        self.register_buffer("mean", stock.glob_mean.clone())
        self.register_buffer("std", deviation.clamp(min=stock.epsilon).clone())

    def forward(self, x, lengths=None):
        """Normalises features.

        Arguments
        ---------
        x : torch.Tensor
            (batch, frames, features)
        lengths : torch.Tensor, optional
            Not needed.

        Returns
        -------
        torch.Tensor
            (batch, frames, features)
        """
        return (x - self.mean) / self.std


def _normalization(stock):
    plain = stock.norm_type == "global" and stock.length_dim == 1
    if not plain or stock.avoid_padding_norm:
        return stock
    if not len(stock.glob_mean):
        raise ValueError("InputNormalization: its statistics are not loaded")
    return GlobalNormalization(stock)


def _whisper(stock):
    if not getattr(stock, "aligned", False):
        raise ValueError(
            f"{type(stock).__name__}: as an encoder for CTC only "
            "sb_prune.lobes.Whisper with aligned: True can be deployed"
        )
    return AlignedStates(stock)


ADAPTERS = {  # by public names, as not every class can be imported
    "speechbrain.lobes.features.Fbank": PlainFbank,
    "speechbrain.processing.features.InputNormalization": _normalization,
    "sb_prune.lobes.whisper.Whisper": _whisper,
    "speechbrain.integrations.huggingface.whisper.Whisper": _whisper,
}


def traceable(module):
    """Copies a model, with modules that can be traced.

    Arguments
    ---------
    module : torch.nn.Module
        In eval mode. It is not changed.

    Returns
    -------
    torch.nn.Module
        It shares all parameters and buffers with the original.

    Raises
    ------
    ValueError
        If a module is set up in a way that cannot be deployed.
    """
    tensors = [*module.parameters(), *module.buffers()]
    copied = copy.deepcopy(module, {id(t): t for t in tensors})
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child)
            adapt = ADAPTERS.get(f"{kind.__module__}.{kind.__qualname__}")
            if adapt is not None:
                setattr(parent, name, adapt(child))
    return copied


@contextmanager
def traceable_functions():
    """Context in which some functions work on symbolic sizes, or faster."""
    stock = dataio.length_to_mask
    users = [
        module
        for module in sys.modules.values()
        if module is not None and vars(module).get("length_to_mask") is stock
    ]
    swaps = [(user, "length_to_mask", length_to_mask) for user in users]
    # it keeps what it computed last, and would keep what was traced
    swaps.append((attention, "_get_precomputed_values", rotations))
    name = "scaled_dot_product_attention"
    swaps.append((torch.nn.functional, name, plain_attention))
    originals = [getattr(user, name) for user, name, _ in swaps]
    for user, name, own in swaps:
        setattr(user, name, own)
    try:
        yield
    finally:
        for (user, name, _), original in zip(swaps, originals):
            setattr(user, name, original)


def length_to_mask(length, max_len=None, dtype=None, device=None):
    """As `speechbrain.dataio.dataio.length_to_mask`, for any batch size.

    Arguments
    ---------
    length : torch.Tensor
        (batch,)
    max_len : int, optional
        By default the longest.
    dtype : torch.dtype, optional
        By default that of the lengths.
    device : torch.device, optional
        By default that of the lengths.

    Returns
    -------
    torch.Tensor
        (batch, max_len), 1 where there is no padding.

    Example
    -------
    >>> length_to_mask(torch.tensor([1.0, 2.0]), max_len=2)
    tensor([[1., 0.],
            [1., 1.]])
    """
    if max_len is None:
        max_len = length.max().long().item()
    steps = torch.arange(max_len, device=length.device, dtype=length.dtype)
    mask = steps < length.unsqueeze(1)
    return mask.to(device or length.device, dtype or length.dtype)


def plain_attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
):
    """As torch's `scaled_dot_product_attention`, where a query has a key.

    Before opset 23 ONNX has no operator for torch's function, and what stands
    for it looks at every weight once more, as a query without any key gets
    zeros. Here it would get NaN; in a model every utterance has a frame.

    Arguments
    ---------
    query, key, value : torch.Tensor
        (..., steps, dims)
    attn_mask : torch.Tensor, optional
        (..., query steps, key steps): False where a query does not look, or
        numbers to add.
    dropout_p : float
        Must be 0: a deployed model is not trained.
    is_causal : bool
        Whether no query looks ahead. It stands without a mask.
    scale : float, optional
        By default 1 / sqrt(dims).
    enable_gqa : bool
        Must be False: as many key heads as query heads.

    Returns
    -------
    torch.Tensor
        (..., query steps, dims of the values)

    Raises
    ------
    ValueError
        If it should drop weights, share heads, or be causal beside a mask.

    Example
    -------
    >>> states = torch.eye(2)[None]
    >>> plain_attention(states, states, states, is_causal=True)[0, 0]
    tensor([1., 0.])
    """
    if dropout_p or enable_gqa:
        raise ValueError("attention with dropout or grouped heads")
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attention that is causal beside a mask")
        attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def rotations(length, input_size, dtype, device):
    """Cosines and sines of rotary positions (2104.09864, equation 34).

    Takes the place of the values that SpeechBrain's `RoPEMHA` keeps.

    Arguments
    ---------
    length : int
    input_size : int
        Dims of a head, D.
    dtype : torch.dtype
    device : torch.device

    Returns
    -------
    SimpleNamespace
        `cosines` and `sines` (length, D), and `index_swap` (D,), which swaps
        the dims of each pair.
    """
    pairs = torch.arange(0, input_size, 2, device=device).float()
    speeds = torch.exp(-math.log(10000.0) / input_size * pairs)
    steps = torch.arange(length, device=device).float()
    angles = torch.outer(steps, speeds).repeat_interleave(2, dim=1)
    dims = torch.arange(input_size, device=device)
    signs = torch.where(dims % 2 == 0, -1.0, 1.0)
    return SimpleNamespace(
        cosines=angles.cos().to(dtype),
        sines=(angles.sin() * signs).to(dtype),
        index_swap=dims + torch.where(dims % 2 == 0, 1, -1),
    )
