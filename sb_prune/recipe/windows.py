"""Audio that fills the window of an encoder."""

import torch


class FullWindows:
    """Now and then, joins the utterances of a batch until they fill a window.

    What is cut learns anew only where it hears something. Where training has
    short utterances with silence behind them, an encoder with positions, as
    Whisper's, never hears speech at the end of its window, and a decoder that
    reads it there repeats itself. Joined utterances have no transcript that
    fits, so this is for losses that compare hidden states.

    Arguments
    ---------
    share : float
        Of the batches, which are joined; the choice is torch's.
    seconds : float
        Of the window.
    sample_rate : int

    Example
    -------
    >>> windows = FullWindows(share=1.0, seconds=1.0, sample_rate=8)
    >>> wavs = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])
    >>> windows(wavs, torch.tensor([1.0, 0.67]))
    tensor([[1., 2., 3., 4., 5., 1., 2., 3.]])
    """

    def __init__(self, share=0.15, seconds=30.0, sample_rate=16000):
        if not 0 <= share <= 1:
            raise ValueError(f"share: {share}; write a number from 0 to 1")
        self.share = share
        self.samples = round(seconds * sample_rate)

    def __call__(self, wavs, wav_lens):
        """Joins a batch, or leaves it as it is.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples)
        wav_lens : torch.Tensor
            (batch,) relative lengths.

        Returns
        -------
        torch.Tensor
            (1, samples of the window), or `wavs`.
        """
        if torch.rand(()) >= self.share:
            return wavs
        ends = (wav_lens * wavs.shape[1]).round().int().tolist()
        joined = torch.cat([wav[:end] for wav, end in zip(wavs, ends)])
        times = -(-self.samples // len(joined))
        return joined.repeat(times)[None, : self.samples]
