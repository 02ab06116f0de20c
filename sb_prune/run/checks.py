"""Checks of a recipe and its YAML, made before any training."""

import inspect
from collections.abc import Mapping

import torch
from speechbrain.lobes.models.wav2vec import W2VTargetQuantiser
from speechbrain.utils.parameter_transfer import Pretrainer

from sb_prune.declare.roots import entries_of
from sb_prune.declare.structure import Declaration
from sb_prune.support.messages import closest, shown
from sb_prune.support.values import OneOrList, Text, call_named, check_arguments

ENTRIES = OneOrList(Text("a key of `modules`"), least=1)


def made_from(hparams, **classes):
    """Makes objects from blocks of the YAML.

    Arguments
    ---------
    hparams : dict
        Content of the YAML.
    classes : type
        Name of a block -> class, whose arguments are the keys of the block.

    Returns
    -------
    list
        An object of each class, or None if the YAML has no such block.

    Raises
    ------
    ValueError
        If the name of a block or a key in it is misspelt, a key is missing, or
        a class does not accept a value.

    Example
    -------
    >>> from sb_prune import LinearSchedule
    >>> made_from({"rise": {"steps": -3}}, rise=LinearSchedule)
    Traceback (most recent call last):
    ValueError: rise: steps: -3; write a whole number, 1 or more
    """
    for name, cls in classes.items():
        if name not in hparams:
            _check_not_misspelt(hparams, name, cls)
    return [
        _made(cls, name, hparams[name]) if name in hparams else None
        for name, cls in classes.items()
    ]


def _made(cls, name, block):
    if not isinstance(block, Mapping):
        raise ValueError(
            f"{name}: {shown(block)} is no mapping; write one line `key: "
            f"value` for each argument of sb_prune.{cls.__name__}, or delete "
            f"{name} to train without it"
        )
    check_arguments(cls, block, name)
    missing = [
        key
        for key, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty and key not in block
    ]
    if missing:
        raise ValueError(
            f"{name}: {', '.join(missing)} missing; write `key: value` for each"
        )
    return cls(**block)


def _check_not_misspelt(hparams, name, cls):
    """Refuses a key that looks like the misspelt name of a block.

    Its value must be a block with some of the right keys, or empty.
    """
    keys = inspect.signature(cls).parameters.keys()
    for key, value in hparams.items():
        is_block = isinstance(value, Mapping) and keys & value.keys()
        if closest(key, [name], cutoff=0.8) and (is_block or value is None):
            raise ValueError(
                f"{key}: nothing reads a block of this name; write {name}:"
            )


def declared(structures, root, block="pruning"):
    """Declares what can be pruned, and checks the function that does so.

    Arguments
    ---------
    structures : callable
        The function that the block names.
    root : torch.nn.Module
        The module that the block names.
    block : str
        Name of the block in the YAML.

    Returns
    -------
    Declaration

    Raises
    ------
    ValueError
        If the function does not accept the module, or returns anything but a
        declaration.
    """
    path = f"{block}: structures"
    declaration = call_named(structures, path, root)
    if not isinstance(declaration, Declaration):
        raise ValueError(
            f"{path}: {shown(structures)} gives {shown(declaration)}; write a "
            "function that declares, e.g. !name:sb_prune.conformer_structures"
        )
    return declaration


def saved_modules(brain):
    """Finds the modules of the recipe that its checkpointer saves.

    Arguments
    ---------
    brain : Brain

    Returns
    -------
    dict
        Name in the checkpoint -> module.
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
        To be given if training follows.
    block : str
        Name of the block in the YAML.

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
    """Refuses to prune channels that a module reads which is not pruned.

    Arguments
    ---------
    modules : dict
        Name -> module of the recipe.
    module : str or list of str
        Names of the pruned modules.
    declaration : Declaration
        Declares what can be pruned in these.

    Raises
    ------
    ValueError
        Naming the module and what to write.
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
    """Lists the modules that a Pretrainer of the recipe loads in every process.

    For example, recipes keep a language model in `modules` so that it is moved
    to the device.
    """
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
    """Refuses masked tensors that are not trained.

    The weights that stay must be able to adapt when others are masked.

    Arguments
    ---------
    brain : Brain
        With its optimizers.
    module : str or list of str
        Keys of the pruned modules.
    declaration : Declaration
        Declares what can be pruned in these.

    Raises
    ------
    ValueError
        If a masked tensor is frozen or in no optimizer.
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
                    "pruned; let it train (freeze: False, as well as "
                    "freeze_encoder, freeze_decoder or "
                    "freeze_feature_extractor), or leave "
                    f"{structure.kind} out of `kinds` under `structures`"
                )
