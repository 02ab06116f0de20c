"""The objects that an export's Pretrainer loads: how to find and save them."""

import torch
from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook

from sb_prune.cut.folding import folded_state


def find_object(brain, name, inference):
    """Finds an object of the recipe by its name.

    Arguments
    ---------
    brain : Brain
        Searched in this order: its attributes, its hparams, its modules.
    name : str
    inference : str
        Path of the inference YAML, for the error message.

    Returns
    -------
    object

    Raises
    ------
    ValueError
        If there is no such object.
    """
    for place in (vars(brain), vars(brain.hparams), dict(brain.modules)):
        if name in place:
            return place[name]
    raise ValueError(
        f"inference: {inference}: the pretrainer loads {name}, but the "
        "recipe has no object of that name; name it as in the training YAML"
    )


def is_plain_module(loaded):
    """Whether an object is a module that its state dict describes in full.

    InputNormalization, for example, is not: it saves its statistics with hooks
    of its own.
    """
    return isinstance(loaded, torch.nn.Module) and (
        get_default_hook(loaded, DEFAULT_SAVE_HOOKS)
        is DEFAULT_SAVE_HOOKS[torch.nn.Module]
    )


def state_on_cpu(module):
    """Copies the state dict of a module to the CPU, constants folded in."""
    state = folded_state(module)
    return {k: v.detach().cpu().clone() for k, v in state.items()}


def saver_of(loaded, key, inference):
    """Chooses the function that saves an object.

    Arguments
    ---------
    loaded : object
        What the Pretrainer of the export will load.
    key : str
        Its key among the loadables.
    inference : str
        Path of the inference YAML, for the error message.

    Returns
    -------
    callable
        Takes the object and a path.

    Raises
    ------
    ValueError
        If nothing can save such an object.
    """
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
