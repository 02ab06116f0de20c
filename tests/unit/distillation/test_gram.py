"""Relations between frames, distilled: pair by pair."""

import pytest
import torch

from sb_prune.distillation import GramDistillation

STUDENT = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [5.0, 5.0]]])
TEACHER = torch.tensor(
    [[[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0], [7.0, 0.0, 0.0, 0.0]]]
)
PADDED = torch.tensor([[False, False, True]])


def distance(padded=None, **options):
    distillation = GramDistillation([0], **options)
    (part,) = distillation([STUDENT], [TEACHER], padded).values()
    return float(part)


def test_every_pair_of_frames():
    """(1, 1, 1, 2) / 2 against (4, 0, 0, 8) / 4."""
    expected = ((0.5 - 1) ** 2 + 2 * 0.5**2 + (1 - 2) ** 2) / 4
    assert distance(PADDED) == pytest.approx(expected)
    assert distance() != pytest.approx(expected)


def test_cosines():
    """Of the two frames 0.707 against 0."""
    assert distance(PADDED, cosine=True) == pytest.approx(2 * 0.5 / 4)


def test_the_order_of_features_does_not_matter():
    states = torch.randn(2, 2, 5, 4)
    turned = states[..., torch.randperm(4)]
    parts = GramDistillation([0, 1])(turned, states)
    assert list(parts) == ["distill_layer0", "distill_layer1"]
    for value in parts.values():
        assert float(value) == pytest.approx(0, abs=1e-10)


def test_utterances_do_not_see_one_another():
    student, teacher = torch.randn(1, 3, 5, 4), torch.randn(1, 3, 5, 8)
    alone = [
        float(
            GramDistillation([0])(student[:, i : i + 1], teacher[:, i : i + 1])[
                "distill_layer0"
            ]
        )
        for i in range(3)
    ]
    together = GramDistillation([0])(student, teacher)["distill_layer0"]
    assert float(together) == pytest.approx(sum(alone) / 3)


def test_gradients_reach_the_student_only():
    student = torch.randn(2, 1, 3, 4, requires_grad=True)
    teacher = torch.randn(2, 1, 3, 8, requires_grad=True)
    sum(GramDistillation([1])(student, teacher).values()).backward()
    assert teacher.grad is None and student.grad[1].abs().sum() > 0
    assert not student.grad[0].any()


@pytest.mark.parametrize(
    "layers, message",
    [([], "layers"), ([1, 1], "name each layer once"), ([-1], "layers")],
)
def test_wrong_layers(layers, message):
    with pytest.raises(ValueError, match=message):
        GramDistillation(layers)


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match="layers: 4, but student and teacher"):
        GramDistillation([0, 4])([STUDENT], [TEACHER])


def test_other_frames_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 1\] and \[1, 3\]"):
        GramDistillation([0])([STUDENT[:, :1]], [TEACHER])
