"""The teacher: frozen copies of modules that replay the calls of the student.

This way the forward of the recipe need not be written again for the teacher.
Hooks record each call of a module of the recipe, the student. What a loss asks
for is then replayed: the teacher's copy of the module is called with the same
arguments, but an argument that was the output of another module of the student
is replaced by the output of the teacher's copy, which is replayed before. So
modules that lead to nothing that is asked for are neither copied nor called.
"""

import inspect
from collections.abc import Mapping

import torch

from sb_prune.distillation.calls import Call, versions
from sb_prune.distillation.copies import FrozenCopy
from sb_prune.support.outputs import first_tensor
from sb_prune.support.parallel import unwrap


class Teacher:
    """Frozen copies of modules, as they are when this object is made.

    Arguments
    ---------
    modules : dict
        Name -> module of the student, neither masked nor cut yet, or of
        another model with modules of the same names.
    layers : dict, optional
        Name of one of these modules -> names of the layers below it whose
        outputs are recorded, for teacher and student. Layers in the same
        ModuleList are a stack; encoder and decoder are two stacks. The teacher
        may have other layers, too.
    padding : tuple of str
        Names of arguments with which a layer may receive the padding mask of
        its output, as `padded_frames` reads it.
    weights : dict, optional
        Parameter or buffer of `modules` -> its value, which is copied when the
        module is first needed, e.g. `stored_weights`. Parameters that are not
        among them must stay as they are, and are shared. By default all modules
        are copied at once.

    Raises
    ------
    ValueError
        If the modules do not have one of the layers.

    Example
    -------
    >>> import torch
    >>> student = {"first": torch.nn.Linear(2, 2)}
    >>> teacher = Teacher(student)
    >>> with torch.no_grad():
    ...     _ = student["first"].weight.zero_()
    >>> teacher.listen_(student)
    >>> teacher.begin_()
    >>> _ = student["first"](torch.ones(1, 2))
    >>> bool((teacher.outputs["first"] == student["first"].bias).any())
    False
    """

    def __init__(
        self,
        modules,
        layers=None,
        padding=(
            "src_key_padding_mask",
            "tgt_key_padding_mask",
            "attention_mask",
        ),
        weights=None,
    ):
        self._layers = layers or {}
        self._padding = padding
        _check_layers(modules, self._layers)
        self._unread = {  # name -> copy whose weights nobody needed so far
            name: FrozenCopy(module, weights)
            for name, module in modules.items()
            if _has_parameters(module)
        }
        self._copies = {}
        self._devices = {}
        self._active = False
        self._handles = []
        self._forget_()

    def _forget_(self):
        self._calls = []
        self._producers = {}  # id of a tensor -> the call that returned it
        self._hidden = []  # of the call that is replayed now
        self._entered = {}  # module that runs now -> versions of its input
        self.student_outputs = {}
        self.student_hidden = {stack: [] for stack in self.stacks}
        self.pads = {}  # stack, of these layers or others -> (B, T) bool

    @property
    def entries(self):
        """Names of the modules whose layers are listened to."""
        return list(self._layers)

    @property
    def stacks(self):
        """Stack -> positions of its layers among all layers."""
        layers = [
            (key, n) for key, names in self._layers.items() for n in names
        ]
        found = {}
        for position, (key, name) in enumerate(layers):
            found.setdefault(_stack(key, name), []).append(position)
        return found

    @property
    def outputs(self):
        """Name of a called module -> its last output, for this batch.

        It is replayed when it is looked up.
        """
        return _Outputs({call.name: call for call in self._calls}, self._replay)

    @property
    def hidden(self):
        """Stack -> outputs of its layers, which are replayed now."""
        asked = [call for call in self._calls if call.name in self._layers]
        self._replay(asked)
        found = {stack: [] for stack in self.stacks}
        for call in asked:
            for stack, output in call.hidden:
                found[stack].append(output)
        return found

    def listen_(self, modules):
        """Registers hooks on the student, and removes earlier ones.

        Arguments
        ---------
        modules : dict
            Name -> module of the student, which may be masked, cut or wrapped.
        """
        for handle in self._handles:
            handle.remove()
        own = self._copies.keys() | self._unread.keys()
        heard = {
            name: module
            for name, module in modules.items()
            if name in own or _has_parameters(module)
        }
        self._handles = [
            handle
            for name, module in heard.items()
            for handle in (
                module.register_forward_pre_hook(
                    self._enter(name), with_kwargs=True
                ),
                module.register_forward_hook(
                    self._record(name), with_kwargs=True
                ),
            )
        ]
        self._devices = {
            name: next((p.device for p in module.parameters()), None)
            for name, module in heard.items()
        }
        stacks = _lists(heard)
        for key, names in self._layers.items():
            for name in names:
                layer = unwrap(modules[key]).get_submodule(name)
                stacks.setdefault(_stack(key, name), [layer])
                hook = self._keep_student(_stack(key, name))
                self._handles.append(layer.register_forward_hook(hook))
        for stack, layers in stacks.items():
            hook = self._read_padding(stack)
            self._handles += [
                layer.register_forward_pre_hook(hook, with_kwargs=True)
                for layer in layers  # of which training may skip some
            ]

    def begin_(self):
        """Forgets the last batch and starts to record the student's calls."""
        self._active = True
        self._forget_()

    def end_(self):
        """Stops recording the student's calls and frees the stored tensors."""
        self._active = False
        self._forget_()

    def _keep_student(self, stack):
        def hook(module, args, output):
            if self._active:
                self.student_hidden[stack].append(first_tensor(output))

        return hook

    def _read_padding(self, stack):
        def hook(module, args, kwargs):
            if not self._active:
                return
            named = zip(inspect.signature(module.forward).parameters, args)
            given = {**dict(named), **kwargs}
            for key in self._padding:
                if torch.is_tensor(given.get(key)):
                    self.pads[stack] = padded_frames(key, given[key])

        return hook

    def _enter(self, name):
        def hook(module, args, kwargs):
            if self._active:
                self._entered[name] = versions((args, kwargs))

        return hook

    def _record(self, name):
        def hook(module, args, kwargs, output):
            if not self._active:
                return
            entered = self._entered.pop(name, None)
            call = Call(name, args, kwargs, output, self._producers, entered)
            self._calls.append(call)
            # the call keeps these tensors alive, so that no id is used again
            self._producers.update((id(t), call) for t in call.outputs())
            self.student_outputs[name] = output

        return hook

    def loose(self, name):
        """A called module that leads to another and that cannot be replayed.

        Arguments
        ---------
        name : str
            A module that was called.

        Returns
        -------
        str or None
            Its name, or that of one before it, whose input the recipe computes
            from outputs of the student, between calls.
        """
        found = (call.loose for call in self._calls if call.name == name)
        call = next(filter(None, found), None)
        return call and call.name

    def padding(self, name, position=None):
        """Masks of padding that an output may have.

        Arguments
        ---------
        name : str
            A module that was called.
        position : int, optional
            Which of its outputs.

        Returns
        -------
        list of torch.Tensor
            (B, T) bool, True for padding: those with which the layers of the
            module ran, or of the nearest one before it; the likeliest first,
            as encoders come before decoders. Empty if no layer was given one.
        """
        calls = {call.name: call for call in self._calls}
        call = calls.get(name)
        while call is not None:
            own = [
                pad
                for stack, pad in self.pads.items()
                if stack.startswith(f"{call.name}.")
            ]
            if own:
                return own[::-1] if position else own
            call, position = call.origin()
        return []

    def _replay(self, asked):
        """Replays calls, and before them those that they read from."""
        needed = set(asked)
        for call in reversed(self._calls):
            if call in needed:
                needed.update(call.sources.values())
        for call in self._calls:
            if call in needed and not call.is_replayed:
                self._hidden = call.hidden
                call.replay_(self._copy(call.name))

    def _copy(self, name):
        """The teacher's copy of a module, which is read if it is needed first.

        This may be in any batch, e.g. in the first one with a decoder.
        """
        if name in self._copies:
            return self._copies[name]
        if name not in self._unread:
            raise ValueError(
                f"teacher: has no {name}, which leads to what is compared; "
                f"write one whose `modules` have it, besides "
                f"{[*self._copies, *self._unread]}"
            )
        copied = self._unread.pop(name).load(self._devices[name])
        for layer in self._layers.get(name, []):
            copied.get_submodule(layer).register_forward_hook(
                self._keep_own(_stack(name, layer))
            )
        self._copies[name] = copied
        return copied

    def _keep_own(self, stack):
        def hook(module, args, output):
            self._hidden.append((stack, first_tensor(output)))

        return hook


