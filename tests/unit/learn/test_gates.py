"""The hard concrete distribution, beyond what every gate must fulfil."""

import pytest
import torch

from sb_prune import HardConcrete, conformer_structures


def draw(gates, logits, seed=0):
    return gates.sample(logits, torch.Generator().manual_seed(seed))


def test_straight_through_sees_the_exported_values():
    logits = torch.linspace(-4, 4, 1000)
    hard = draw(HardConcrete(straight_through=True), logits)
    soft = draw(HardConcrete(), logits)
    assert set(hard.tolist()) == {0.0, 1.0}
    assert torch.equal(hard > 0, soft > 0)


def test_straight_through_has_the_gradient_of_the_soft_gate():
    found = []
    for straight in (True, False):
        logits = torch.linspace(-4, 4, 1000).requires_grad_()
        draw(HardConcrete(straight_through=straight), logits).sum().backward()
        found.append(logits.grad)
    assert torch.equal(*found)
    assert (found[0] != 0).any()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([-1e4, 1e4]).requires_grad_()
    sample = draw(HardConcrete(), logits)
    sample.sum().backward()
    assert sample.tolist() == [0.0, 1.0]
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("limits", [(0.1, 1.1), (-0.1, 0.9), (0, 1)])
def test_limits_must_leave_room(limits):
    with pytest.raises(ValueError, match="(lower|upper): .*; write a number"):
        HardConcrete(lower=limits[0], upper=limits[1])


@pytest.mark.parametrize(
    "initial, text",
    [
        (1.0, "initial: 1.0; write a number between 0 and 1"),
        ({"heads": 0}, "initial: heads: 0; write a number between 0 and 1"),
        ({"head": 0.5}, r"unknown kind \['head'\].*'heads'"),
    ],
)
def test_bad_initial_probability(make_asr, initial, text):
    declaration = conformer_structures(make_asr())
    with pytest.raises(ValueError, match=text):
        HardConcrete(initial=initial).initial_logits(declaration)
