"""What a recipe must offer, checked before hours are spent on it."""

import torch

from sb_prune.roots import entries_of


def saved_modules(brain):
    """The recipe's modules that its checkpointer saves.

    Arguments
    ---------
    brain : Brain

    Returns
    -------
    dict
        Name of the recoverable -> module.
    """
    return {
        name: saved
        for name, saved in brain.checkpointer.recoverables.items()
        if isinstance(saved, torch.nn.Module)
    }


def check_brain(brain, module, epoch_counter=None):
    """Refuses a recipe that cannot be pruned or resumed.

    Arguments
    ---------
    brain : Brain
    module : str or list of str
        Keys of the modules to prune.
    epoch_counter : EpochCounter, optional
        Given when training is to follow.

    Raises
    ------
    ValueError
        Naming the key and what to write.
    """
    if brain.distributed_launch or brain.data_parallel_backend:
        raise ValueError(
            "pruning runs in one process so far; leave out torchrun and "
            "--data_parallel_backend"
        )
    if brain.checkpointer is None:
        raise ValueError("checkpointer: pruning needs one in the YAML")
    _check_entries(brain, entries_of(module))
    _check_saved(brain)
    if epoch_counter is not None:
        _check_counter(brain, epoch_counter)


def _check_entries(brain, entries):
    if not entries or len(set(entries)) < len(entries):
        raise ValueError(
            f"pruning: module: {entries}; write an entry of `modules`, or a "
            "list that names each once"
        )
    for entry in entries:
        if entry not in brain.modules:
            raise ValueError(
                f"pruning: module: {entry!r} is not in `modules`; write one "
                f"of {list(brain.modules)}"
            )


def _check_saved(brain):
    saved = {
        id(parameter)
        for held in saved_modules(brain).values()
        for parameter in held.parameters()
    }
    lost = [
        name
        for name, module in brain.modules.items()
        if any(
            parameter.requires_grad and id(parameter) not in saved
            for parameter in module.parameters()
        )
    ]
    if lost:
        raise ValueError(
            f"checkpointer: recoverables: {lost} of `modules` are trained but "
            "not saved; add `model`, a ModuleList of all that is trained"
        )


def _check_counter(brain, epoch_counter):
    if not any(
        saved is epoch_counter
        for saved in brain.checkpointer.recoverables.values()
    ):
        raise ValueError(
            "checkpointer: recoverables: the epoch counter is missing; add "
            "counter: !ref <epoch_counter>"
        )
    if hasattr(epoch_counter, "should_stop"):
        raise ValueError(
            "epoch_counter: early stopping would end pruning before the "
            "target is reached; write "
            "speechbrain.utils.epoch_loop.EpochCounter"
        )


def check_trainable(brain, module, declaration):
    """Every masked tensor must learn, or gates cannot weigh it.

    Arguments
    ---------
    brain : Brain
        With its optimizers.
    module : str or list of str
        Keys of the pruned modules.
    declaration : Declaration
        Of those.

    Raises
    ------
    ValueError
        If one is frozen or in no optimizer.
    """
    optimizers = (brain.optimizers_dict or {}).values()
    learned = {
        id(parameter)
        for optimizer in optimizers or [brain.optimizer]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = dict(declaration.root.named_parameters())
    for name in declaration.touched_tensors():
        frozen = not parameters[name].requires_grad
        if frozen or id(parameters[name]) not in learned:
            reason = "is frozen" if frozen else "is in no optimizer"
            raise ValueError(
                f"modules: {module}: {name} {reason}, so it cannot be pruned; "
                "let it train (freeze: False), or name another `module` in "
                "the pruning block"
            )
