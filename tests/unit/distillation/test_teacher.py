"""The teacher copies and calls what leads to what it is asked for, no more.

Shapes: B = 2 utterances, T = 13 frames, d = 16 model width.
"""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.utils.checkpoints import Checkpointer
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sb_prune import LayerwiseDistillation, Teacher
from sb_prune.distillation import Distiller, stored_weights
from sb_prune.distillation.copies import FrozenCopy


class Counted(nn.Linear):
    """Counts its calls, also those of copies of it."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


@pytest.fixture
def counted():
    """A new class, so that the count starts at 0."""
    return type("Counted", (Counted,), {})


@pytest.fixture
def student(counted):
    torch.manual_seed(0)
    return {
        "front": nn.Linear(6, 16),
        "encoder": nn.Sequential(*(nn.Linear(16, 16) for _ in range(4))),
        "lin": nn.Linear(16, 4),
        "head": counted(16, 9),
        "language_model": counted(16, 1000),
    }


def forward(student, x=None):
    x = torch.ones(2, 13, 6) if x is None else x
    encoded = student["encoder"](student["front"](x))
    student["head"](encoded)
    return student["lin"](encoded)


def save(modules, folder):
    """What a run saves of its start: the language model is not trained."""
    trained = [m for name, m in modules.items() if name != "language_model"]
    recoverables = {"model": nn.ModuleList(trained)}
    checkpoint = Checkpointer(folder, recoverables).save_checkpoint()
    return stored_weights(checkpoint, recoverables)


def change_(modules):
    with torch.no_grad():
        for name, module in modules.items():
            for parameter in module.parameters():
                parameter.add_(0.1 * (name != "language_model"))


LAYERS = {"encoder": ["0", "1", "2", "3"]}


@pytest.mark.parametrize("is_stored", [True, False])
def test_what_leads_nowhere_is_not_called(
    student, counted, is_stored, tmp_path
):
    weights = save(student, tmp_path) if is_stored else None
    teacher = Teacher(student, LAYERS, weights=weights)
    with torch.no_grad():
        wanted = forward(student)
        calls = counted.calls
    change_(student)
    teacher.listen_(student)
    teacher.begin_()
    forward(student)
    # on other memory, kernels may round apart
    torch.testing.assert_close(teacher.outputs["lin"], wanted)
    assert len(teacher.hidden["encoder"]) == 4
    assert counted.calls == 2 * calls  # the student's alone
    assert teacher._copies.keys() == {"front", "encoder", "lin"}


def test_hidden_states_need_no_output(student):
    teacher = Teacher(student, LAYERS)
    teacher.listen_(student)
    teacher.begin_()
    forward(student)
    LayerwiseDistillation().losses(teacher)
    assert teacher._copies.keys() == {"front", "encoder"}


def test_outputs_need_what_feeds_them_alone(student):
    teacher = Teacher(student, LAYERS)
    teacher.listen_(student)
    teacher.begin_()
    forward(student)
    student["lin"](torch.ones(2, 16))
    assert teacher.outputs["lin"].shape == (2, 4)
    assert teacher._copies.keys() == {"lin"}


def file_of(tensor):
    """The file that is mapped into memory where the tensor lies."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, *_, name = f"{line} ".split(" ", 5)
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= tensor.data_ptr() < end:
            return Path(name.strip()) if name.strip().startswith("/") else None
    raise AssertionError("not in memory")


def test_no_tensor_of_what_is_not_asked_for(student, tmp_path):
    """Trained modules stay on the disk, all others are the recipe's own."""
    own = {p.data_ptr() for m in student.values() for p in m.parameters()}
    teacher = Teacher(student, LAYERS, weights=save(student, tmp_path))
    teacher.listen_(student)
    teacher.begin_()
    forward(student)
    teacher.outputs["lin"]
    assert teacher._unread.keys() == {"head", "language_model"}
    (weight, bias) = teacher._unread["language_model"]._module.parameters()
    assert {weight.data_ptr(), bias.data_ptr()} <= own
    assert student["language_model"].weight.requires_grad  # as it was
    for parameter in teacher._unread["head"]._module.parameters():
        assert file_of(parameter).name == "model.ckpt"
    for copied in teacher._copies.values():
        for parameter in copied.parameters():
            assert parameter.data_ptr() not in own
            assert file_of(parameter) is None


