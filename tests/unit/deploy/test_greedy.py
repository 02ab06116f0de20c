"""Searches with numpy find what those of SpeechBrain find."""

import numpy
import pytest
import torch
from speechbrain.decoders import ctc_greedy_decode

from sb_prune.deploy.runtime.search import ctc_greedy, greedy, without


@pytest.mark.parametrize("blank", [0, 3, -1])
def test_ctc(blank):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 50, 5, generator=generator)
    scores = scores.repeat_interleave(2, dim=1)
    lens = torch.tensor([1.0, 0.77, 0.505, 0.01])
    expected = ctc_greedy_decode(scores, lens, blank)
    assert ctc_greedy(scores.numpy(), lens.numpy(), blank) == expected


def steps(rows):
    """A step that answers with these scores, and the tokens it was given."""
    given = []

    def step(tokens):
        given.append(tokens.tolist())
        return numpy.array(rows[len(given) - 1], float)

    return step, given


PROMPTS = numpy.array([[7, 8], [7, 8]])


def test_each_ends_by_itself():
    step, given = steps(
        [[[0, 5, 1], [9, 1, 1]], [[1, 1, 5], [0, 5, 0]], [[5, 0, 0]] * 2]
    )
    assert greedy(step, PROMPTS, end=0, most=9) == [[1, 2], []]
    assert given == [[[7, 8], [7, 8]], [[1], [0]], [[2], [0]]]


def test_it_ends_after_so_many():
    step, given = steps([[[0, 5]] * 2] * 3)
    assert greedy(step, PROMPTS, end=0, most=3) == [[1, 1, 1]] * 2
    assert len(given) == 3


def test_some_tokens_are_never_taken_or_not_first():
    step, _ = steps([[[5, 9, 4, 3]], [[5, 9, 4, 3]]])
    step = without(step, never=[1], never_first=[0])
    assert greedy(step, PROMPTS[:1], end=0, most=9) == [[2]]
