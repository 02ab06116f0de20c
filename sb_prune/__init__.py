"""Structured pruning and distillation of SpeechBrain speech models."""

from sb_prune.brain import PruningMixin
from sb_prune.budgets import MACBudget, ParameterBudget
from sb_prune.controllers import AugmentedLagrangian, ExactBudget
from sb_prune.cost import mac_cost, parameter_cost
from sb_prune.distillation import LayerwiseDistillation, Teacher
from sb_prune.gates import HardConcrete
from sb_prune.masking import attach_, detach_
from sb_prune.plan import Plan
from sb_prune.pruner import Pruner
from sb_prune.run import PruningRun
from sb_prune.schedules import ConstantSchedule, CubicSchedule, LinearSchedule
from sb_prune.structure import joined_structures
from sb_prune.structures.conformer import conformer_structures
from sb_prune.structures.convolution import front_end_structures
from sb_prune.surgery import cut_

__all__ = [
    "AugmentedLagrangian",
    "ConstantSchedule",
    "CubicSchedule",
    "ExactBudget",
    "HardConcrete",
    "LayerwiseDistillation",
    "LinearSchedule",
    "MACBudget",
    "ParameterBudget",
    "Plan",
    "Pruner",
    "PruningMixin",
    "PruningRun",
    "Teacher",
    "attach_",
    "conformer_structures",
    "cut_",
    "detach_",
    "front_end_structures",
    "joined_structures",
    "mac_cost",
    "parameter_cost",
]
