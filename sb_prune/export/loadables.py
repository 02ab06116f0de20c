"""What an export's Pretrainer loads: found in a recipe, and saved."""

import torch
from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook

from sb_prune.cut.folding import folded_state


def find_object(brain, name, inference):
    """An object of the recipe: on the Brain, in hparams, in its `modules`."""
    for place in (vars(brain), vars(brain.hparams), dict(brain.modules)):
        if name in place:
            return place[name]
    raise ValueError(
        f"inference: {inference}: the pretrainer loads {name}, but the "
        "recipe has no object of that name; name it as in the training YAML"
    )


def is_plain_module(loaded):
    """Not e.g. InputNormalization, whose statistics are in no state dict."""
    return isinstance(loaded, torch.nn.Module) and (
        get_default_hook(loaded, DEFAULT_SAVE_HOOKS)
        is DEFAULT_SAVE_HOOKS[torch.nn.Module]
    )


def state_on_cpu(module):
    state = folded_state(module)
    return {k: v.detach().cpu().clone() for k, v in state.items()}


def saver_of(loaded, key, inference):
    """What writes an object to a path."""
    if is_plain_module(loaded):
        return lambda module, path: torch.save(state_on_cpu(module), path)
    hook = get_default_hook(loaded, DEFAULT_SAVE_HOOKS)
    if hook is not None:
        return hook
    model = getattr(loaded, "sp", loaded)  # SpeechBrain's SentencePiece
    if hasattr(model, "serialized_model_proto"):
        return lambda _, path: path.write_bytes(model.serialized_model_proto())
    raise ValueError(
        f"inference: {inference}: the pretrainer loads {key}, but nothing can "
        f"save a {type(loaded).__name__}; leave it out, or register "
        "checkpoint hooks for its class"
    )
