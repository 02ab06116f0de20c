"""Features as a graph of their own, which other code may compute."""

import torch
from speechbrain.nnet.containers import LengthsCapableSequential
from speechbrain.processing.features import InputNormalization

from sb_prune.deploy.adapters import GlobalNormalization
from sb_prune.deploy.features import PlainFbank
from sb_prune.deploy.graphs import Input, write_graph
from sb_prune.deploy.runtime.settings import FEATURES, DeployError

SECONDS = 2  # of the noise that graphs are traced with
NORMALIZATIONS = (GlobalNormalization, InputNormalization)


def split_features(encoder):
    """Splits an encoder behind its features.

    Arguments
    ---------
    encoder : torch.nn.Module
        From `traceable`.

    Returns
    -------
    features : LengthsCapableSequential
        (wavs, lens) -> (batch, frames, features), normalised.
    rest : LengthsCapableSequential
        (features, lens) -> what the encoder returns.

    Raises
    ------
    DeployError
        If it is no `LengthsCapableSequential` that begins with `Fbank`.
    """
    layers = {"": encoder}
    if isinstance(encoder, LengthsCapableSequential):
        layers = dict(encoder.items())
    names = list(layers)
    if not isinstance(layers[names[0]], PlainFbank):
        raise DeployError(
            "--features_apart: this encoder begins with "
            f"{type(layers[names[0]]).__name__}; only features of WhisperASR "
            "and of a LengthsCapableSequential that begins with Fbank can be "
            "apart; leave it out"
        )
    end = 1
    while end < len(names) and isinstance(layers[names[end]], NORMALIZATIONS):
        end += 1
    features, rest = (
        LengthsCapableSequential(**{n: layers[n] for n in some}).eval()
        for some in (names[:end], names[end:])
    )
    return features, rest


class InOrder(torch.nn.Module):
    """Has the arguments of a graph, by their places.

    Arguments
    ---------
    module : LengthsCapableSequential
    """

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, source, lens):
        """Runs the module.

        Arguments
        ---------
        source : torch.Tensor
            (batch, samples) waveforms, or (batch, frames, features).
        lens : torch.Tensor
            (batch,) relative lengths.

        Returns
        -------
        torch.Tensor
            (batch, frames, ...)
        """
        return self.module(source, lens)


def begin_graph(encoder, sample_rate, folder, apart):
    """What the graph of an encoder is traced from.

    Arguments
    ---------
    encoder : torch.nn.Module
        (wavs, lens) -> states; from `traceable`.
    sample_rate : int
    folder : Path
        Gets `features.onnx` if features are apart.
    apart : bool
        Whether the graph begins behind them.

    Returns
    -------
    encoder : torch.nn.Module
        The same, or its part behind the features.
    inputs : dict
        Name -> `Input`, for `write_graph`.

    Raises
    ------
    DeployError
        If there are no features that can be apart.
    """
    wavs = torch.randn(2, SECONDS * sample_rate)
    lens = torch.tensor([1.0, 0.6])
    inputs = {"wavs": Input(wavs, (0, 1)), "lens": Input(lens, (0,))}
    if not apart:
        return encoder, inputs
    features, encoder = split_features(encoder)
    write_graph(InOrder(features), inputs, ["features"], folder / FEATURES)
    found = Input(features(wavs, lens).detach(), (0, 1))
    return encoder, {"features": found, "lens": inputs["lens"]}