def test_a_module_that_is_first_needed_later(student, tmp_path):
    """As it was at the start, not as the student has become."""
    start = copy.deepcopy(student["lin"])
    teacher = Teacher(student, LAYERS, weights=save(student, tmp_path))
    teacher.listen_(student)
    teacher.begin_()
    encoded = student["encoder"](student["front"](torch.ones(2, 13, 6)))
    assert list(teacher.outputs) == ["front", "encoder"]
    change_(student)
    teacher.begin_()
    student["lin"](encoded)
    wanted = start(encoded)
    torch.testing.assert_close(teacher.outputs["lin"], wanted)


def test_each_call_reads_from_the_calls_before_it():
    """A state that goes around, often: no call of Python per step."""
    student = {"cell": nn.GRUCell(3, 3)}
    teacher = Teacher(student)
    change_(student)
    teacher.listen_(student)
    teacher.begin_()
    x = torch.ones(1, 3)
    state, steps = torch.zeros(1, 3), 2000
    for _ in range(steps):
        state = student["cell"](x, state)
    copied = teacher._unread["cell"]._module
    wanted = torch.zeros(1, 3)
    with torch.no_grad():
        for _ in range(steps):
            wanted = copied(x, wanted)
    torch.testing.assert_close(teacher.outputs["cell"], wanted)
    assert not torch.allclose(wanted, state)


def test_input_that_changes_in_place_is_refused(student):
    teacher = Teacher(student)
    teacher.listen_(student)
    teacher.begin_()
    x = torch.ones(2, 13, 6)
    forward(student, x)
    x.zero_()
    with pytest.raises(RuntimeError, match="front is changed in place after"):
        teacher.outputs["lin"]


@pytest.mark.parametrize(
    "between, loose",
    [
        (lambda x: x, None),
        (lambda x: x * 2, "encoder"),
        (lambda x: x[:, ::2], "encoder"),
        (lambda x: x.mul_(2), "encoder"),
    ],
)
def test_what_is_computed_between_modules_is_named(student, between, loose):
    """Also where it leads to the output that is asked for by another one."""
    teacher = Teacher(student)
    teacher.listen_(student)
    teacher.begin_()
    heard = between(student["front"](torch.ones(2, 13, 6)))
    student["lin"](student["encoder"](heard))
    assert teacher.loose("front") is None
    assert teacher.loose("encoder") == teacher.loose("lin") == loose


def test_a_module_may_change_its_own_input():
    student = {
        "front": nn.Linear(2, 2),
        "encoder": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)),
    }
    teacher = Teacher(student)
    teacher.listen_(student)
    teacher.begin_()
    said = student["encoder"](student["front"](torch.randn(4, 2)))
    assert teacher.loose("encoder") is None
    torch.testing.assert_close(teacher.outputs["encoder"], said)


def test_modules_that_hear_the_same_are_followed():
    """Neither is fed by the other."""
    student = {name: torch.nn.Linear(2, 2) for name in ("speaker", "words")}
    teacher = Teacher(student)
    teacher.listen_(student)
    teacher.begin_()
    x = torch.ones(1, 2)
    said = [student[name](x) for name in student]
    assert teacher.loose("speaker") is None and teacher.loose("words") is None
    torch.testing.assert_close(teacher.outputs["words"], said[1])


