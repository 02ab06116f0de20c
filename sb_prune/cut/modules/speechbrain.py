"""Convolutions with fewer channels, where the stock class cannot run so."""

from speechbrain.nnet.CNN import Conv2d


class FewerChannels(Conv2d):
    """`speechbrain.nnet.CNN.Conv2d` that may have a single channel left.

    On features without a channel axis, the stock forward drops the axis again
    where it makes one channel only. Surgery gives a cut instance this class;
    weights, keys and hooks stay as they were.

    Shapes: B utterances, T frames, F frequencies, C channels.
    """

    def forward(self, x):
        """Same contract as the class it replaces.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, F)

        Returns
        -------
        torch.Tensor
            (B, T, F, C), also where C is 1.
        """
        convolved = super().forward(x)
        return convolved.unsqueeze(-1) if convolved.dim() == 3 else convolved
