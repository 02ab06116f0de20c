"""Structured pruning and distillation of SpeechBrain speech models."""

from sb_prune.brain import PruningMixin, pruned
from sb_prune.budgets import MACBudget, ParameterBudget
from sb_prune.controllers import AugmentedLagrangian, ExactBudget
from sb_prune.cost import mac_cost, parameter_cost
from sb_prune.distillation import LayerwiseDistillation, Teacher
from sb_prune.gates import HardConcrete
from sb_prune.layer_pruning import LayerPruning
from sb_prune.masking import attach_, detach_
from sb_prune.plan import Plan
from sb_prune.pruner import Pruner
from sb_prune.run import PruningRun
from sb_prune.schedules import ConstantSchedule, CubicSchedule, LinearSchedule
from sb_prune.scores import (
    ScorePruner,
    magnitude_score,
    random_score,
    taylor_score,
)
from sb_prune.structure import joined_structures
from sb_prune.structures.branchformer import branchformer_structures
from sb_prune.structures.conformer import conformer_structures
from sb_prune.structures.convolution import front_end_structures
from sb_prune.structures.encoder_decoder import encoder_decoder_structures
from sb_prune.structures.transformer import (
    decoder_structures,
    transformer_structures,
)
from sb_prune.structures.wav2vec2 import wav2vec2_structures
from sb_prune.structures.whole_layers import layer_structures
from sb_prune.surgery import cut_

__all__ = [
    "AugmentedLagrangian",
    "ConstantSchedule",
    "CubicSchedule",
    "ExactBudget",
    "HardConcrete",
    "LayerPruning",
    "LayerwiseDistillation",
    "LinearSchedule",
    "MACBudget",
    "ParameterBudget",
    "Plan",
    "Pruner",
    "PruningMixin",
    "PruningRun",
    "ScorePruner",
    "Teacher",
    "attach_",
    "branchformer_structures",
    "conformer_structures",
    "cut_",
    "decoder_structures",
    "detach_",
    "encoder_decoder_structures",
    "front_end_structures",
    "joined_structures",
    "layer_structures",
    "mac_cost",
    "magnitude_score",
    "parameter_cost",
    "pruned",
    "random_score",
    "taylor_score",
    "transformer_structures",
    "wav2vec2_structures",
]