def test_padding_is_that_of_the_layers_before(student):
    """The encoder's for its own output, the decoder's for the second."""
    teacher = Teacher(student)
    teacher.listen_(student)
    teacher.begin_()
    student["lin"](student["encoder"](student["front"](torch.ones(2, 3, 6))))
    first, second = torch.zeros(2, 3).bool(), torch.ones(2, 3).bool()
    teacher.pads = {"other.layers": second}
    assert teacher.padding("lin") == []
    teacher.pads = {"encoder.layers": first, "encoder.decoder.layers": second}
    assert teacher.padding("lin")[0] is first
    assert teacher.padding("encoder", 1)[0] is second


def test_a_loss_needs_nothing_but_its_method(student):
    class Own:
        def losses(self, teacher, surviving=None):
            return {"own": student["lin"].weight.sum()}

    declaration = SimpleNamespace(layers=(), layerdrop=0.0)
    distiller = Distiller(Own(), student, "encoder", declaration)
    loss = distiller.add(torch.ones(()), [])
    torch.testing.assert_close(loss, 1 + student["lin"].weight.sum())


def test_precision_is_that_of_the_call(student):
    """Whatever it is when the loss asks."""
    teacher = Teacher(student)
    teacher.listen_(student)
    teacher.begin_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = student["encoder"](student["front"](torch.ones(2, 13, 6)))
        with torch.autocast("cpu", enabled=False):
            student["lin"](encoded.float())
    assert teacher.outputs["encoder"].dtype is torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teacher.outputs["lin"].dtype is torch.float32


# -------------------------------------------------------------- its weights


class Odd(nn.Module):
    """Tied and normalised weights, an LSTM, and buffers of both kinds."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.conv = weight_norm(nn.Conv1d(4, 4, 3, padding=1))
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("scale", torch.rand(5), persistent=False)

    def forward(self, tokens):
        x, _ = self.lstm(self.embedding(tokens))
        x = self.conv(self.norm(x.transpose(1, 2))).transpose(1, 2)
        return self.out(x) * self.scale


def test_odd_modules_are_copied_as_they_are(tmp_path):
    torch.manual_seed(0)
    odd, tokens = Odd(), torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    odd(tokens)  # moves the statistics of the norm
    whole = copy.deepcopy(odd).eval().requires_grad_(False)
    later = FrozenCopy(odd, save({"odd": odd}, tmp_path))
    change_({"odd": odd})
    odd(tokens)
    odd.scale.zero_()
    copied = later.load()
    torch.testing.assert_close(copied(tokens), whole(tokens), rtol=0, atol=0)
    assert copied.out.weight is copied.embedding.weight
    assert not any(p.requires_grad for p in copied.parameters())


def test_adapters_are_copied_and_what_they_adapt_is_shared(tmp_path):
    """SpeechBrain's AdaptedModel saves its adapters alone."""
    torch.manual_seed(0)
    adapted = AdaptedModel(
        nn.Sequential(nn.Linear(4, 4)), all_linear=True, adapter_class=LoRA
    )
    recoverables = {"model": adapted}
    checkpoint = Checkpointer(tmp_path, recoverables).save_checkpoint()
    start = copy.deepcopy(adapted)
    later = FrozenCopy(adapted, stored_weights(checkpoint, recoverables))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    copied = later.load()
    x = torch.ones(1, 4)
    assert torch.equal(copied(x), start.eval()(x))
    assert not torch.equal(copied(x), adapted(x))
    frozen = adapted.adapted_model[0].pretrained_module.weight.data_ptr()
    assert frozen in {p.data_ptr() for p in copied.parameters()}


def test_weights_of_another_model_are_refused(student, tmp_path):
    recoverables = {"model": nn.Linear(2, 3)}
    checkpoint = Checkpointer(tmp_path, recoverables).save_checkpoint()
    with pytest.raises(ValueError, match=r"teacher: .*does not fit.*\(weight"):
        stored_weights(checkpoint, {"model": nn.Linear(2, 4)})


# ---------------------------------------------------------- another teacher


