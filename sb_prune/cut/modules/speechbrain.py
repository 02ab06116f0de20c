"""Convolutions with fewer channels, where SpeechBrain's class cannot run."""

from speechbrain.nnet.CNN import Conv2d


class FewerChannels(Conv2d):
    """`speechbrain.nnet.CNN.Conv2d` that may have a single channel left.

    For inputs without a channel axis, the original forward removes this axis
    from its output if there is only one channel. Surgery turns a cut instance
    into this class; its weights, state dict keys and hooks stay as they were.

    Shapes: B utterances, T frames, F frequencies, C channels.
    """

    def forward(self, x):
        """Has the arguments and results of the class that it replaces.

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
