"""Layerwise distillation of encoder and decoder, each under its own mask.

Shapes: B utterances, T frames, L tokens, d model width, V classes.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from recording import record_calls
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sb_prune import LayerwiseDistillation, Teacher, encoder_decoder_structures
from sb_prune.distillation import nearest_surviving

LENGTHS = torch.tensor([1.0, 8 / 13])
TOKENS = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
SPOKEN = {  # stack -> (B, T or L)
    "encoder": torch.arange(13) < torch.tensor([[13], [8]]),
    "decoder": TOKENS > 0,
}


@pytest.fixture
def dense(make_asr):
    torch.manual_seed(0)
    model = make_asr(num_decoder_layers=3)
    return {"Transformer": model, "lin": torch.nn.Linear(16, 4)}


@pytest.fixture
def student(dense):
    """The same with noise on every weight."""
    student = copy.deepcopy(dense)
    with torch.no_grad():
        for module in student.values():
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return student


@pytest.fixture
def layers(dense):
    return encoder_decoder_structures(dense["Transformer"]).layers


@pytest.fixture
def teacher(dense, student, layers):
    teacher = Teacher(dense, layers={"Transformer": layers})
    teacher.listen_(student)
    return teacher


def forward(modules, tokens=TOKENS):
    source = torch.randn(2, 13, 6, generator=torch.Generator().manual_seed(1))
    outputs = modules["Transformer"](source, tokens, LENGTHS)
    return modules["lin"](outputs[1]) if tokens is not None else None


def hidden(modules, layers):
    """Outputs (B, T or L, d) of the layers, listened to by other means."""
    found = [modules["Transformer"].get_submodule(name) for name in layers]
    calls = record_calls(found, lambda: forward(modules))
    return [call.output[0] for call in calls]


def mean_where_spoken(values, layer):
    return values[SPOKEN[layer.split(".")[0]]].mean()


def test_hidden_states_under_the_mask_of_their_stack(
    dense, student, teacher, layers
):
    teacher.begin_()
    forward(student)
    loss = LayerwiseDistillation(output_weight=0).losses(teacher)
    teacher.end_()
    pairs = zip(layers, hidden(student, layers), hidden(dense, layers))
    errors = [
        mean_where_spoken((own - goal).square(), name)
        for name, own, goal in pairs
    ]
    assert len(errors) == 5
    expected = torch.stack(errors).mean()
    assert loss["distill_hidden"].item() == pytest.approx(expected.item())


def test_outputs_of_the_decoder_under_its_mask(dense, student, teacher):
    teacher.begin_()
    logits = forward(student)
    distillation = LayerwiseDistillation(
        hidden_weight=0, outputs=["lin"], temperature=1.0
    )
    loss = distillation.losses(teacher)["distill_lin"]
    goals = forward(dense).softmax(-1)
    each = F.kl_div(logits.log_softmax(-1), goals, reduction="none").sum(-1)
    expected = each[SPOKEN["decoder"]].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.item() != pytest.approx(each.mean().item(), rel=1e-4)


def test_masks_of_layers_that_are_not_compared(dense, student):
    """The encoder alone is pruned; the decoder's tokens are padded still."""
    teacher = Teacher(dense)
    teacher.listen_(student)
    teacher.begin_()
    forward(student)
    assert torch.equal(
        ~teacher.pads["Transformer.decoder.layers"], SPOKEN["decoder"]
    )
    distillation = LayerwiseDistillation(hidden_weight=0, outputs=["lin"])
    loss = distillation.losses(teacher)["distill_lin"]
    declared = Teacher(dense, layers={"Transformer": ["decoder.layers.0"]})
    declared.listen_(student)
    declared.begin_()
    forward(student)
    assert distillation.losses(declared)["distill_lin"] == loss


def test_one_of_several_outputs(dense, student, teacher):
    """The Transformer returns encoder and decoder states."""
    teacher.begin_()
    forward(student)
    losses = LayerwiseDistillation(
        hidden_weight=0,
        states={"Transformer": 0},
        state_weight=3.0,
        outputs={"Transformer": 1},
        temperature=1.0,
    ).losses(teacher)
    (own, own_decoded), (goal, decoded) = (
        record_calls([m["Transformer"]], lambda m=m: forward(m))[0].output
        for m in (student, dense)
    )
    error = (own - goal).square()[SPOKEN["encoder"]].mean()
    found = losses["distill_Transformer_states"].item()
    assert found == pytest.approx(3 * error.item(), rel=1e-4)
    goal = decoded.softmax(-1)
    each = F.kl_div(own_decoded.log_softmax(-1), goal, reduction="none")
    expected = each.sum(-1)[SPOKEN["decoder"]].mean().item()
    assert losses["distill_Transformer"].item() == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize(
    "options", [{"states": {"lin": -1}}, {"outputs": {"lin": "first"}}]
)
def test_which_output_must_be_a_number(options):
    with pytest.raises(ValueError, match=": lin: .*; write a whole number, 0"):
        LayerwiseDistillation(**options)


