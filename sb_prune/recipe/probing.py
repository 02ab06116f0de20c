"""What a probe of a frozen encoder needs beside SpeechBrain's layers."""

import torch


def hidden_size(encoder):
    """Width of the hidden states of a lobe of a Hugging Face encoder.

    Arguments
    ---------
    encoder : torch.nn.Module

    Returns
    -------
    int
    """
    return encoder.model.config.hidden_size


class WeightedSum(torch.nn.Module):
    """A learnt mean of the hidden states of all layers.

    Yang et al., "SUPERB: Speech processing Universal PERformance Benchmark"
    (Interspeech 2021), section 3: the weights are a softmax, alike at first.

    Arguments
    ---------
    states : int
        How many hidden states there are: what enters the first layer, and
        what leaves each.

    Example
    -------
    >>> mean = WeightedSum(3)
    >>> mean(torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1)).item()
    2.0
    """

    def __init__(self, states):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(states))

    @classmethod
    def of(cls, encoder):
        """One for a lobe of a Hugging Face encoder.

        Arguments
        ---------
        encoder : torch.nn.Module
            Made with `output_all_hiddens: True`.

        Returns
        -------
        WeightedSum
        """
        return cls(len(encoder.model.encoder.layers) + 1)

    @property
    def weights(self):
        """(states,) what each counts; their sum is 1."""
        return self.logits.softmax(0)

    def forward(self, states):
        """The mean.

        Arguments
        ---------
        states : torch.Tensor
            (states, batch, frames, width)

        Returns
        -------
        torch.Tensor
            (batch, frames, width)
        """
        return torch.einsum("s,sbtd->btd", self.weights, states)
