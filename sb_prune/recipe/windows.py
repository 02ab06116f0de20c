"""Audio that fills the window of an encoder."""

import torch


class FullWindows:
    """Now and then, joins the utterances of a batch until they fill a window.

    What is cut learns anew only where it hears something. Where training has
    short utterances with silence behind them, an encoder with positions, as
    Whisper's, never hears speech at the end of its window, and a decoder that
    reads it there repeats itself. The last utterance may stop half-way, so this
    is for losses that compare student and teacher, not for transcripts.

    Arguments
    ---------
    lobe : sb_prune.lobes.Whisper
        The window is the longest utterance that it can hear.
    share : float
        Of the batches, which are joined; the choice is torch's.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> windows = FullWindows(SimpleNamespace(longest=8), share=1.0)
    >>> utterances = [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5])]
    >>> wavs, said = windows(utterances, [torch.tensor([5]), torch.tensor([7])])
    >>> wavs.shape, said
    (torch.Size([1, 8]), tensor([[5, 7, 5]]))
    """

    def __init__(self, lobe, share=0.15):
        if not 0 <= share <= 1:
            raise ValueError(f"share: {share}; write a number from 0 to 1")
        self.share = share
        self.samples = lobe.longest

    def __call__(self, utterances, texts):
        """Joins a batch, or leaves it as it is.

        Arguments
        ---------
        utterances : list of torch.Tensor
            (samples,) each.
        texts : list of torch.Tensor
            (tokens,) each, what is said.

        Returns
        -------
        tuple of torch.Tensor, or None
            (1, samples of the window) and (1, tokens), about as many as are
            said in it; None if the batch stays as it is.
        """
        if torch.rand(()) >= self.share:
            return None
        wavs, tokens = torch.cat(utterances), torch.cat(texts)
        said = round(self.samples / len(wavs) * len(tokens))
        return _filled(wavs, self.samples), _filled(tokens, said)


def _filled(row, size):
    """So many items of a row that begins again and again, as a batch."""
    times = -(-size // max(len(row), 1))
    return row.repeat(times)[None, :size]


def unpadded(batch, lengths):
    """Rows of a batch without what pads them.

    Arguments
    ---------
    batch : torch.Tensor
        (batch, time)
    lengths : torch.Tensor
        (batch,), relative to the longest.

    Returns
    -------
    list of torch.Tensor

    Example
    -------
    >>> unpadded(torch.tensor([[1, 2], [3, 0]]), torch.tensor([1.0, 0.5]))
    [tensor([1, 2]), tensor([3])]
    """
    ends = (lengths * batch.shape[1]).round().int().tolist()
    return [row[:end] for row, end in zip(batch, ends)]
