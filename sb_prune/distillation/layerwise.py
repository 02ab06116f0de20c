"""Layerwise distillation of hidden states and outputs.

The loss is that of Jiang et al., "Accurate and Structured Pruning for Efficient
Automatic Speech Recognition", Interspeech 2023 (2305.19549). Layers of the
teacher may be matched with the nearest surviving layer of the student, as in
Xia et al., "Structured Pruning Learns Compact and Accurate Models" (CoFi),
ACL 2022.

Shapes: B batch, T frames, d model width, V output classes.
"""

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from sb_prune.support.disk import reason
from sb_prune.support.messages import shown
from sb_prune.support.values import (
    Function,
    ListOf,
    ListOrMapping,
    Number,
    Text,
    Whole,
    checked,
)

OUTPUTS = ListOrMapping(
    ListOf(Text("keys of `modules`"), example="[ctc_lin]"),
    Whole(0),
    example="{whisper: 1}",
)


def same_index(student, teacher, surviving):
    """Matches every teacher layer with the student layer of the same index.

    Arguments
    ---------
    student : list of torch.Tensor
        (B, T, d) hidden states of each layer.
    teacher : list of torch.Tensor
        (B, T, d) hidden states of each layer.
    surviving : list of bool
        For each layer of the student, whether it is open.

    Returns
    -------
    list of (int, int)
        (student layer, teacher layer) pairs.
    """
    return [(i, i) for i in range(len(teacher))]


@torch.no_grad()
def nearest_surviving(student, teacher, surviving):
    """Matches every teacher layer with the most similar open student layer.

    Similar means a small squared error between hidden states. Arguments and
    returns are those of `same_index`. The list is empty if no layer is open.

    Example
    -------
    >>> student = [torch.zeros(1, 1, 1), torch.ones(1, 1, 1)]
    >>> teacher = [torch.ones(1, 1, 1)]
    >>> nearest_surviving(student, teacher, [True, True])
    [(1, 0)]
    >>> nearest_surviving(student, teacher, [True, False])
    [(0, 0)]
    """
    alive = [i for i, alive in enumerate(surviving) if alive]
    if not alive:
        return []
    distances = torch.stack(
        [F.mse_loss(student[i], goal) for goal in teacher for i in alive]
    )  # read back at once: each reading waits for the device
    rows = distances.view(len(teacher), len(alive)).tolist()
    return [(alive[row.index(min(row))], t) for t, row in enumerate(rows)]


