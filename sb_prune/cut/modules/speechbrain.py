"""Modules of SpeechBrain for cut models, where its own cannot run."""

from speechbrain.nnet.CNN import Conv2d

from sb_prune.cut.surgery import Absent


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


class AbsentCrossAttention(Absent):
    """Takes the place of a removed cross-attention.

    It returns attention weights too, since searchers read those of the last
    layer. They are zero.
    """

    def forward(self, query, key, *args, **kwargs):
        """Returns a scalar zero and zero weights (B, L, S), which are expanded
        and take no memory.
        """
        zero = query.new_zeros(())
        return zero, zero.expand(*query.shape[:2], key.shape[1])