def test_one_of_several_where_there_is_one(student, teacher):
    """lin: 1 would be the second utterance of the batch."""
    teacher.begin_()
    forward(student)
    for key in ("states", "outputs"):
        parts = LayerwiseDistillation(hidden_weight=0, **{key: {"lin": 1}})
        with pytest.raises(ValueError, match=r"lin: 1.* tensor.*write \[lin\]"):
            parts.losses(teacher)


def test_layers_are_matched_within_their_stack(student, teacher):
    seen = []

    def match(own, goals, alive):
        seen.append(([h.shape[1] for h in own], len(goals), alive))
        return nearest_surviving(own, goals, alive)

    teacher.begin_()
    forward(student)
    surviving = [True, False, False, True, True]
    losses = LayerwiseDistillation(match=match).losses(teacher, surviving)
    assert seen == [
        ([13, 13], 2, [True, False]),
        ([4, 4, 4], 3, [False, True, True]),
    ]
    losses["distill_hidden"].backward()


@pytest.mark.parametrize("match", [print, lambda *_: [1, 2], torch.equal])
def test_what_matches_nothing_is_refused(student, teacher, match):
    teacher.begin_()
    forward(student)
    distillation = LayerwiseDistillation(match=match)
    with pytest.raises(ValueError, match="distillation: match: .* no list of"):
        distillation.losses(teacher)


def test_no_layer_survives(student, teacher):
    teacher.begin_()
    forward(student)
    distillation = LayerwiseDistillation(match=nearest_surviving)
    loss = distillation.losses(teacher, [False] * 5)["distill_hidden"]
    assert loss.item() == 0


def test_a_batch_without_the_decoder_teaches_the_encoder(student, teacher):
    teacher.begin_()
    forward(student, tokens=None)
    loss = LayerwiseDistillation().losses(teacher)["distill_hidden"]
    assert loss.item() > 0


def test_an_encoder_called_past_its_module_is_refused(student, teacher):
    teacher.begin_()
    student["Transformer"].encode(torch.rand(2, 13, 6))
    with pytest.raises(RuntimeError, match="through their entry of `modules`"):
        LayerwiseDistillation().losses(teacher)


class Twice(torch.nn.Module):
    """Runs its model on both halves of what it gets."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, source, *rest):
        halves = source.chunk(2, dim=1)
        return [self.model(half, *rest)[0] for half in halves]


def test_layers_that_run_twice_are_refused(dense, layers):
    """Those of one half would be matched with those of the other."""
    dense = {"Twice": Twice(dense["Transformer"])}
    student = copy.deepcopy(dense)
    teacher = Teacher(dense, layers={"Twice": [f"model.{n}" for n in layers]})
    teacher.listen_(student)
    teacher.begin_()
    student["Twice"](torch.randn(2, 12, 6), TOKENS, LENGTHS)
    with pytest.raises(RuntimeError, match="once per batch"):
        LayerwiseDistillation(output_weight=0).losses(teacher)


class ReadsOfSingleValues(TorchDispatchMode):
    """Counts what makes a program wait for the device, e.g. `.item()`."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op is torch.ops.aten._local_scalar_dense.default
        return op(*args, **kwargs or {})


@pytest.mark.parametrize("between", [False, True])
def test_an_encoder_fed_past_the_modules_is_refused(dense, layers, between):
    """Its teacher would hear what the student's front-end makes."""
    dense = {"CNN": torch.nn.Linear(6, 6), **dense}
    student = copy.deepcopy(dense)
    with torch.no_grad():
        student["CNN"].weight.mul_(0.1)
    teacher = Teacher(dense, layers={"Transformer": layers})
    teacher.listen_(student)
    teacher.begin_()
    heard = student["CNN"](torch.randn(2, 13, 6))
    student["Transformer"](heard * 2 if between else heard, TOKENS, LENGTHS)
    losses = LayerwiseDistillation(output_weight=0).losses
    if between:
        with pytest.raises(RuntimeError, match="Transformer is not fed by"):
            losses(teacher)
    else:
        assert losses(teacher)["distill_hidden"] > 0


def test_matching_reads_all_distances_at_once():
    generator = torch.Generator().manual_seed(0)
    student = list(torch.randn(5, 2, 3, 4, generator=generator))
    teacher = [student[i] + 0.1 for i in (2, 0, 4)]
    with ReadsOfSingleValues() as reads:
        pairs = nearest_surviving(student, teacher, [True, False, *[True] * 3])
    assert pairs == [(2, 0), (0, 1), (4, 2)]
    assert reads.count == 0


def test_padding_does_not_say_which_layers_are_alike():
    """Two frames, of which the second is padding."""
    seen = {}

    def match(own, goals, alive):
        seen["pairs"] = nearest_surviving(own, goals, alive)
        return seen["pairs"]

    def states(*frames):
        return [torch.tensor([[[a], [b]]]) for a, b in frames]

    teacher = SimpleNamespace(
        entries=[],
        stacks={"layers": [0, 1]},
        student_hidden={"layers": states((1.0, 0.0), (0.0, 9.0))},
        hidden={"layers": states((0.0, 0.0), (1.0, 9.0))},
        pads={"layers": torch.tensor([[False, True]])},
    )
    losses = LayerwiseDistillation(match=match).losses(teacher)
    assert seen["pairs"] == [(1, 0), (0, 1)]
    assert losses["distill_hidden"].item() == 0