class _Outputs(Mapping):
    """Outputs of the teacher that are computed when they are looked up."""

    def __init__(self, calls, replay):
        self._calls = calls
        self._replay = replay

    def __getitem__(self, name):
        call = self._calls[name]
        self._replay([call])
        return call.replay

    def __iter__(self):
        return iter(self._calls)

    def __len__(self):
        return len(self._calls)


def padded_frames(keyword, mask):
    """Reads from a mask which frames of a layer's output are padding.

    Arguments
    ---------
    keyword : str
        Name of the argument with which the layer received the mask. If it is
        `attention_mask`, the mask is that of transformers.
    mask : torch.Tensor
        (B, T), True for padding. That of transformers is the opposite, or
        (B, 1, T or 1, T): True, or 0 if it is added to the scores, where a key
        may be attended to.

    Returns
    -------
    torch.Tensor
        (B, T) bool, True for padding.

    Example
    -------
    >>> import torch
    >>> additive = torch.tensor([0.0, -1e9]).view(1, 1, 1, 2)
    >>> padded_frames("attention_mask", additive)
    tensor([[False,  True]])
    """
    if keyword != "attention_mask":
        return mask
    if mask.dim() == 4:
        mask = mask[:, 0, -1]  # every query sees the same keys
        if mask.is_floating_point():
            return mask < 0
    return mask == 0


def _check_layers(modules, layers):
    """Refuses a teacher without one of the layers that the student has."""
    for key, names in layers.items():
        known = dict(modules[key].named_modules()) if key in modules else {}
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(
                f"teacher: {key} has no {', '.join(missing)}, but the student "
                "has; write a teacher that has every layer of the student, "
                "under the same name"
            )


def _has_parameters(module):
    return any(True for _ in module.parameters())


def _lists(modules):
    """Name of each ModuleList -> the modules in it."""
    return {
        f"{key}.{name}".removesuffix("."): list(layers)
        for key, module in modules.items()
        for name, layers in unwrap(module).named_modules()
        if isinstance(layers, torch.nn.ModuleList)
    }


def _stack(key, layer):
    """Name of the stack of a layer: that of the ModuleList it is in."""
    return f"{key}.{layer}".rpartition(".")[0]
