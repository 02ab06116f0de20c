"""Masking distillation, term by term."""

import pytest
import torch

from sb_prune.distillation.masked import MaskingDistillation, draw_spans


def tiny():
    """Two layers of one feature, heads that double and halve."""
    distillation = MaskingDistillation(2, 1, 1)
    with torch.no_grad():
        for head, factor in zip(distillation.heads, (2.0, 0.5)):
            head.weight.fill_(factor)
            head.bias.fill_(0.0)
    student = [
        torch.tensor([[[1.0], [2.0], [3.0]]]),
        torch.tensor([[[4.0], [6.0], [8.0]]]),
    ]
    masked = [
        torch.tensor([[[10.0], [20.0], [30.0]]]),
        torch.tensor([[[40.0], [50.0], [60.0]]]),
    ]
    unmasked = [
        torch.tensor([[[1.0], [3.0], [5.0]]]),
        torch.tensor([[[1.0], [1.0], [1.0]]]),
    ]
    return distillation, student, masked, unmasked


def test_every_term():
    """Masked frames follow the unmasked teacher, the others the masked one."""
    mask = torch.tensor([[True, False, True]])
    distillation, *states = tiny()
    with torch.no_grad():
        parts = distillation(*states, mask)
    # layer 0: 2 - 1, 4 - 20, 6 - 5; layer 1: 2 - 1, 3 - 50, 4 - 1
    first, last = (1 + 256 + 1) / 3, (1 + 47**2 + 9) / 3
    assert parts["distill_layer0"] == pytest.approx(0.1 * first)
    assert parts["distill_layer1"] == pytest.approx(1.0 * last)


@torch.no_grad()
def test_features_are_averaged_and_frames_divided_by_their_number():
    torch.manual_seed(0)
    distillation = MaskingDistillation(1, 3, 4, last_weight=1.0)
    student, masked = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    mask = torch.zeros(2, 5).bool()
    (part,) = distillation([student], [masked], [masked + 9], mask).values()
    error = (distillation.heads[0](student) - masked).square()
    assert part == pytest.approx(float(error.mean(-1).sum() / (2 * 5)))


def test_no_gradient_reaches_the_teacher():
    distillation, student, masked, unmasked = tiny()
    for states in (student, masked, unmasked):
        for state in states:
            state.requires_grad_()
    parts = distillation(
        student, masked, unmasked, torch.tensor([[True, False, True]])
    )
    sum(parts.values()).backward()
    assert all(state.grad is not None for state in student)
    assert all(state.grad is None for state in (*masked, *unmasked))


def test_numbers_of_layers_must_agree():
    distillation, student, masked, unmasked = tiny()
    with pytest.raises(ValueError, match="1 and 2 of the teacher, but 2 heads"):
        distillation(student, masked[:1], unmasked, torch.zeros(1, 3).bool())


def test_spans():
    generator = torch.Generator().manual_seed(0)
    mask = draw_spans(200, 100, fraction=0.4, length=10, generator=generator)
    assert mask.shape == (200, 100) and mask.dtype == torch.bool
    # 4 spans of 10; overlaps leave fewer frames, a whole one is the least
    assert mask.sum(1).max() == 40 and mask.sum(1).min() >= 10
    again = torch.Generator().manual_seed(0)
    assert torch.equal(mask, draw_spans(200, 100, 0.4, 10, again))


def test_a_fraction_of_a_span_is_one_as_often():
    generator = torch.Generator().manual_seed(0)
    mask = draw_spans(2000, 20, fraction=0.25, length=20, generator=generator)
    assert mask.all(1).float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(mask.any(1), mask.all(1))


def test_spans_longer_than_the_utterance():
    mask = draw_spans(1, 3, fraction=1.0, length=10)
    assert mask.all()


@pytest.mark.parametrize(
    "fraction, length, message",
    [(1.5, 10, "fraction: 1.5"), (0.5, 0, "length: 0; write 1 or more")],
)
def test_bad_spans(fraction, length, message):
    with pytest.raises(ValueError, match=message):
        draw_spans(1, 10, fraction, length)
