"""Layers distilled through heads, term by term."""

import pytest
import torch

from sb_prune.distillation.projected import ProjectedDistillation

STUDENT = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
TEACHER = torch.tensor([[[4.0, 3.0], [0.0, 2.0], [0.0, 1.0]]])
PADDED = torch.tensor([[False, False, True]])


def distance(padded=None, **weights):
    """Parts of the loss for one layer, with the identity as head."""
    distillation = ProjectedDistillation(2, 2, [0], identity=True, **weights)
    with torch.no_grad():
        (part,) = distillation([STUDENT], [TEACHER], padded).values()
    return float(part)


def test_every_term():
    l1 = distance(PADDED, cosine_weight=0.0)
    assert l1 == pytest.approx((1 + 1 + 1 + 2) / 4)
    cosine = distance(PADDED, l1_weight=0.0)
    assert cosine == pytest.approx(-(24 / 25 + 0) / 2)
    both = distance(PADDED, l1_weight=2.0, cosine_weight=3.0)
    assert both == pytest.approx(2 * l1 + 3 * cosine)
    mse = distance(PADDED, l1_weight=0.0, cosine_weight=0.0, mse_weight=1.0)
    assert mse == pytest.approx((1 + 1 + 1 + 4) / 4)


def test_without_padding_all_frames_count():
    l1 = distance(cosine_weight=0.0)
    assert l1 == pytest.approx((1 + 1 + 1 + 2 + 9 + 8) / 6)


def test_shared_heads_and_own():
    distillation = ProjectedDistillation(2, 2, [0, [4, 8, 12]], identity=True)
    assert len(distillation.heads) == 2
    hidden = [torch.randn(1, 3, 2) for _ in range(13)]
    for parameter in distillation.heads[1].parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        parts = distillation(hidden, hidden)
    assert list(parts) == [f"distill_layer{i}" for i in (0, 4, 8, 12)]
    assert float(parts["distill_layer0"]) == pytest.approx(-1.0)
    for layer in (4, 8, 12):  # the shared head gives zeros
        expected = hidden[layer].abs().mean()
        assert float(parts[f"distill_layer{layer}"]) == pytest.approx(
            float(expected)
        )


def test_gradients_reach_student_and_heads_only():
    distillation = ProjectedDistillation(2, 3, [1])
    student = [torch.randn(1, 3, 2, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(1, 3, 3, requires_grad=True) for _ in range(2)]
    sum(distillation(student, teacher).values()).backward()
    assert student[0].grad is None and student[1].grad is not None
    assert all(state.grad is None for state in teacher)
    assert all(p.grad is not None for p in distillation.parameters())


@pytest.mark.parametrize(
    "sizes, options, message",
    [
        ((2, 3), {"layers": [0], "identity": True}, "between 2 and 3 features"),
        ((2, 2), {"layers": []}, r"layers: \[\]; write a list of 1 or more"),
        ((2, 2), {"layers": 4}, "layers: 4; write a list"),
        ((2, 2), {"layers": [0, -1]}, "layers: -1"),
        ((2, 2), {"layers": ["4"]}, "layers: '4'"),
        ((2, 2), {"layers": [0, [1, 0]]}, "name each layer .* once"),
    ],
)
def test_what_cannot_be_made(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        ProjectedDistillation(*sizes, **options)


def test_other_frames_are_refused():
    hidden = [torch.randn(1, 1, 2)], [torch.randn(1, 3, 2)]
    with pytest.raises(ValueError, match="the same audio and frame rate"):
        ProjectedDistillation(2, 2, [0])(*hidden)


def test_a_layer_that_the_teacher_lacks():
    distillation = ProjectedDistillation(2, 2, [0, 4])
    hidden = [torch.randn(1, 3, 2)] * 5
    with pytest.raises(ValueError, match="layers: 4, but .* have 2 in common"):
        distillation(hidden, hidden[:3])
