"""Descriptions of values: equal in every process, different if they differ."""

import functools
import json
import subprocess
import sys
from enum import Enum
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy
import torch

import sb_prune
from sb_prune import depth
from sb_prune.run.descriptions import described
from sb_prune.support.names import public_name


class Plain:
    """With the repr of `object`, and attributes."""

    def __init__(self, **given):
        self.__dict__.update(given)

    def method(self):
        """Bound to an instance."""

    @classmethod
    def of(cls):
        """Bound to a class."""


class Slotted:
    """Without a `__dict__`."""

    __slots__ = ("width",)

    def __init__(self, width):
        self.width = width


class Colour(Enum):
    """A choice."""

    RED = 1
    BLUE = 2


def linear_cka(a, b):
    """Has the name of a function of sb_prune.depth."""


def scaled(factor):
    """A function that encloses a value."""
    return lambda x: factor * x


LONG = torch.arange(5000.0)
OTHER = LONG.clone()
OTHER[2500] = -1  # str() shows the two alike
DIFFERENT = [
    None,
    "None",
    5,
    "5",
    ["a, b"],
    ["a", "b"],
    {"a": 1},
    {"a": "1"},
    {1, 2},
    depth.linear_cka,
    linear_cka,
    max,
    torch.max,
    "".join,
    LONG,
    OTHER,
    LONG.reshape(50, 100),
    LONG.bfloat16(),
    LONG.numpy(),
    OTHER.numpy(),
    torch.tensor([1.0, 2.0]),
    torch.tensor(1.0, requires_grad=True),
    numpy.array(["a", None], dtype=object),
    partial(max, key=partial(sorted, key=linear_cka)),
    partial(max, key=partial(sorted, key=depth.linear_cka)),
    partial(max, 1, key=abs),
    Plain(),
    Plain(width=LONG),
    Plain(width=OTHER),
    Plain(inner=Plain(inner=[Plain(width=1)])),
    Plain(inner=Plain(inner=[Plain(width=2)])),
    Slotted(1),
    Slotted(2),
    Colour.RED,
    Colour.BLUE,
    Plain(width=1).method,
    Plain(width=2).method,
    Plain.of,
    Plain.method,
    object(),
    scaled(1),
    scaled(2),
    torch.float16,
    torch.float32,
    torch.Generator(),
    torch.nn.ReLU(),
    Path("a"),
    "at 0x10",
    "at 0x11",
    functools.lru_cache(linear_cka),
]


def test_values_that_differ_are_described_differently():
    texts = [described(value) for value in DIFFERENT]
    for (i, a), (j, b) in combinations(enumerate(texts), 2):
        assert a != b, (DIFFERENT[i], DIFFERENT[j])


IN_ANOTHER_PROCESS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from unit.run.test_descriptions import DIFFERENT, described
print(json.dumps([described(value) for value in DIFFERENT]))
"""


def test_another_process_describes_them_alike():
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, tests]
    there = json.loads(subprocess.check_output(command, text=True))
    here = [described(value) for value in DIFFERENT]
    name = "unit.run.test_descriptions"
    assert there == [text.replace(__name__, name) for text in here]


def test_no_memory_address_is_described():
    texts = [described(v) for v in DIFFERENT if not isinstance(v, str)]
    assert not [text for text in texts if " at 0x" in text]


def test_a_circle_ends():
    one = Plain()
    one.other = Plain(back=one)
    assert described(one).count("Plain(") == 2
    assert "(back: ...)" in described(one)


def test_a_name_is_the_public_one():
    assert public_name(sb_prune.MACBudget) == "sb_prune.MACBudget"
    assert public_name(depth.linear_cka) == "sb_prune.depth.linear_cka"
    assert public_name(linear_cka) == f"{__name__}.linear_cka"
    assert public_name(Plain.method) == f"{__name__}.Plain.method"
