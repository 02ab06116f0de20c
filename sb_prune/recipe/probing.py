"""Parts of a probe: a small model trained on top of a frozen encoder."""

import torch


class WeightedSum(torch.nn.Module):
    """Weighted mean of the hidden states of all layers, with learnt weights.

    Yang et al., "SUPERB: Speech processing Universal PERformance Benchmark"
    (Interspeech 2021), section 3. The weights are a softmax over the layers
    and equal at the start of training.

    Arguments
    ---------
    states : int
        Number of hidden states: one more than there are layers, as the input
        of the first layer is a hidden state too.

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
        """Makes the weighted sum for a Hugging Face encoder.

        Arguments
        ---------
        encoder : torch.nn.Module
            A lobe made with `output_all_hiddens: True`.

        Returns
        -------
        WeightedSum
        """
        return cls(len(encoder.model.encoder.layers) + 1)

    @property
    def weights(self):
        """(states,) weight of each hidden state; they sum to 1."""
        return self.logits.softmax(0)

    def forward(self, states):
        """Returns the weighted mean of the hidden states.

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
