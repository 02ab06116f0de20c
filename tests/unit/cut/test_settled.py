"""Parts of a model that are finished run once for the same data."""

import pytest
import torch
from torch import nn

from sb_prune.cut.settled import Settled


class Stack(nn.Module):
    """Layers, as an encoder has them; it counts how often it runs."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        for layer in self.layers:
            x = layer(x)
        return {"states": x}


class Model(nn.Module):
    """An encoder, and a decoder that changes what it is given."""

    def __init__(self, width=3):
        super().__init__()
        self.encoder, self.decoder = Stack(width), Stack(width)
        self.encoder_runs_twice = False

    def forward(self, x):
        states = self.encoder(x)["states"]
        if self.encoder_runs_twice:
            states = self.encoder(states)["states"]
        return self.decoder(states.add_(1))["states"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def settled(model):
    return Settled(model, [*model.encoder.layers, *model.decoder.layers])


@torch.no_grad()
def run(model, settled, number):
    x = torch.randn(2, 3, generator=torch.manual_seed(number))
    with settled.replaying(number):
        return model(x)


@torch.no_grad()
def test_a_finished_part_runs_once_for_the_same_data(model, settled):
    for layer in model.encoder.layers:
        settled.finish_(layer)
    first = [run(model, settled, number) for number in (0, 1)]
    for _ in range(3):
        again = [run(model, settled, number) for number in (0, 1)]
        assert all(map(torch.equal, first, again))
    assert model.encoder.runs == 2 and model.decoder.runs == 8
    assert torch.equal(
        model(torch.randn(2, 3, generator=torch.manual_seed(1))), first[1]
    )
    assert model.encoder.runs == 3, "outside, all runs as before"


def test_half_of_a_stack_is_not_kept(model, settled):
    """Its layers may be many, and what they give is large."""
    settled.finish_(model.encoder.layers[0])
    for _ in range(2):
        run(model, settled, 0)
    assert model.encoder.runs == 2


def test_what_is_not_finished_may_change(model, settled):
    for layer in model.encoder.layers:
        settled.finish_(layer)
    before = run(model, settled, 0)
    with torch.no_grad():
        model.decoder.layers[1].bias.add_(1)
    assert torch.allclose(run(model, settled, 0), before + 1)


@pytest.mark.parametrize("ends_early", [False, True])
def test_of_a_part_that_runs_twice_the_first_call_is_kept(
    model, settled, ends_early
):
    """The other one is given something else."""
    model.encoder_runs_twice = True
    expected = model(torch.randn(2, 3, generator=torch.manual_seed(0)))
    model.encoder.runs = 0
    for layer in model.encoder.layers:
        settled.finish_(layer)
    if ends_early:  # as where a layer between the two calls is fitted
        with torch.no_grad(), settled.replaying(0):
            model.encoder(torch.randn(2, 3, generator=torch.manual_seed(0)))
    else:
        assert torch.equal(run(model, settled, 0), expected)
    assert torch.equal(run(model, settled, 0), expected)
    assert model.encoder.runs == (2 if ends_early else 3)


def test_a_forward_of_its_own_is_given_back(model, settled):
    own = model.encoder.forward
    model.encoder.forward = lambda x: own(x)
    patched = model.encoder.forward
    for layer in model.encoder.layers:
        settled.finish_(layer)
    for _ in range(2):
        run(model, settled, 0)
    assert model.encoder.forward is patched
