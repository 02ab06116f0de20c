"""Milestones are exported once, at the step that comes to them."""

from sb_prune.run.milestones import Milestones


def test_milestones_are_passed_once():
    milestones = Milestones([0.2, 0.3], 0.5, "export")
    asked = [0.0, 0.1, 0.2, 0.25, 0.4, 0.5]
    passed = [milestones.passed(*pair) for pair in zip(asked, asked[1:])]
    assert passed == [[], [0.2], [], [0.3], []]


def test_a_steep_step_passes_several():
    milestones = Milestones([0.2, 0.3], 0.5, "export")
    assert milestones.passed(before=0.0, now=0.5) == [0.2, 0.3]
