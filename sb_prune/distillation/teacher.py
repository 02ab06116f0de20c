"""The teacher: frozen copies of modules that replay the calls of the student.

This way the forward of the recipe need not be written again for the teacher.
Hooks observe each call of a module of the recipe, the student. The teacher's
copy of the module is called with the same arguments, but an argument that was
the output of another module of the student is replaced by the output of the
teacher's copy.
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
        Name -> module of the student, neither masked nor cut yet.
    layers : dict, optional
        Name of one of these modules -> names of the layers below it whose
        outputs are recorded, for teacher and student. Layers in the same
        ModuleList are a stack; encoder and decoder are two stacks.
    padding : tuple of str
        Keyword arguments with which a layer may receive the padding mask of
        its output, as `padded_frames` reads it.

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
        self.unpaired = set()  # modules whose input is no output of another
        self.outputs, self.student_outputs = {}, {}
        self.hidden = {stack: [] for stack in self.stacks}
        self.student_hidden = {stack: [] for stack in self.stacks}
        self.pads = {}  # stack -> (B, T) bool

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

    def listen_(self, modules):
        """Registers hooks on the student, and removes earlier ones.

        Arguments
        ---------
        modules : dict
            Name -> module of the student, which may be masked, cut or wrapped.
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
        """Forgets the last batch and starts to replay the student's calls."""
        self._active = True
        self._forget_()

    def end_(self):
        """Stops replaying the student's calls and frees the stored tensors."""
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
        """Remembers for each tensor of the student that of the teacher."""
        if torch.is_tensor(output) and torch.is_tensor(own):
            # keeps the student's tensor alive, so that its id is not reused
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
    """Reads from a mask which frames of a layer's output are padding.

    Arguments
    ---------
    keyword : str
        Keyword argument with which the layer received the mask. If it is
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
    """Name of the stack of a layer: that of the ModuleList it is in."""
    return f"{key}.{layer}".rpartition(".")[0]
