"""Least squares of what layers read, against the plain solution."""

from functools import partial

import pytest
import torch
from speechbrain.lobes.models.transformer.Branchformer import (
    BranchformerEncoder,
)
from torch import nn

from sb_prune import LeastSquares, Plan, attach_, branchformer_structures
from sb_prune.cut.settled import Settled
from sb_prune.declare.plan import full_plan
from sb_prune.declare.structure import Declaration, Slices, Structure

UNITS = 6
ALL = 1000  # frames for each input, more than there are
KEPT = torch.tensor([True, False, True, True, False, True])
LAYERS = {
    "linear": (lambda: nn.Linear(UNITS, 3), (50, UNITS)),
    "linear without a bias": (
        lambda: nn.Linear(UNITS, 3, bias=False),
        (2, 40, UNITS),
    ),
    "conv1d": (
        lambda: nn.Conv1d(UNITS, 3, 3, stride=2, padding=1),
        (2, UNITS, 81),
    ),
    "dilated conv1d": (
        lambda: nn.Conv1d(UNITS, 3, 2, dilation=3, padding="same"),
        (2, UNITS, 60),
    ),
    "reflecting conv1d": (
        lambda: nn.Conv1d(UNITS, 3, 3, padding=2, padding_mode="reflect"),
        (2, UNITS, 60),
    ),
    "conv2d": (
        lambda: nn.Conv2d(UNITS, 3, (2, 3), stride=(1, 2), padding=(0, 1)),
        (2, UNITS, 9, 12),
    ),
}


