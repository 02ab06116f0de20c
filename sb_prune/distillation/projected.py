"""Distillation of chosen layers through linear heads, without labels.

The loss is L1 distance and cosine similarity, as in DistilHuBERT (Chang et al.,
ICASSP 2022) and DPHuBERT (Peng et al., "DPHuBERT: Joint Distillation and
Pruning of Self-Supervised Speech Models", Interspeech 2023, 2305.17651), or the
squared error.

Shapes: B utterances, T frames, d width of the student, D width of the teacher.
"""

from torch import nn
from torch.nn import functional as F

from sb_prune.support.values import (
    ListOf,
    Number,
    OneOrList,
    Whole,
    YesNo,
    checked,
)


class ProjectedDistillation(nn.Module):
    """Loss between chosen layers of student and teacher, through linear heads.

    The heads map the width of the student to that of the teacher. They are
    trained with the student, but are not part of it.

    Arguments
    ---------
    student_size, teacher_size : int
        Model widths d and D.
    layers : list of (int or list of int)
        Positions of hidden states, where 0 is the input of the first layer.
        Layers in an inner list share a head.
    identity : bool
        Whether heads start as the identity instead of random weights.
    l1_weight, cosine_weight, mse_weight : float
        Weights of the mean absolute difference, of the cosine similarity (which
        is subtracted) and of the mean squared error.

    Raises
    ------
    ValueError
        If there are no layers, a layer is listed twice, or heads between
        different widths should start as the identity.

    Example
    -------
    >>> import torch
    >>> distillation = ProjectedDistillation(
    ...     4, 4, layers=[0, [1, 2]], identity=True
    ... )
    >>> hidden = [torch.ones(1, 5, 4)] * 3
    >>> parts = distillation(hidden, hidden)
    >>> {name: round(float(value), 3) for name, value in parts.items()}
    {'distill_layer0': -1.0, 'distill_layer1': -1.0, 'distill_layer2': -1.0}
    """

    @checked
    def __init__(
        self,
        student_size: Whole(1),
        teacher_size: Whole(1),
        layers: ListOf(
            OneOrList(Whole(0), least=1), least=1, example="[0, [4, 8, 12]]"
        ),
        identity: YesNo() = False,
        l1_weight: Number(least=0) = 1.0,
        cosine_weight: Number(least=0) = 1.0,
        mse_weight: Number(least=0) = 0.0,
    ):
        super().__init__()
        groups = [[g] if isinstance(g, int) else list(g) for g in layers]
        named = [layer for group in groups for layer in group]
        if len(set(named)) < len(named):
            raise ValueError(
                f"layers: {layers}; name each layer that is to be distilled "
                "once"
            )
        if identity and student_size != teacher_size:
            raise ValueError(
                f"identity: no head between {student_size} and {teacher_size} "
                "features is one; write identity: False"
            )
        self.heads = nn.ModuleList(
            nn.Linear(student_size, teacher_size) for _ in groups
        )
        if identity:
            for head in self.heads:
                nn.init.eye_(head.weight)
                nn.init.zeros_(head.bias)
        self.head_of = {
            layer: i for i, group in enumerate(groups) for layer in group
        }
        self.l1_weight = l1_weight
        self.cosine_weight = cosine_weight
        self.mse_weight = mse_weight

    def forward(self, student, teacher, padded=None):
        """Computes the weighted parts of the loss, without padding.

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
        check_layer(max(self.head_of), student, teacher)
        parts = {}
        for layer, head in sorted(self.head_of.items()):
            own = self.heads[head](student[layer]).float()
            goal = teacher[layer].detach().float()
            if padded is not None:
                own, goal = own[~padded], goal[~padded]
            parts[f"distill_layer{layer}"] = self._distance(own, goal)
        return parts

    def _distance(self, own, goal):
        loss = own.new_zeros(())
        if self.l1_weight:
            loss = loss + self.l1_weight * F.l1_loss(own, goal)
        if self.cosine_weight:
            similarity = F.cosine_similarity(own, goal, dim=-1).mean()
            loss = loss - self.cosine_weight * similarity
        if self.mse_weight:
            loss = loss + self.mse_weight * F.mse_loss(own, goal)
        return loss


def check_layer(layer, student, teacher):
    """Refuses a layer that student or teacher lack, and other frames.

    Arguments
    ---------
    layer : int
        Position of a hidden state.
    student, teacher : list of torch.Tensor
        All hidden states.

    Raises
    ------
    ValueError
        If one of them has fewer, or they have not the same frames.
    """
    most = min(len(student), len(teacher)) - 1
    if layer > most:
        raise ValueError(
            f"layers: {layer}, but student and teacher have {most} in "
            "common; name layers that both have"
        )
    frames = [states[layer].shape[:2] for states in (student, teacher)]
    if frames[0] != frames[1]:
        raise ValueError(
            f"student and teacher have {[*frames[0]]} and {[*frames[1]]} "
            "(utterances, frames); give both the same audio and frame rate"
        )
