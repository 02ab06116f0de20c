"""The teacher: frozen copies that replay the student's calls.

Nothing of the recipe's forward is written again. Hooks on the recipe's
modules see each call of the student; the teacher's copy of that module is
called with the same arguments, except that an argument which is an output of
an earlier student module is replaced by the teacher's own output.
"""

import copy

import torch
from torch.utils._pytree import tree_map

from sb_prune.cut.exactness import first_tensor
from sb_prune.support.parallel import unwrap


class Teacher:
    """Frozen copies of modules, as they are when this object is made.

    Arguments
    ---------
    modules : dict
        Name -> module of the student, unmasked and uncut.
    layers : dict, optional
        Name of one of those modules -> names of the layers below it whose
        outputs are kept, of teacher and student. Layers of one ModuleList
        are a stack; encoder and decoder are two.
    padding : tuple of str
        Keywords under which a layer may receive the padding mask of what it
        outputs, as `padded_frames` reads it.

    Example
    -------
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
    ):
        self._layers = layers or {}
        self._padding = padding
        self._copies = {
            name: copy.deepcopy(module).eval().requires_grad_(False)
            for name, module in modules.items()
            if any(True for _ in module.parameters())
        }
        self._active = False
        self._handles = []
        self._forget_()
        for key, names in self._layers.items():
            for name in names:
                stack = _stack(key, name)
                self._copies[key].get_submodule(name).register_forward_hook(
                    self._keep(lambda stack=stack: self.hidden[stack])
                )

    def _forget_(self):
        self._own = {}
        self._translated = 0
        self.unpaired = set()  # modules fed by something we cannot follow
        self.outputs, self.student_outputs = {}, {}
        self.hidden = {stack: [] for stack in self.stacks}
        self.student_hidden = {stack: [] for stack in self.stacks}
        self.pads = {}  # stack -> (B, T) bool

    @property
    def stacks(self):
        """Stack -> positions of its layers among all; stacks in that order."""
        layers = [
            (key, n) for key, names in self._layers.items() for n in names
        ]
        found = {}
        for position, (key, name) in enumerate(layers):
            found.setdefault(_stack(key, name), []).append(position)
        return found

    def listen_(self, modules):
        """Hooks the student; earlier hooks are taken off.

        Arguments
        ---------
        modules : dict
            Name -> module of the student, maybe masked, cut or wrapped.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = [
            modules[name].register_forward_hook(
                self._replay(name), with_kwargs=True
            )
            for name in self._copies
        ]
        for key, names in self._layers.items():
            for name in names:
                layer = unwrap(modules[key]).get_submodule(name)
                stack = _stack(key, name)
                self._handles += [
                    layer.register_forward_pre_hook(
                        self._read_padding(stack), with_kwargs=True
                    ),
                    layer.register_forward_hook(
                        self._keep(
                            lambda stack=stack: self.student_hidden[stack]
                        )
                    ),
                ]

    def begin_(self):
        """Forgets the last batch and follows the student's next calls."""
        self._active = True
        self._forget_()

    def end_(self):
        """Stops following the student and lets go of its tensors."""
        self._active = False
        self._forget_()

    def _keep(self, store):
        def hook(module, args, output):
            if self._active:
                store().append(first_tensor(output))

        return hook

    def _read_padding(self, stack):
        def hook(module, args, kwargs):
            for key in self._padding:
                if self._active and kwargs.get(key) is not None:
                    self.pads[stack] = padded_frames(key, kwargs[key])

        return hook

    def _replay(self, name):
        def hook(module, args, kwargs, output):
            if not self._active:
                return
            before = self._translated
            args, kwargs = tree_map(self._translate, (args, kwargs))
            if self._own and self._translated == before:
                self.unpaired.add(name)
            with torch.no_grad():
                own = self._copies[name](*args, **kwargs)
            self.outputs[name], self.student_outputs[name] = own, output
            self._remember(output, own)

        return hook

    def _remember(self, output, own):
        """Pairs the student's tensors with the teacher's, one by one."""
        if torch.is_tensor(output) and torch.is_tensor(own):
            # the student's tensor is kept too, so that its id stays its own
            self._own[id(output)] = (output, own)
        elif isinstance(output, (tuple, list)):
            for student, teacher in zip(output, own):
                self._remember(student, teacher)
        elif isinstance(output, dict):
            for key in output:
                self._remember(output[key], own[key])

    def _translate(self, value):
        if torch.is_tensor(value) and id(value) in self._own:
            self._translated += 1
            return self._own[id(value)][1]
        return value


def padded_frames(keyword, mask):
    """Which frames of a layer's output are padding.

    Arguments
    ---------
    keyword : str
        Under which the layer received the mask: an `attention_mask`, as in
        transformers, says what is *not* padding.
    mask : torch.Tensor
        (B, T), or (B, 1, T or 1, T): True (0 if additive) where a key may be
        attended to.

    Returns
    -------
    torch.Tensor
        (B, T) bool.

    Example
    -------
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


def _stack(key, layer):
    """What layers of one ModuleList have in common."""
    return f"{key}.{layer}".rpartition(".")[0]