class LayerwiseDistillation:
    """Mean squared error of hidden states plus KL divergence of outputs.

    Arguments
    ---------
    hidden_weight : float
        Weight of the error of hidden states, a mean over layers, frames and
        features. Layers of the encoder are matched with layers of the encoder,
        and those of the decoder with those of the decoder.
    output_weight : float
        Weight of the KL divergence of outputs, a mean over frames (or tokens),
        without padding where a layer before them was given a mask.
    outputs : list of str, or dict
        Keys of the recipe's `modules` whose outputs are logits. The input of
        such a module must be the unchanged output of another one. Of a module
        that returns several things a mapping says which: {whisper: 1} is the
        second.
    temperature : float
        Temperature of the softmax; the divergence is scaled by its square.
    state_weight : float
        Weight of the mean squared error of `states`, a mean over frames and
        features.
    states : list of str, or dict
        Keys of `modules` whose outputs are features (B, T, d), e.g. the states
        of the encoder that a decoder reads; written as `outputs`.
    match : callable
        `same_index` or `nearest_surviving`.
    task_weight : float
        Weight of the recipe's own loss; with 0, what it alone reaches does
        not learn.

    Raises
    ------
    ValueError
        If every weight is 0, or weighs nothing.

    Example
    -------
    >>> from sb_prune.distillation import Teacher
    >>> student = {"encoder": torch.nn.Sequential(torch.nn.Linear(2, 2))}
    >>> teacher = Teacher(student, layers={"encoder": ["0"]})
    >>> teacher.listen_(student)
    >>> teacher.begin_()
    >>> _ = student["encoder"](torch.ones(1, 3, 2))
    >>> parts = LayerwiseDistillation(outputs=["encoder"]).losses(teacher)
    >>> {name: float(value) for name, value in parts.items()}
    {'distill_hidden': 0.0, 'distill_encoder': 0.0}
    """

    @checked
    def __init__(
        self,
        hidden_weight: Number(least=0) = 1.0,
        output_weight: Number(least=0) = 1.0,
        outputs: OUTPUTS = (),
        temperature: Number(above=0) = 2.0,
        match: Function(
            "sb_prune.distillation.nearest_surviving", given=3
        ) = same_index,
        task_weight: Number(least=0) = 1.0,
        state_weight: Number(least=0) = 1.0,
        states: OUTPUTS = (),
    ):
        self.hidden_weight = hidden_weight
        self.output_weight = output_weight
        self.state_weight = state_weight
        self._logits, self._states = _positions(outputs), _positions(states)
        self.outputs = (*self._logits, *self._states)
        self.temperature = temperature
        self.match = match
        self.task_weight = task_weight
        if not any(
            [
                task_weight,
                hidden_weight,
                output_weight and self._logits,
                state_weight and self._states,
            ]
        ):
            raise ValueError(
                f"task_weight: {task_weight}: no loss is left; write a number "
                "above 0, or `outputs` or `states` to compare"
            )

    def reads(self, module, position=None):
        """Whether an output of a module adds to the loss.

        Arguments
        ---------
        module : str
            Key of `modules`.
        position : int, optional
            Which of several outputs.

        Returns
        -------
        bool
            True, too, if the recipe's own loss counts or layers are compared,
            whatever these read.

        Example
        -------
        >>> states = LayerwiseDistillation(
        ...     hidden_weight=0, states={"whisper": 0}, task_weight=0
        ... )
        >>> states.reads("whisper", 0), states.reads("whisper", 1)
        (True, False)
        """
        all_count = self.task_weight or self.hidden_weight
        return bool(all_count) or self.compares(module, position)

    def compares(self, module, position=None):
        """Whether an output of a module is compared with the teacher's.

        Arguments
        ---------
        module : str
            Key of `modules`.
        position : int, optional
            Which of several outputs.

        Returns
        -------
        bool
        """
        compared = [
            (self.output_weight, self._logits),
            (self.state_weight, self._states),
        ]
        return any(
            weight and module in of and of[module] == position
            for weight, of in compared
        )

    def losses(self, teacher, surviving=None):
        """Computes the weighted parts of the loss.

        Arguments
        ---------
        teacher : Teacher
            With the outputs of teacher and student for the current batch.
        surviving : list of bool, optional
            For each layer of the student, whether it is open; by default all.

        Returns
        -------
        dict
            Name -> scalar tensor.

        Raises
        ------
        RuntimeError
            If the layers of the student did not run, or not as often as those
            of the teacher, or if the teacher could not replay an output, as
            what feeds a module is no output of another one.
        ValueError
            If student and teacher have different sizes, or a module that
            returns one tensor is said to return several.
        """
        parts = {}
        if self.hidden_weight:
            parts["distill_hidden"] = self._hidden_error(teacher, surviving)
        if self.output_weight:
            for name, position in self._logits.items():
                both = _both(teacher, name, position)
                pads = teacher.padding(name, position)
                divergence = self._divergence(*both, pads)
                parts[f"distill_{name}"] = self.output_weight * divergence
        if self.state_weight:
            for name, position in self._states.items():
                own, goal = _both(teacher, name, position)
                error = (own.float() - goal.float()).square()
                mean = _mean_over_frames(error, teacher.padding(name, position))
                parts[f"distill_{name}_states"] = self.state_weight * mean
        return parts

    def _hidden_error(self, teacher, surviving):
        _check_layers_ran(teacher)
        errors = []
        hidden = teacher.hidden
        for stack, positions in teacher.stacks.items():
            student, goals = teacher.student_hidden[stack], hidden[stack]
            for own, goal in zip(student, goals):
                _check_shapes(stack, own, goal)
            alive = [surviving is None or surviving[i] for i in positions]
            pads = [teacher.pads.get(stack)]
            heard = (_silenced(states, *pads) for states in (student, goals))
            errors += [
                # in full precision, also in mixed-precision training
                _mean_over_frames(
                    (student[s].float() - goals[t].float()).square(), pads
                )
                for s, t in self._pairs(*heard, alive)
            ]
        if not errors:  # no layer is open
            ran = next(filter(None, teacher.student_hidden.values()))
            errors = [ran[0].sum() * 0]
        return self.hidden_weight * torch.stack(errors).mean()

    def _pairs(self, student, teacher, surviving):
        try:
            return [(s, t) for s, t in self.match(student, teacher, surviving)]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"distillation: match: {shown(self.match)} gives no list of "
                "(student layer, teacher layer) pairs "
                f"({reason(error)}); write another function, e.g. "
                "!name:sb_prune.distillation.nearest_surviving"
            ) from error

    def _divergence(self, logits, goals, pads):
        own = (logits.float() / self.temperature).log_softmax(-1)
        goal = (goals.float() / self.temperature).log_softmax(-1)
        each = F.kl_div(own, goal, reduction="none", log_target=True).sum(-1)
        return self.temperature**2 * _mean_over_frames(each, pads)


