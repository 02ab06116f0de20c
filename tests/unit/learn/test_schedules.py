"""Schedules, beyond what every schedule must fulfil."""

import pytest

from sb_prune import CubicSchedule, LinearSchedule


@pytest.mark.parametrize("kind", [LinearSchedule, CubicSchedule])
def test_starts_at_0(kind):
    assert kind(steps=10).fraction(0) == 0.0


@pytest.mark.parametrize("kind", [LinearSchedule, CubicSchedule])
@pytest.mark.parametrize("steps", [0, -3])
def test_needs_steps(kind, steps):
    with pytest.raises(ValueError, match=f"steps: {steps}; write a whole num"):
        kind(steps=steps)


def test_cubic_is_ahead_of_linear():
    for step in range(1, 10):
        linear = LinearSchedule(10).fraction(step)
        assert CubicSchedule(10).fraction(step) > linear


@pytest.mark.parametrize("kind", [LinearSchedule, CubicSchedule])
def test_may_start_later(kind):
    late, whole = kind(steps=20, start=0.5), kind(steps=10)
    assert [late.fraction(step) for step in range(11)] == [0.0] * 11
    assert late.fraction(11) > 0
    for step in range(15):
        assert late.fraction(10 + step) == pytest.approx(whole.fraction(step))


@pytest.mark.parametrize("start", [-0.1, 1.0, 40])
def test_start_is_a_fraction(start):
    with pytest.raises(ValueError, match=f"start: {start}; write a number, 0"):
        LinearSchedule(steps=10, start=start)