def correlated(shape, seed=0):
    """Units that tell part of what the others do."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    axis = -1 if len(shape) < 3 or shape[-1] == UNITS else 1
    mixed = torch.randn(UNITS, UNITS, generator=generator)
    return (x.movedim(axis, -1) @ mixed).movedim(-1, axis)


def masked(layer):
    index = torch.arange(UNITS).unsqueeze(1)
    reads = Slices("0.weight", 1, index)
    units = Structure("units", "units", UNITS, masks=(reads,))
    root = nn.Sequential(layer)
    declaration = Declaration(root, ("",), (units,), None)
    gates = attach_(declaration)
    return (
        root,
        declaration,
        lambda plan: gates.set_(plan.values(declaration)),
    )


def refitted(layer, batches, per_input=ALL, **options):
    root, declaration, binarise = masked(layer)
    LeastSquares(per_input=per_input, **options).refit_(
        declaration,
        Plan({"units": KEPT}),
        binarise,
        [lambda x=x: root(x) for x in batches],
    )
    return root


@pytest.mark.parametrize("kind", LAYERS)
def test_no_weights_of_the_units_that_stay_come_closer(kind):
    make, shape = LAYERS[kind]
    layer = make()
    batches = [correlated(shape, seed) for seed in (0, 1)]
    with torch.no_grad():
        wanted = [layer(x) for x in batches]
    before = layer.weight.detach().clone()
    root = refitted(layer, batches, ridge=0.0)

    def error(weight):
        with torch.no_grad():
            layer._parameters["weight"].copy_(weight)
            return sum(
                (root(x) - y).square().sum().item()
                for x, y in zip(batches, wanted)
            )

    best = layer._parameters["weight"].detach().clone()
    least = error(best)
    assert least < 0.99 * error(before)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = torch.randn(best.shape, generator=generator)
        for size in (1e-2, 1e-1):
            assert least < error(best + size * step)
    assert torch.equal(best[:, ~KEPT], before[:, ~KEPT])


def test_a_large_ridge_leaves_the_weights():
    layer = nn.Linear(UNITS, 3)
    before = layer.weight.detach().clone()
    refitted(layer, [correlated((50, UNITS))], ridge=1e9)
    now = layer._parameters["weight"]
    torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-4)


def test_too_few_frames_leave_no_nonsense():
    layer = nn.Linear(UNITS, 3)
    root = refitted(layer, [correlated((2, UNITS))])
    assert torch.isfinite(root(correlated((50, UNITS)))).all()
    assert layer.weight.abs().max() < 100


def test_silent_units_leave_the_weights():
    layer = nn.Linear(UNITS, 3)
    before = layer.weight.detach().clone()
    refitted(layer, [torch.zeros(50, UNITS)])
    assert torch.equal(layer._parameters["weight"], before)


@pytest.mark.parametrize("per_input, heard", [(1, 1), (9, 5), (11, 6)])
def test_no_more_is_heard_than_inputs_need(per_input, heard):
    """Of 4 inputs that stay, and 8 frames in each utterance."""
    root, declaration, binarise = masked(nn.Linear(UNITS, 3))
    calls = set()

    def forward(number):
        calls.add(number)
        root(correlated((8, UNITS), number))

    LeastSquares(per_input=per_input).refit_(
        declaration,
        Plan({"units": KEPT}),
        binarise,
        [partial(forward, number) for number in range(6)],
    )
    assert calls == {*range(heard)}


def refit_chain(batches):
    """Refits a chain of layers; returns them, and the weights in order."""
    torch.manual_seed(0)
    root = nn.Sequential(
        nn.Linear(UNITS, UNITS), nn.Linear(UNITS, UNITS), nn.Linear(UNITS, 3)
    )
    index = torch.arange(UNITS).unsqueeze(1)
    structures = tuple(  # declared from the last to the first
        Structure(
            f"{n}",
            "units",
            UNITS,
            masks=(Slices(f"{n}.weight", 1, index),),
        )
        for n in (2, 1)
    )
    declaration = Declaration(root, ("",), structures, None)
    gates = attach_(declaration)
    weights = {f"{n}": KEPT for n in (1, 2)}
    _, fitted = LeastSquares(per_input=ALL).refit_(
        declaration,
        Plan(weights),
        lambda plan: gates.set_(plan.values(declaration)),
        [lambda x=x: root(x) for x in batches],
    )
    return root, fitted


def test_layers_are_fitted_in_the_order_of_the_data():
    """The second layer is fitted to what the first, fitted, feeds it."""
    root, fitted = refit_chain([correlated((80, UNITS))])
    assert [id(w) for w in fitted] == [
        id(root[n]._parameters["weight"]) for n in (1, 2)
    ]


def test_what_is_finished_gives_what_it_would_give_again(monkeypatch):
    batches = [correlated((80, UNITS), seed) for seed in (0, 1)]
    _, kept = refit_chain(batches)
    monkeypatch.setattr(Settled, "finish_", lambda *args: None)
    _, again = refit_chain(batches)
    assert all(map(torch.equal, kept, again))


def test_a_norm_over_the_units_is_that_of_all_in_what_is_wanted():
    """The layer behind it is given other values once some units go."""
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(UNITS), nn.Linear(UNITS, 3)
    root = nn.Sequential(norm, layer)
    index = torch.arange(UNITS).unsqueeze(1)
    units = Structure(
        "units",
        "units",
        UNITS,
        masks=(Slices("1.weight", 1, index),),
        norms=(Slices("0", 0, index),),
    )
    declaration = Declaration(root, ("",), (units,), None)
    x = correlated((80, UNITS))
    with torch.no_grad():
        wanted = root(x) - layer.bias
        gates = attach_(declaration)
        plan = Plan({"units": KEPT})
        gates.set_(plan.values(declaration))
        given = norm(x)[:, KEPT]
    best = torch.linalg.lstsq(given, wanted).solution
    LeastSquares(ridge=0.0).refit_(
        declaration,
        plan,
        lambda plan: gates.set_(plan.values(declaration)),
        [lambda: root(x)],
    )
    found = layer._parameters["weight"][:, KEPT].T
    torch.testing.assert_close(given @ found, given @ best, rtol=0, atol=1e-3)


@torch.no_grad()
def test_layers_that_read_the_same_units_one_after_another():
    """What the second shall give is what it gave with the first as it was."""
    torch.manual_seed(0)
    encoder = BranchformerEncoder(
        1,
        16,
        nhead=2,
        csgu_linear_units=48,
        use_linear_after_conv=True,
        attention_type="regularMHA",
        kernel_size=5,
    ).eval()
    branch = encoder.layers[0].convolution_branch
    nn.init.normal_(branch.csgu.linear.weight, std=0.4)
    mixed = torch.randn(4, 16)
    data = [torch.randn(1, 60, 4) @ mixed for _ in range(12)]

    def forward(x):
        return branch(encoder.layers[0].norm_conv(x))

    dense = torch.stack([forward(x) for x in data])
    declaration = branchformer_structures(encoder, kinds=["conv_channels"])
    keep = full_plan(declaration).keep
    for kept in keep.values():
        kept[1::2] = False
    gates = attach_(declaration)
    LeastSquares(utterances=12, per_input=1000).refit_(
        declaration,
        Plan(keep),
        lambda plan: gates.set_(plan.values(declaration)),
        [lambda x=x: encoder(x) for x in data],
    )
    error = torch.stack([forward(x) for x in data]) - dense
    assert error.var() < 0.1 * dense.var()


def test_inputs_that_depend_on_one_another_need_no_ridge():
    """Sums in float32 are singular only up to their rounding."""
    torch.manual_seed(0)
    weights, x = torch.randn(2, UNITS), 30 + torch.randn(2000, 2)
    layer = nn.Linear(UNITS, 3)
    refitted(layer, [x @ weights], ridge=0.0)
    assert layer._parameters["weight"].abs().max() < 2


def test_a_layer_that_no_utterance_reaches_stays_as_it_is():
    layer = nn.Linear(UNITS, 3)
    root, declaration, binarise = masked(layer)
    _, fitted = LeastSquares().refit_(
        declaration, Plan({"units": KEPT}), binarise, [lambda: None]
    )
    assert fitted == []


@pytest.mark.parametrize("kind", LAYERS)
def test_units_that_others_tell_go_first(kind):
    """What is chosen anew does not depend on what a score chose."""
    make, shape = LAYERS[kind]
    x = correlated(shape)

    def error(gone, reselect):
        torch.manual_seed(0)
        layer = make()
        plan = Plan({"units": ~torch.isin(torch.arange(UNITS), gone)})
        with torch.no_grad():
            wanted = layer(x)
            root, declaration, binarise = masked(layer)
            plan, _ = LeastSquares(ridge=0.0, reselect=reselect).refit_(
                declaration, plan, binarise, [lambda: root(x)]
            )
            assert plan.keep["units"].sum() == UNITS - 2
            return (root(x) - wanted).square().mean().item()

    pairs = list(torch.combinations(torch.arange(UNITS)))
    errors = sorted(error(gone, False) for gone in pairs)
    found = [error(gone, True) for gone in (pairs[0], pairs[-1])]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0] <= 1.001 * errors[4]  # of 15


def test_nothing_is_chosen_anew_of_what_is_silent():
    layer = nn.Linear(UNITS, 3)
    root, declaration, binarise = masked(layer)
    plan, _ = LeastSquares(reselect=True).refit_(
        declaration,
        Plan({"units": KEPT}),
        binarise,
        [lambda: root(torch.zeros(50, UNITS))],
    )
    assert torch.equal(plan.keep["units"], KEPT)


@pytest.mark.parametrize(
    "wrong", [{"utterances": 0}, {"ridge": -1.0}, {"reselect": "yes"}]
)
def test_wrong_values_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LeastSquares(**wrong)
