"""Parts of a model that need not run again, as they give the same as before.

A model is refitted layer by layer, and the same utterances run through it up to
each of them. Of Whisper's decoder that is the encoder too, which takes most of
the time and is finished by then.
"""

import copy
from contextlib import ExitStack, contextmanager

from torch import nn

CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # nobody calls them


class Settled:
    """Keeps what parts of a model give once their layers are finished.

    Of layers in a `ModuleList` nothing is kept, but of all of them together: a
    model may have many, and what each gives is large.

    Arguments
    ---------
    root : torch.nn.Module
    layers : list of torch.nn.Module
        Layers below root that are finished one after another, in the order in
        which root calls them; nothing else in it changes.

    Example
    -------
    >>> import torch
    >>> first, second = nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1)
    >>> root, x = nn.Sequential(first, second), torch.ones(1)
    >>> settled = Settled(root, [first[0], second])
    >>> settled.finish_(first[0])
    >>> with torch.no_grad(), settled.replaying("some data"):
    ...     before = root(x)
    >>> with torch.no_grad(), settled.replaying("some data"):
    ...     after = root(None)  # only `second` runs
    >>> bool(before == after)
    True
    """

    def __init__(self, root, layers):
        self._root = root
        self._names = {module: name for name, module in root.named_modules()}
        self._open = {self._names[layer] for layer in layers}
        self._given = {}  # name of a part -> {data: what it gave}

    def finish_(self, layer):
        """Takes note that a layer stays as it is.

        Arguments
        ---------
        layer : torch.nn.Module
        """
        name = self._names[layer]
        self._open.discard(name)
        parts = name.split(".")
        for length in range(1, len(parts) + 1):  # the largest one first
            part = ".".join(parts[:length])
            module = self._root.get_submodule(part)
            if any(f"{name}.".startswith(f"{part}.") for name in self._open):
                if isinstance(module, nn.ModuleList):
                    return
            elif not isinstance(module, CONTAINERS):
                inside = [n for n in self._given if n.startswith(f"{part}.")]
                for inner in inside:
                    del self._given[inner]
                self._given[part] = {}
                return

    @contextmanager
    def replaying(self, data):
        """Context in which finished parts give what they gave for these data.

        Those that have not run for them are listened to. There must be no
        gradients.

        Arguments
        ---------
        data : object
            Something hashable that tells which data root is called with.
        """
        with ExitStack() as stack:
            for part, given in list(self._given.items()):
                module = self._root.get_submodule(part)
                if data in given:
                    stack.enter_context(_giving(module, given[data]))
                else:
                    heard = stack.enter_context(_listening(module))
                    stack.callback(self._keep, part, data, heard)
            yield

    def _keep(self, part, data, heard):
        if heard:  # in its first call: it may be called again, with other input
            self._given[part][data] = heard[0]


@contextmanager
def _giving(module, output):
    """A module whose first call computes nothing, but gives an output."""
    own = {name: f for name, f in vars(module).items() if name == "forward"}
    forward, left = module.forward, [copy.deepcopy(output)]

    def give(*args, **kwargs):
        return left.pop() if left else forward(*args, **kwargs)

    module.forward = give
    try:
        yield
    finally:
        del module.forward
        vars(module).update(own)


@contextmanager
def _listening(module):
    heard = []

    def listen(module, args, output):
        if not heard:
            heard.append(copy.deepcopy(output))  # it may be changed in place

    handle = module.register_forward_hook(listen)
    try:
        yield heard
    finally:
        handle.remove()
