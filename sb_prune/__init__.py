"""Structured pruning and distillation of SpeechBrain speech models.

The names in `__all__` are public: recipes, YAMLs and exports refer to them, so
they do not move. Each is imported when it is first used.
"""

from importlib import import_module

_ROOMS = {
    "architectures.branchformer": ["branchformer_structures"],
    "architectures.conformer": ["conformer_structures"],
    "architectures.encoder_decoder": ["encoder_decoder_structures"],
    "architectures.front_end": ["front_end_structures"],
    "architectures.transformer": [
        "decoder_structures",
        "transformer_structures",
    ],
    "architectures.wav2vec2": ["wav2vec2_structures"],
    "architectures.whisper": ["whisper_structures"],
    "architectures.whole_layers": ["layer_structures"],
    "brain": ["PruningMixin", "pruned"],
    "cut.edits": ["Cut", "Fold", "rebuild"],
    "cut.masking": ["attach_", "detach_"],
    "cut.refit": ["LeastSquares"],
    "cut.student_shape": ["StudentShape"],
    "cut.surgery": ["cut_"],
    "declare.cost": ["mac_cost", "parameter_cost"],
    "declare.joined": ["joined_structures"],
    "declare.plan": ["Plan"],
    "declare.roots": ["side_by_side"],
    "distillation": ["LayerwiseDistillation", "Teacher"],
    "export.build": ["Pretrainer", "load_verified"],
    "export.loading": ["load_export"],
    "export.old_formats": ["build_cut"],
    "export.generation": ["load_generation"],
    "export.tokens": ["load_spelling", "load_tokenizer"],
    "learn.budgets": ["MACBudget", "ParameterBudget"],
    "learn.controllers": ["AugmentedLagrangian", "ExactBudget"],
    "learn.gates": ["HardConcrete"],
    "learn.pruner": ["Pruner"],
    "learn.schedules": [
        "ConstantSchedule",
        "CubicSchedule",
        "LinearSchedule",
    ],
    "learn.scores": [
        "ScorePruner",
        "local_score",
        "magnitude_score",
        "random_score",
        "taylor_score",
    ],
    "presets": ["preset"],
    "run.layer_settings": ["LayerSettings"],
    "run.resume": ["make_resumable_"],
    "run.settings": ["PruningSettings"],
    "support.parallel": ["end_with_idle_threads"],
}
_WHERE = {name: room for room, names in _ROOMS.items() for name in names}
_FORMAT_1 = ("loading", "roots", "structure", "structures")

__all__ = sorted(_WHERE)


def __getattr__(name):
    if name in _WHERE:
        return getattr(import_module(f"sb_prune.{_WHERE[name]}"), name)
    if name in _FORMAT_1:  # former modules, to which old exports refer
        return getattr(import_module("sb_prune.export.old_formats"), name)
    raise AttributeError(f"module 'sb_prune' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
