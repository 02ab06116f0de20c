"""What a recipe must offer, checked before hours are spent on it."""

import inspect
from collections.abc import Mapping

import torch
from speechbrain.lobes.models.wav2vec import W2VTargetQuantiser
from speechbrain.utils.parameter_transfer import Pretrainer

from sb_prune.declare.roots import entries_of


def made_from(cls, name, block):
    """Makes what a block of the YAML describes.

    Arguments
    ---------
    cls : type
        Whose arguments are the keys of the block.
    name : str
        Of the block.
    block : dict
        The YAML's mapping.

    Returns
    -------
    object
        Of that class.

    Raises
    ------
    ValueError
        If it is no mapping, or a key is unknown or missing.
    """
    if not isinstance(block, Mapping):
        raise ValueError(
            f"{name}: {block!r} is no mapping; write one line `key: value` for "
            f"each argument of sb_prune.{cls.__name__}"
        )
    known = inspect.signature(cls).parameters
    for key in block:
        if key not in known:
            raise ValueError(
                f"{name}: unknown key {key!r}; the keys are {list(known)}"
            )
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in block:
            raise ValueError(f"{name}: the key {key!r} is missing")
    return cls(**block)


def check_callable(block="pruning", **settings):
    """Refuses a part that the YAML makes instead of naming.

    Arguments
    ---------
    block : str
        Of the YAML.
    settings : callable
        By their key in that block.

    Raises
    ------
    ValueError
        Naming the key and what to write.

    Example
    -------
    >>> check_callable(gate_optimizer=0.05)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: pruning: gate_optimizer: 0.05 cannot be called; ...
    """
    for key, value in settings.items():
        if not callable(value):
            raise ValueError(
                f"{block}: {key}: {value!r} cannot be called; write !name: "
                "and the name of a class or function"
            )


def check_whole_number(least, block="pruning", **settings):
    """Refuses what is no whole number, or too small.

    Arguments
    ---------
    least : int
        Smallest value.
    block : str
        Of the YAML.
    settings : int
        By their key in that block.

    Raises
    ------
    ValueError
        Naming the key and what to write.

    Example
    -------
    >>> check_whole_number(1, min_keep=0)
    Traceback (most recent call last):
    ValueError: pruning: min_keep: 0; write a whole number, 1 or more
    """
    for key, value in settings.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(
                f"{block}: {key}: {value!r}; write a whole number, {least} or "
                "more"
            )


def check_export(block, inference, export_folder):
    """Refuses half of what an export needs.

    Arguments
    ---------
    block : str
        Of the YAML.
    inference, export_folder : str or None
        Its keys.

    Raises
    ------
    ValueError
        Naming both.
    """
    if (inference is None) != (export_folder is None):
        raise ValueError(
            f"{block}: write both `inference` and `export_folder`, or neither"
        )


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


def check_brain(brain, module, epoch_counter=None, block="pruning"):
    """Refuses a recipe that cannot be pruned or resumed.

    Arguments
    ---------
    brain : Brain
    module : str or list of str
        Keys of the modules to prune.
    epoch_counter : EpochCounter, optional
        Given when training is to follow.
    block : str
        Of the YAML.

    Raises
    ------
    ValueError
        Naming the key and what to write.
    """
    if brain.data_parallel_backend:
        raise ValueError(
            "data_parallel_backend: its copies of the model would not share "
            "gates; leave it out and start with "
            "torchrun --nproc_per_node=<GPUs> train.py ..."
        )
    if brain.jit:
        raise ValueError(
            "jit: masks and surgery cannot enter a scripted module; leave "
            "--jit out, or write --compile"
        )
    if brain.checkpointer is None:
        raise ValueError("checkpointer: pruning needs one in the YAML")
    _check_entries(brain, entries_of(module), block)
    _check_saved(brain)
    if epoch_counter is not None:
        _check_counter(brain, epoch_counter)


def check_readers(modules, module, declaration):
    """Refuses channels of a front-end that an uncut module reads as well.

    Arguments
    ---------
    modules : dict
        Name -> module of the recipe.
    module : str or list of str
        Which of them are pruned.
    declaration : Declaration
        What can be cut in these.

    Raises
    ------
    ValueError
    """
    if "front_end_channels" not in {s.kind for s in declaration.structures}:
        return
    pruned = entries_of(module)
    for entry in set(modules) - set(pruned):
        parts = modules[entry].modules()
        if any(isinstance(part, W2VTargetQuantiser) for part in parts):
            raise ValueError(
                f"pruning: module: {entry} reads the front-end's channels too; "
                f"write module: [{', '.join([*pruned, entry])}], or kinds "
                "without front_end_channels"
            )


def _check_entries(brain, entries, block):
    if not entries or len(set(entries)) < len(entries):
        raise ValueError(
            f"{block}: module: {entries}; write an entry of `modules`, or a "
            "list that names each once"
        )
    for entry in entries:
        if entry not in brain.modules:
            raise ValueError(
                f"{block}: module: {entry!r} is not in `modules`; write one "
                f"of {list(brain.modules)}"
            )


def _check_saved(brain):
    kept = [*saved_modules(brain).values(), *_pretrained_modules(brain)]
    known = {id(p) for module in kept for p in module.parameters()}
    lost = [
        name
        for name, module in brain.modules.items()
        if any(
            parameter.requires_grad and id(parameter) not in known
            for parameter in module.parameters()
        )
    ]
    if lost:
        raise ValueError(
            f"checkpointer: recoverables: {lost} of `modules` are trained but "
            "not saved; add `model`, a ModuleList of all that is trained"
        )


def _pretrained_modules(brain):
    """Modules that the recipe loads anew in every process, e.g. the language
    model that a recipe keeps in `modules` to have it on the device."""
    return [
        loaded
        for value in vars(brain.hparams).values()
        if isinstance(value, Pretrainer)
        for loaded in value.loadables.values()
        if isinstance(loaded, torch.nn.Module)
    ]


def _check_counter(brain, epoch_counter):
    if not any(
        saved is epoch_counter
        for saved in brain.checkpointer.recoverables.values()
    ):
        raise ValueError(
            "checkpointer: recoverables: the epoch counter is missing; add "
            "counter: !ref <epoch_counter>"
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
    for structure in declaration.structures:
        for name in (mask.tensor for mask in structure.masks):
            frozen = not parameters[name].requires_grad
            if frozen or id(parameters[name]) not in learned:
                reason = "is frozen" if frozen else "is in no optimizer"
                raise ValueError(
                    f"modules: {module}: {name} {reason}, so it cannot be "
                    "pruned; let it train (freeze: False, "
                    "freeze_feature_extractor: False), or leave "
                    f"{structure.kind} out of `kinds` under `structures`"
                )
