"""Masking distillation: the teacher sees frames that the student does not.

Frames of the student's input are masked. In masked frames, its target is what
the teacher computes from the whole input. In all other frames, it is what the
teacher computes from the same masked input, so that both know the same (Jang
et al., "Recycle-and-Distill", Interspeech 2023, 2305.11685, section 3.2).

Shapes: B utterances, T frames, L layers, d student's width, D teacher's.
"""

import torch
from torch import nn

from sb_prune.support.values import Number, Whole, checked


def draw_spans(batch, frames, fraction, length, generator=None):
    """Draws frames to mask, in spans that may overlap, as in wav2vec 2.0.

    Arguments
    ---------
    batch, frames : int
        B, T.
    fraction : float
        Fraction of frames that would be masked if no spans overlapped.
    length : int
        Number of frames in a span.
    generator : torch.Generator, optional
        On the CPU.

    Returns
    -------
    torch.Tensor
        (B, T) bool, True for frames to mask.

    Raises
    ------
    ValueError
        If the fraction is not between 0 and 1 or the length is not positive.

    Example
    -------
    >>> generator = torch.Generator().manual_seed(0)
    >>> mask = draw_spans(2, 100, fraction=0.4, length=10, generator=generator)
    >>> mask.sum(1) <= 50
    tensor([True, True])
    """
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"fraction: {fraction}; write a number between 0 and 1"
        )
    if length < 1:
        raise ValueError(f"length: {length}; write 1 or more frames")
    length = min(length, frames)
    mask = torch.zeros(batch, frames, dtype=torch.bool)
    for row in mask:
        # a fraction of a span is rounded up with this probability
        spans = fraction * frames / length
        spans = int(spans + torch.rand((), generator=generator))
        starts = torch.randperm(frames - length + 1, generator=generator)
        for start in starts[:spans].tolist():
            row[start : start + length] = True
    return mask


class MaskingDistillation(nn.Module):
    """Squared errors of all layers, each through a linear head of its own.

    The error of a layer is a mean over features, summed over frames and divided
    by B T. Layers are added up with weights. The heads map the width of the
    student to that of the teacher; they are not part of the student.

    Arguments
    ---------
    layers : int
        Number of layers, L.
    student_size, teacher_size : int
        Model widths d and D.
    last_weight, other_weight : float
        Weight of the last layer, and of each other layer.

    Example
    -------
    >>> distillation = MaskingDistillation(2, student_size=3, teacher_size=4)
    >>> student = [torch.randn(1, 5, 3) for _ in range(2)]
    >>> masked, unmasked = ([torch.randn(1, 5, 4)] * 2 for _ in range(2))
    >>> mask = torch.tensor([[True, True, False, False, False]])
    >>> parts = distillation(student, masked, unmasked, mask)
    >>> list(parts)
    ['distill_layer0', 'distill_layer1']
    """

    @checked
    def __init__(
        self,
        layers: Whole(1),
        student_size: Whole(1),
        teacher_size: Whole(1),
        last_weight: Number(least=0) = 1.0,
        other_weight: Number(least=0) = 0.1,
    ):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Linear(student_size, teacher_size) for _ in range(layers)
        )
        self.weights = [other_weight] * (layers - 1) + [last_weight]

    def forward(
        self, student, teacher_masked, teacher_unmasked, mask, padded=None
    ):
        """Computes the weighted parts of the loss.

        Arguments
        ---------
        student : list of torch.Tensor
            (B, T, d) hidden states of each layer, for the masked input.
        teacher_masked, teacher_unmasked : list of torch.Tensor
            (B, T, D) hidden states of each layer, for the masked and for the
            whole input. They get no gradient.
        mask : torch.Tensor
            (B, T) bool, True where the input is masked.
        padded : torch.Tensor, optional
            (B, T) bool, True for padding. It adds no error, but its frames
            count in B T.

        Returns
        -------
        dict
            "distill_layer0" ... -> scalar tensor.

        Raises
        ------
        ValueError
            If a list has another number of layers.
        """
        counts = {len(x) for x in (student, teacher_masked, teacher_unmasked)}
        if counts != {len(self.heads)}:
            raise ValueError(
                f"layers: {len(student)} of the student, "
                f"{len(teacher_masked)} and {len(teacher_unmasked)} of the "
                f"teacher, but {len(self.heads)} heads; these must be as many"
            )
        parts = {}
        for i, head in enumerate(self.heads):
            target = torch.where(
                mask[..., None], teacher_unmasked[i], teacher_masked[i]
            ).detach()
            error = head(student[i]).float() - target.float()
            if padded is not None:
                error = error.masked_fill(padded[..., None], 0.0)
            parts[f"distill_layer{i}"] = self.weights[i] * error.square().mean()
        return parts
