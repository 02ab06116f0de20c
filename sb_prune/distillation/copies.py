"""Frozen copies of modules, whose weights stay on the disk until needed.

Which modules a teacher needs is known only once the student was called. By then
the student's weights may have changed: an earlier process may have trained
them. So the weights are read from where the run saved its start.
"""

import copy

import torch
from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook


class FrozenCopy:
    """A frozen copy of a module, in which the weights are missing at first.

    Arguments
    ---------
    module : torch.nn.Module
        What is copied. It may change or be cut afterwards.
    weights : dict, optional
        Parameters and buffers of the module -> their values, e.g. those of
        `stored_weights`. Parameters that are not among them are shared with
        the module, so nobody may train them; buffers are copied. By default
        everything is copied at once.

    Example
    -------
    >>> linear = torch.nn.Linear(2, 2)
    >>> later = FrozenCopy(linear, {linear.weight: torch.ones(2, 2)})
    >>> copied = later.load()
    >>> copied.weight.tolist(), copied.weight.requires_grad
    ([[1.0, 1.0], [1.0, 1.0]], False)
    >>> copied.bias.data_ptr() == linear.bias.data_ptr()
    True
    """

    def __init__(self, module, weights=None):
        self._shared = []
        self._is_whole = weights is None
        memo = {} if self._is_whole else self._substitutes(module, weights)
        copied = copy.deepcopy(module, memo)
        self._module = copied.eval().requires_grad_(False)

    def _substitutes(self, module, weights):
        """What `copy.deepcopy` takes in place of tensors: id -> tensor."""
        found = {}
        for parameter in module.parameters():
            is_shared = parameter not in weights
            value = parameter.detach() if is_shared else weights[parameter]
            found[id(parameter)] = torch.nn.Parameter(value, False)
            if is_shared:
                self._shared.append(found[id(parameter)])
        for buffer in module.buffers():
            if buffer in weights:
                found[id(buffer)] = weights[buffer]
        return found

    def load(self, device=None):
        """Reads the weights.

        Arguments
        ---------
        device : torch.device, optional
            Where the copy is needed; by default where the weights are.

        Returns
        -------
        torch.nn.Module
            The copy, to be asked for once.
        """
        if self._is_whole:
            return self._module.to(device)
        # not left to the file: that may be on a disk that goes away
        shared = {id(parameter): parameter for parameter in self._shared}
        return copy.deepcopy(self._module, shared).to(device)


def stored_weights(checkpoint, recoverables):
    """Maps the weights in a checkpoint into memory, without reading them.

    What saves itself in a way of its own, e.g. an AdaptedModel, is copied as it
    is now, as far as it is trained.

    Arguments
    ---------
    checkpoint : Checkpoint
        As SpeechBrain's Checkpointer finds it.
    recoverables : dict
        Name in the checkpoint -> module.

    Returns
    -------
    dict
        Parameter or buffer of these modules -> tensor on the CPU.

    Raises
    ------
    ValueError
        If the checkpoint is of another model.

    Example
    -------
    >>> from speechbrain.utils.checkpoints import Checkpointer
    >>> recoverables = {"model": torch.nn.Linear(2, 2)}
    >>> checkpointer = Checkpointer(getfixture("tmp_path"), recoverables)
    >>> weights = stored_weights(checkpointer.save_checkpoint(), recoverables)
    >>> weights.keys() == set(recoverables["model"].parameters())
    True
    """
    found = {}
    for name, module in recoverables.items():
        hook = get_default_hook(module, DEFAULT_SAVE_HOOKS)
        if hook is DEFAULT_SAVE_HOOKS[torch.nn.Module]:
            found.update(_mapped(checkpoint.paramfiles[name], module))
        else:
            found.update(
                (parameter, parameter.detach().clone())
                for parameter in module.parameters()
                if parameter.requires_grad
            )
    return found


def _mapped(path, module):
    """Parameter or buffer -> its value in a file that holds a state dict."""
    stored = torch.load(str(path), "cpu", weights_only=True, mmap=True)
    found = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        if not torch.is_tensor(tensor):
            continue
        value = stored.get(key)
        if not torch.is_tensor(value) or value.shape != tensor.shape:
            raise ValueError(
                f"teacher: {path} does not fit the model in this YAML ({key}); "
                "write a checkpoint of the same model"
            )
        found[tensor] = value
    return found
