"""What is checked of functions and classes that users write themselves."""

from functools import partial
from typing import Literal

import pytest

from sb_prune.support.messages import shown
from sb_prune.support.values import (
    Factory,
    Function,
    Whole,
    check_arguments,
    checked,
)


def theirs(
    x,
    plain=1,
    switch: bool = False,
    number: float | None = None,
    either: float | Literal["auto"] = 0.0,
    quoted: "int" = 3,
):
    """Ordinary annotations, or none."""
    return x


@pytest.mark.parametrize(
    "arguments",
    [
        {"plain": "text"},
        {"switch": 1},
        {"number": 3},
        {"number": object()},
        {"either": "auto"},
        {"quoted": "text"},
        {"plain": partial(max, key=len)},
    ],
)
def test_a_users_function_takes_what_it_takes(arguments):
    Function("theirs").check(partial(theirs, **arguments), "score")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"switch": "no"}, "score: switch: 'no'; write True or False, without"),
        ({"number": "3"}, "score: number: '3'; write a number, without quotes"),
        ({"swich": True}, "score: swich: theirs has no such .*; write switch"),
        (
            {"plain": [partial(theirs, swich=1)]},
            "score: plain: swich: theirs has no such argument; write switch",
        ),
        (
            {"plain": {"a": partial(theirs, swich=1)}},
            "score: plain: a: swich: theirs has no such argument; write switch",
        ),
    ],
)
def test_text_is_no_number(arguments, message):
    with pytest.raises(ValueError, match=message):
        Function("theirs").check(partial(theirs, **arguments), "score")


@pytest.mark.parametrize(
    "function",
    [
        lambda *args, **kwargs: 0,
        lambda pruner, **kwargs: 0,
        lambda pruner, seed=3: 0,
        partial(lambda seed, pruner: 0, 3),
        len,
        max,  # written in C, without a signature
    ],
)
def test_any_signature_that_fits(function):
    Function("len").check(function, "score")


@pytest.mark.parametrize("function", [lambda: 0, lambda pruner, other: 0])
def test_a_signature_that_does_not_fit(function):
    with pytest.raises(
        ValueError, match="score: <lambda>: .*; sb_prune passes"
    ):
        Function("len").check(function, "score")


class Cosine:
    """A schedule of a user's own."""

    def __init__(self, steps, *, waves: Whole(1) = 1):
        self.steps = steps

    def fraction(self, step):
        return 1.0


SCHEDULE = Factory("Cosine", ["fraction"], keys={"steps": "schedule_steps"})


def test_a_function_may_make_the_object():
    def make(steps):
        return Cosine(2 * steps)

    SCHEDULE.check(make, "schedule")
    assert SCHEDULE.make("pruning", "schedule", make, steps=3).steps == 6


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda steps: 3,
            "pruning: schedule: <lambda> makes 3; write !name",
        ),
        (
            lambda steps: 1 / 0,
            "<lambda> cannot be made .division by zero.; w",
        ),
    ],
)
def test_a_function_that_makes_something_else(make, message):
    with pytest.raises(ValueError, match=message):
        SCHEDULE.make("pruning", "schedule", make, steps=3)


def test_annotations_of_a_users_class_count():
    with pytest.raises(
        ValueError, match="schedule: waves: 0; write a whole nu"
    ):
        SCHEDULE.check(partial(Cosine, waves=0), "schedule")
    with pytest.raises(
        ValueError, match="schedule: step: Cosine .*; write wav"
    ):
        SCHEDULE.check(partial(Cosine, step=0), "schedule")


def test_positional_arguments_are_checked():
    @checked
    def repeat(text, times: Whole(1)):
        return text * times

    assert repeat("a", 2) == "aa"
    with pytest.raises(ValueError, match="repeat: times: 0; write a whole"):
        repeat("a", 0)
    with pytest.raises(TypeError, match="missing 1 required"):
        repeat("a")


def test_a_function_in_c_is_left_to_itself():
    check_arguments(max, {"key": len, "nothing": 3}, "score")


def test_long_values_are_shortened():
    assert shown("x" * 999) == f"'{'x' * 56}..."
