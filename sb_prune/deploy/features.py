"""Features as plain convolutions and matrix products, for any runtime.

A short-time Fourier transform is a convolution whose kernels are windowed
cosines and sines. Runtimes without complex numbers have that, and it keeps the
precision of float32.

Shapes: B batch, S samples, T frames, M mel channels, N samples in a window.
"""

import math

import torch
from torch.nn import functional as F


class PowerSpectrum(torch.nn.Module):
    """Squared magnitudes of a centred short-time Fourier transform.

    Arguments
    ---------
    n_fft : int
        N, samples in a window of the transform.
    hop : int
        Samples between windows.
    window : torch.Tensor
        (N or fewer,), centred in the window of the transform.
    padding : str
        How waveforms are continued at their ends: "constant" or "reflect".

    Example
    -------
    >>> wavs = torch.randn(2, 800)
    >>> window = torch.hann_window(400)
    >>> power = PowerSpectrum(400, 160, window, "constant")(wavs)
    >>> stft = torch.stft(
    ...     wavs, 400, 160, window=window, pad_mode="constant",
    ...     return_complex=True,
    ... )
    >>> torch.allclose(power, stft.abs() ** 2, rtol=1e-3, atol=1e-3)
    True
    """

    def __init__(self, n_fft, hop, window, padding):
        super().__init__()
        self.n_fft, self.hop, self.padding = n_fft, hop, padding
        before = (n_fft - len(window)) // 2
        behind = n_fft - len(window) - before
        window = F.pad(window.double(), (before, behind))
        frequency = torch.arange(n_fft // 2 + 1, dtype=torch.float64)
        turns = torch.outer(frequency, torch.arange(n_fft).double())
        angles = 2 * math.pi * torch.remainder(turns, n_fft) / n_fft
        kernels = torch.cat([angles.cos() * window, angles.sin() * window])
        self.register_buffer("kernels", kernels.float().unsqueeze(1))

    def forward(self, wavs):
        """Transforms waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, S)

        Returns
        -------
        torch.Tensor
            (B, N // 2 + 1, T)
        """
        half = (self.n_fft // 2, self.n_fft // 2)
        padded = F.pad(wavs.unsqueeze(1), half, mode=self.padding)
        parts = F.conv1d(padded, self.kernels, stride=self.hop)
        real, imaginary = parts.chunk(2, dim=1)
        return real * real + imaginary * imaginary


class PlainFbank(torch.nn.Module):
    """Computes what `speechbrain.lobes.features.Fbank` computes.

    Arguments
    ---------
    stock : Fbank

    Raises
    ------
    ValueError
        If it adds derivatives or neighbouring frames, or its transform is not
        the usual one.
    """

    def __init__(self, stock):
        super().__init__()
        transform, bank = stock.compute_STFT, stock.compute_fbanks
        plain = (
            transform.center
            and transform.onesided
            and not transform.normalized_stft
            and bank.power_spectrogram == 2
            and bank.log_mel
        )
        if stock.deltas or stock.context or not plain:
            raise ValueError(
                f"{type(stock).__name__}: only log mel energies can be "
                "deployed, without deltas, context or another transform"
            )
        self.spectrum = PowerSpectrum(
            transform.n_fft,
            transform.hop_length,
            transform.window,
            transform.pad_mode,
        )
        frequencies = len(bank.all_freqs_mat[0])
        centres = bank.f_central.detach()[:, None].expand(-1, frequencies)
        bands = bank.band.detach()[:, None].expand(-1, frequencies)
        if not bank.freeze:  # they are stored in other units if they learn
            scale = bank.sample_rate * bank.param_change_factor**2
            centres, bands = centres * scale, bands * scale
        filters = bank._create_fbank_matrix(centres, bands)
        # the filters stand in front of the product: quantization takes what
        # stands behind, and energies differ too much for that
        self.register_buffer("filters", filters.T.contiguous())
        self.smallest, self.range = bank.amin, bank.top_db
        self.reference = bank.multiplier * bank.db_multiplier
        self.multiplier = bank.multiplier

    def forward(self, wavs):
        """Computes log mel energies.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, S)

        Returns
        -------
        torch.Tensor
            (B, T, M), in dB.
        """
        energy = (self.filters @ self.spectrum(wavs)).transpose(1, 2)
        energy = energy.clamp(min=self.smallest).log10()
        energy = self.multiplier * energy - self.reference
        loudest = energy.amax(dim=(1, 2), keepdim=True)
        return torch.maximum(energy, loudest - self.range)


class LogMel(torch.nn.Module):
    """Computes the log mel spectrum of a lobe of Whisper.

    What is more than 80 dB below the loudest of an utterance is lifted to
    that.

    Arguments
    ---------
    lobe : Whisper
    """

    def __init__(self, lobe):
        super().__init__()
        size = lobe._n_fft
        self.spectrum = PowerSpectrum(
            size, lobe._hop_length, torch.hann_window(size), "reflect"
        )
        self.register_buffer("filters", lobe._mel_filters.detach().clone())

    def forward(self, wavs):
        """Computes the spectrum.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, S), padded to what the encoder hears.

        Returns
        -------
        torch.Tensor
            (B, M, T)
        """
        energy = self.filters @ self.spectrum(wavs)[..., :-1]
        energy = energy.clamp(min=1e-10).log10()
        loudest = energy.amax(dim=(1, 2), keepdim=True)
        energy = torch.maximum(energy, loudest - 8)
        return (energy + 4) / 4