def declared(*layers):
    return SimpleNamespace(
        layers=[f"encoder.{layer}" for layer in layers], layerdrop=0.0
    )


def shorter(student, *layers):
    """The student without the other layers, as whole layers are left out."""
    kept = nn.Sequential()
    for layer in layers:
        kept.add_module(layer, student["encoder"].get_submodule(layer))
    return {**student, "encoder": kept}


def test_batches_without_targets(student):
    """The mean of each part of the loss is that of the batches that had it."""
    distiller = Distiller(
        LayerwiseDistillation(outputs=["lin"]),
        student,
        ["encoder"],
        declared("0", "2"),
    )
    distiller.distillation.losses = lambda *_: {"distill_lin": torch.ones(())}
    found = [distiller.add(loss, None) for loss in (torch.tensor(2.0), None)]
    assert found == [3.0, 1.0]
    assert distiller.means() == {"task": 2.0, "distill_lin": 1.0}
    distiller.distillation.losses = lambda *_: {}
    assert distiller.add(torch.tensor(2.0), None) == 2.0
    with pytest.raises(RuntimeError, match="nothing is compared in this bat"):
        distiller.add(None, None)


def test_a_named_teacher_with_more_layers(student):
    small = shorter(student, "0", "2")
    large = copy.deepcopy(student)
    change_(large)
    distiller = Distiller(
        LayerwiseDistillation(outputs=["lin"]),
        small,
        ["encoder"],
        declared("0", "2"),
        teacher=large,
        weights={},
    )
    teacher = distiller.teacher
    teacher.listen_(small)
    teacher.begin_()
    forward(small)
    losses = distiller.distillation.losses(teacher, [True, True])
    assert all(value > 0 for value in losses.values())
    with torch.no_grad():
        wanted = [large["front"](torch.ones(2, 13, 6))]
        for layer in large["encoder"]:
            wanted.append(layer(wanted[-1]))
        torch.testing.assert_close(
            teacher.hidden["encoder"], [wanted[1], wanted[3]]
        )
        wanted = large["lin"](wanted[-1])
    torch.testing.assert_close(teacher.outputs["lin"], wanted)
    own = {p.data_ptr() for m in large.values() for p in m.parameters()}
    copied = next(teacher._copies["encoder"].parameters())
    assert copied.data_ptr() in own  # it is not copied a second time
    assert large["lin"].weight.requires_grad


@pytest.mark.parametrize(
    "teacher, message",
    [
        (lambda s: shorter(s, "0", "3"), "teacher: encoder has no 2, but the"),
        (
            lambda s: {k: m for k, m in s.items() if k != "encoder"},
            "teacher: encoder has no 0, 2, but the student has",
        ),
        (
            lambda s: {k: m for k, m in s.items() if k != "lin"},
            r"teacher: \['lin'\] of distillation: outputs are not among",
        ),
        (
            lambda s: {k: m for k, m in s.items() if k != "front"},
            "teacher: has no front, which leads to what is compared",
        ),
        (
            lambda s: {**s, "lin": nn.Linear(16, 7)},
            r"lin gives \(2, 13, 7\), that of the student \(2, 13, 4\)",
        ),
        (
            lambda s: {
                **s,
                "front": nn.Linear(6, 8),
                "encoder": nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))),
            },
            r"encoder gives \(2, 13, 8\), that of the student \(2, 13, 16\)",
        ),
    ],
    ids=["layer", "entry", "output", "feeds", "classes", "width"],
)
def test_teachers_that_do_not_fit(student, teacher, message):
    small = shorter(student, "0", "2")
    with pytest.raises(ValueError, match=message):
        distiller = Distiller(
            LayerwiseDistillation(outputs=["lin"]),
            small,
            ["encoder"],
            declared("0", "2"),
            teacher=teacher(student),
            weights={},
        )
        distiller.teacher.listen_(small)
        distiller.teacher.begin_()
        forward(small)
        distiller.distillation.losses(distiller.teacher, [True, True])
