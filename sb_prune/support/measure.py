"""Measures what a loaded model costs on the CPU.

An `encoder` here is the function that SpeechBrain's inference classes call. It
takes waveforms (batch, samples) and their relative lengths (batch,) and returns
the encoder's output.
"""

from statistics import median
from time import perf_counter

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sb_prune.support.audio import SAMPLE_RATE


def noise(seconds, sample_rate=SAMPLE_RATE):
    """Makes one utterance of white noise, the same at every call.

    Arguments
    ---------
    seconds : float
        Length of the utterance.
    sample_rate : int
        Samples per second.

    Returns
    -------
    torch.Tensor
        (1, samples)

    Example
    -------
    >>> noise(0.5).shape
    torch.Size([1, 8000])
    """
    generator = torch.Generator().manual_seed(0)
    samples = round(seconds * sample_rate)
    return 0.1 * torch.randn(1, samples, generator=generator)


def count_parameters(modules):
    """Counts parameters; one that several modules share is counted once.

    Arguments
    ---------
    modules : iterable of torch.nn.Module

    Returns
    -------
    int

    Example
    -------
    >>> linear = torch.nn.Linear(2, 3)
    >>> count_parameters([linear, torch.nn.Sequential(linear)])
    9
    """
    return sum(p.numel() for p in torch.nn.ModuleList(modules).parameters())


@torch.no_grad()
def count_macs(encoder, wavs):
    """Counts the multiply-accumulates of one forward pass, with PyTorch.

    Arguments
    ---------
    encoder : callable
        In eval mode.
    wavs : torch.Tensor
        (batch, samples)

    Returns
    -------
    float
        Without the operations that PyTorch cannot count (FFTs, LSTMs).

    Example
    -------
    >>> linear = torch.nn.Linear(4, 3)
    >>> count_macs(lambda wavs, lengths: linear(wavs), torch.ones(1, 4))
    12.0
    """
    counter = FlopCounterMode(display=False)
    # PyTorch's counter misses the fused attention kernel of CPUs
    with sdpa_kernel(SDPBackend.MATH), counter:
        encoder(wavs, torch.ones(len(wavs)))
    return counter.get_total_flops() / 2


@torch.no_grad()
def count_frames(encoder, module, wavs, axis=1):
    """Counts the frames at the input of a module inside the encoder.

    Arguments
    ---------
    encoder : callable
        In eval mode.
    module : torch.nn.Module
        Its first argument is a tensor with the frames.
    wavs : torch.Tensor
        (batch, samples)
    axis : int
        Where they are; 1 in (batch, frames, features).

    Returns
    -------
    int or None
        None if the encoder does not run the module.

    Example
    -------
    >>> linear = torch.nn.Linear(2, 3)
    >>> count_frames(
    ...     lambda wavs, lengths: linear(wavs.view(1, 5, 2)),
    ...     linear,
    ...     torch.ones(1, 10),
    ... )
    5
    """

    def stop(module, args, kwargs):
        inputs = [*args, *kwargs.values()]
        first = next(x for x in inputs if torch.is_tensor(x))
        raise _Reached(first.shape[axis])

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        encoder(wavs, torch.ones(len(wavs)))
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()


class _Reached(Exception):
    """Ends a forward pass once the number of frames is known."""


@torch.no_grad()
def measure_speed(encoders, seconds=10, sample_rate=SAMPLE_RATE, runs=9):
    """Measures the real-time factor of several encoders.

    The encoders take turns, so that other load on the machine affects all of
    them alike.

    Arguments
    ---------
    encoders : dict
        Name -> encoder, in eval mode.
    seconds : float
        Length of the audio, one utterance of noise.
    sample_rate : int
        Samples per second.
    runs : int
        Number of timed forward passes of each encoder, after one for warming
        up that is not timed.

    Returns
    -------
    dict
        Name -> median seconds of computation per second of audio, with
        `torch.get_num_threads()` threads.

    Example
    -------
    >>> speed = measure_speed({"none": lambda wavs, lengths: wavs}, 0.1)
    >>> speed["none"] < 1
    True
    """
    wavs, lengths = noise(seconds, sample_rate), torch.ones(1)
    times = {name: [] for name in encoders}
    for run in range(runs + 1):
        for name, encoder in encoders.items():
            start = perf_counter()
            encoder(wavs, lengths)
            if run:
                times[name].append(perf_counter() - start)
    return {name: median(taken) / seconds for name, taken in times.items()}