def _positions(outputs):
    """Name -> which of several outputs, or None for the only one."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return dict.fromkeys(outputs)


def _both(teacher, name, position):
    """The output of a module of the student, and that of the teacher."""
    _check_followed(teacher, name)
    found = []
    for output in (teacher.student_outputs[name], teacher.outputs[name]):
        if position is not None:
            _check_several(output, name, position)
            output = output[position]
        found.append(output)
    _check_shapes(name, *found)
    return found


def _check_several(output, name, position):
    """Refuses to take an utterance of a batch for one of several outputs."""
    if torch.is_tensor(output):
        raise ValueError(
            f"distillation: {{{name}: {position}}}: {name} returns one tensor, "
            f"not several; write [{name}]"
        )


def _check_followed(teacher, name):
    if name not in teacher.outputs:
        raise RuntimeError(
            f"distillation: outputs: {name} did not run in this batch; leave "
            "it out"
        )
    _check_fed(teacher, name, "leave it out")


def _check_fed(teacher, name, otherwise):
    """Refuses a module that the teacher would feed what is the student's."""
    loose = teacher.loose(name)
    if loose is not None:
        leads = "" if loose == name else f", which leads to {name},"
        raise RuntimeError(
            f"distillation: {loose}{leads} is not fed by the unchanged output "
            "of another entry of `modules`, so the teacher cannot follow; "
            f"{otherwise}, or put what lies between into a module"
        )


def _check_shapes(name, own, goal):
    if own.shape != goal.shape:
        raise ValueError(
            f"teacher: {name} gives {tuple(goal.shape)}, that of the student "
            f"{tuple(own.shape)}; write a teacher with the same frames, model "
            "width and output classes"
        )


def _check_layers_ran(teacher):
    for name in teacher.entries:
        _check_fed(teacher, name, "write hidden_weight: 0")
    student, goals = (
        {stack: len(layers) for stack, layers in hidden.items()}
        for hidden in (teacher.student_hidden, teacher.hidden)
    )
    once = {stack: len(places) for stack, places in teacher.stacks.items()}
    is_once = all(ran in (0, once[stack]) for stack, ran in student.items())
    if student != goals or not any(student.values()) or not is_once:
        raise RuntimeError(
            f"distillation: layers of the student ran {student}, of the "
            f"teacher {goals}; call encoder and decoder through their entry "
            "of `modules`, once per batch"
        )


@torch.no_grad()
def _silenced(states, pad):
    """Hidden states in which padding is 0, so that no match depends on it."""
    if pad is None or any(pad.shape != each.shape[:2] for each in states):
        return states
    return [each.masked_fill(pad[..., None], 0) for each in states]


def _mean_over_frames(values, pads):
    """Mean over frames that are not padding, by the first mask that fits."""
    if values.dim() == 3:
        values = values.mean(-1)
    for pad in pads:
        if pad is not None and pad.shape == values.shape:
            return values[~pad].mean()
    return values.mean()
