"""Distillation of how frames relate to one another, without heads or labels.

Jang et al., "STaR: Distilling Speech Temporal Relation for Lightweight Speech
Self-Supervised Learning Models" (ICASSP 2024, 2312.09040): a layer's temporal
Gram matrix holds the product of every two of its frames. It has no axis of
features, so student and teacher may be of any width.

Shapes: B utterances, T frames, d width of the student, D width of the teacher.
"""

import torch
from torch import nn
from torch.nn import functional as F

from sb_prune.distillation.projected import check_layer
from sb_prune.support.values import ListOf, Whole, YesNo, checked


class GramDistillation(nn.Module):
    """Squared error between temporal Gram matrices of student and teacher.

    The matrix of a layer is G = F F^T / d, (T, T), of its frames F (T, d). The
    loss of a layer is the mean over all pairs of frames of one utterance, of
    all utterances together.

    Arguments
    ---------
    layers : list of int
        Positions of hidden states, where 0 is the input of the first layer.
    cosine : bool
        Whether frames are scaled to the same length first (G holds their
        cosines), so that no few features of large values outweigh the others.

    Raises
    ------
    ValueError
        If there are no layers, or a layer is listed twice.

    Example
    -------
    >>> distillation = GramDistillation([1])
    >>> student, teacher = torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 8)
    >>> distillation(student, teacher)
    {'distill_layer1': tensor(0.)}
    >>> distillation(2 * student, teacher)
    {'distill_layer1': tensor(9.)}
    """

    @checked
    def __init__(
        self,
        layers: ListOf(Whole(0), least=1, example="[4, 8, 12]"),
        cosine: YesNo() = False,
    ):
        super().__init__()
        if len(set(layers)) < len(layers):
            raise ValueError(f"layers: {layers}; name each layer once")
        self.layers = sorted(layers)
        self.cosine = cosine

    def forward(self, student, teacher, padded=None):
        """Computes the loss of each layer, without padding.

        Arguments
        ---------
        student : list of torch.Tensor
            (B, T, d) hidden states: the input of the first layer, then the
            output of each layer.
        teacher : list of torch.Tensor
            (B, T, D) the same of the teacher. They get no gradient.
        padded : torch.Tensor, optional
            (B, T) bool, True for padding.

        Returns
        -------
        dict
            "distill_layer4" ... -> scalar tensor.

        Raises
        ------
        ValueError
            If student or teacher do not have a layer, or other frames.
        """
        check_layer(self.layers[-1], student, teacher)
        return {
            f"distill_layer{layer}": self._distance(
                student[layer], teacher[layer].detach(), padded
            )
            for layer in self.layers
        }

    def _distance(self, own, goal, padded):
        squares = (self._gram(own) - self._gram(goal)).square()
        if padded is None:
            return squares.mean()
        pairs = ~(padded[:, :, None] | padded[:, None, :])
        return squares[pairs].mean()

    def _gram(self, frames):
        """(B, T, T)"""
        frames = frames.float()
        if self.cosine:
            frames = F.normalize(frames, dim=-1) * frames.shape[-1] ** 0.5
        with torch.autocast(frames.device.type, enabled=False):
            return frames @ frames.mT / frames.shape[-1]
