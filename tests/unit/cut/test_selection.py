"""Units that a layer misses least, against trying all of them."""

import pytest
import torch

from sb_prune.cut import selection
from sb_prune.cut.selection import keep_best

INPUTS, OUTPUTS = 8, 3


def problem(seed=0):
    """A gram matrix, and what is to be computed from the inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, INPUTS, generator=generator).double()
    x = x @ torch.randn(INPUTS, INPUTS, generator=generator).double()
    y = torch.randn(60, OUTPUTS, generator=generator).double()
    return x, y


def error(x, y, inputs):
    """Least squared error of what these inputs tell of y."""
    best = torch.linalg.lstsq(x[:, inputs], y).solution
    return (x[:, inputs] @ best - y).square().sum().item()


def solve(x, y):
    return x.T @ x, torch.linalg.lstsq(x, y).solution


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("entries", [1, 2])
def test_each_unit_that_goes_is_the_cheapest(seed, entries):
    x, y = problem(seed)
    units = torch.arange(INPUTS).view(-1, entries)
    one = torch.zeros(len(units), dtype=torch.long)
    left = {*range(len(units))}
    for count in reversed(range(1, len(units))):
        stays = keep_best(*solve(x, y), units, one, torch.tensor([count]))
        found = {*stays.nonzero().flatten().tolist()}
        (gone,) = left - found
        errors = {
            u: error(x, y, units[[*(left - {u})]].flatten()) for u in left
        }
        assert gone == min(errors, key=errors.get)
        left = found


def test_each_group_keeps_its_number():
    x, y = problem()
    units = torch.arange(INPUTS).unsqueeze(1)
    first = torch.arange(INPUTS) < 3
    stays = keep_best(
        *solve(x, y), units, (~first).long(), torch.tensor([2, 1])
    )
    assert [int(stays[first].sum()), int(stays[~first].sum())] == [2, 1]
    alone = keep_best(
        *solve(x, y), units, (~first).long(), torch.tensor([1, 5])
    )
    assert alone[~first].all() and int(alone[first].sum()) == 1


def test_of_twins_one_stays():
    """Of wide layers more than one unit goes before all costs are known."""
    generator = torch.Generator().manual_seed(0)
    pairs = 2 * selection.PER_STEP
    x = torch.randn(4 * pairs, pairs, generator=generator).double()
    noise = torch.randn(4 * pairs, pairs, generator=generator).double()
    x = torch.cat([x, x + 0.02 * noise], dim=1)
    y = x @ torch.randn(2 * pairs, OUTPUTS, generator=generator).double()
    units = torch.arange(2 * pairs).unsqueeze(1)
    one = torch.zeros(2 * pairs, dtype=torch.long)
    stays = keep_best(*solve(x, y), units, one, torch.tensor([pairs]))
    assert int(stays.sum()) == pairs
    assert int((~stays[:pairs] & ~stays[pairs:]).sum()) <= 1
