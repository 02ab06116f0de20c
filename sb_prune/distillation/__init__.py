"""Distillation: the dense model is the teacher of the one that is pruned."""

from sb_prune.distillation.copies import stored_weights
from sb_prune.distillation.distiller import Distiller
from sb_prune.distillation.gram import GramDistillation
from sb_prune.distillation.layerwise import (
    LayerwiseDistillation,
    nearest_surviving,
    same_index,
)
from sb_prune.distillation.masked import MaskingDistillation
from sb_prune.distillation.projected import ProjectedDistillation
from sb_prune.distillation.teacher import Teacher

__all__ = [
    "Distiller",
    "GramDistillation",
    "LayerwiseDistillation",
    "MaskingDistillation",
    "ProjectedDistillation",
    "Teacher",
    "nearest_surviving",
    "same_index",
    "stored_weights",
]
