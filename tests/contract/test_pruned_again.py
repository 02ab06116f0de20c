"""What was cut is declared again, with every kind, and cut again, exactly.

Every row of BUILDS: heads of unequal widths, modules and layers that are gone,
channels that are fewer already.
"""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_exact
from test_architectures import BUILDS, ROWS, count, counted_macs, each_build

from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.architectures.whole_layers import (
    layer_plan,
    layer_structures,
    stack_of,
)
from sb_prune.cut.modules import heads as unequal_heads
from sb_prune.cut.modules.attention import UnequalHeads
from sb_prune.cut.surgery import cut_
from sb_prune.declare.cost import mac_cost, parameter_cost
from sb_prune.declare.plan import full_plan
from sb_prune.declare.structure import below

WAVLM = [row for row in ROWS if row.startswith("WavLM")]


@pytest.fixture
def unpadded():
    """Heads are padded to the wider of their own two widths only."""
    with patch.object(unequal_heads, "WIDTH_STEP", 1):
        yield


@pytest.fixture(scope="session")
def draw_plan(random_plan):
    """Function: declaration -> a random plan that keeps 3 entries of norms.

    Of two, a LayerNorm gives hardly more than signs, which rounding decides.
    """

    def draw(declaration, seed, keep):
        plan = random_plan(declaration, seed, keep)
        for structure in declaration.structures:
            if structure.norms:
                plan.keep[structure.name][:3] = True
        return plan

    return draw


@pytest.fixture(scope="session")
def some_plan(draw_plan):
    """Function: declaration -> a plan that spares modules of the last layers,
    one of each stack.
    """

    def draw(declaration, seed, keep=0.75):
        plan = draw_plan(declaration, seed, keep)
        last = {stack_of(layer): layer for layer in declaration.layers}.values()
        for structure in declaration.structures:
            inside = any(below(structure.name, layer) for layer in last)
            if structure.removes and inside:
                plan.keep[structure.name][:] = True
        return plan

    return draw


def padding(declaration, frames):
    """MACs that attention spends on padding the narrower width of each head."""
    spent = 0
    for operation in declaration.operations(frames):
        module = declaration.root.get_submodule(operation.module)
        for part in module.modules():
            if isinstance(part, UnequalHeads) and not operation.tensor:
                names = [n for n in operation.structures if type(n) is tuple]
                for dims, _ in names:
                    which = INSIDE_HEADS.index(
                        dims.rpartition(".")[2] + "_dims"
                    )
                    widest = sum(map(max, zip(*part.widths)))
                    wider = widest / sum(part.widths[which])
                    spent += operation.macs * (wider - 1)
    return spent


@each_build
@pytest.mark.parametrize("seed", range(2))
def test_three_times(
    make_model, compute, some_plan, masked_and_cut, unpadded, build, seed
):
    model = build.make(make_model, layers=3, seed=seed)
    declaration = build.declare(model)
    for step in range(3):
        plan = some_plan(declaration, 10 * step + seed)
        kept = plan.kept_counts(declaration)
        parameters, macs = (
            float(cost.of_kept(kept))
            for cost in (
                parameter_cost(declaration),
                mac_cost(declaration, build.frames),
            )
        )
        before = declaration.total_units
        assert_exact(*masked_and_cut(declaration, plan, compute))
        assert parameters == pytest.approx(count(declaration), abs=1e-6)
        declaration = build.declare(model)
        assert declaration.total_units < before
        assert parameter_cost(declaration).dense() == pytest.approx(parameters)
        left = mac_cost(declaration, build.frames)
        assert left.dense() == pytest.approx(macs, rel=1e-9)
        counted = counted_macs(declaration, compute, build.frames)
        spent = macs + padding(declaration, build.frames)
        assert counted == pytest.approx(spent, rel=1e-6)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6), keep=st.floats(0.3, 0.95))
def test_some_kinds_and_then_others(
    make_model, compute, draw_plan, masked_and_cut, data, seed, keep
):
    build = BUILDS[data.draw(st.sampled_from(ROWS))]
    some = st.lists(st.sampled_from(build.kinds), min_size=1, unique=True)
    model = build.make(make_model, layers=3, seed=seed)
    for step in range(3):
        left = kinds_left(build, model)
        kinds = [kind for kind in data.draw(some) if kind in left]
        if {"heads"} & {*kinds}:
            kinds += [kind for kind in INSIDE_HEADS if kind in left]
        if not kinds:
            return
        declaration = build.declare(model, list(dict.fromkeys(kinds)))
        plan = draw_plan(declaration, seed + step, keep)
        kept = plan.kept_counts(declaration)
        parameters = float(parameter_cost(declaration).of_kept(kept))
        assert_exact(*masked_and_cut(declaration, plan, compute))
        assert parameters == pytest.approx(count(declaration), abs=1e-6)


def kinds_left(build, model):
    """The kinds of all that could be cut still."""
    try:
        return {s.kind for s in build.structures(model).structures}
    except ValueError as error:
        assert "nothing that could be cut is left" in str(error)
        return set()


@each_build
def test_kinds_of_which_nothing_is_left(
    make_model, compute, masked_and_cut, build
):
    """All kinds may be named again; the others are declared still."""
    kinds = {s.kind for s in build.declare(build.make(make_model)).structures}
    for gone in kinds:
        model = build.make(make_model)
        declaration = build.declare(model)
        plan = full_plan(declaration)
        for structure in declaration.structures:
            if structure.kind == gone and structure.removes:
                plan.keep[structure.name][:] = False
        if gone == "layers" or plan.kept_counts(declaration).all():
            continue  # no module of its own
        assert_exact(*masked_and_cut(declaration, plan, compute))
        if not kinds_left(build, model):
            continue
        left = build.declare(model, build.kinds)
        assert gone not in {s.kind for s in left.structures}


@each_build
def test_meta_tensors_are_cut_again_alike(make_model, some_plan, build):
    """Files hold no indices of heads, so these may never be on meta."""
    real = build.make(make_model, layers=3)
    meta = build.make(make_model, layers=3).to("meta")
    for step in range(3):
        for model in (real, meta):
            declaration = build.declare(model)
            cut_(declaration, some_plan(declaration, step, keep=0.8))
        assert_alike(real, meta)
    assert all(p.is_meta for p in meta.parameters())
    meta.load_state_dict(real.state_dict(), strict=True, assign=True)


def assert_alike(real, meta):
    """The same classes, attributes and shapes, and real indices of heads."""
    pairs = dict(meta.named_modules())
    assert pairs.keys() == dict(real.named_modules()).keys()
    for name, module in real.named_modules():
        other = pairs[name]
        assert type(other).__name__ == type(module).__name__
        assert plain_attributes(other) == plain_attributes(module)
        if isinstance(module, UnequalHeads):
            for a, b in zip(module.layout.buffers(), other.layout.buffers()):
                assert torch.equal(a, b)


def plain_attributes(module):
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (int, float, str, list, tuple))
    }


@each_build
def test_layers_are_left_out_of_what_is_left(
    make_model, compute, some_plan, masked_and_cut, build
):
    """One after another as both at once; then what is inside is cut."""
    models = [build.make(make_model, layers=4) for _ in range(2)]
    for model, steps in zip(models, ([{1}, {3}], [{1, 3}])):
        for gone in steps:
            declaration = layer_structures(model, build.structures)
            numbers = [
                int(name.rpartition(".")[2]) for name in declaration.layers
            ]
            keep = [number not in gone for number in numbers]
            cut_(declaration, layer_plan(declaration, keep))
    one_by_one, at_once = models
    assert one_by_one.state_dict().keys() == at_once.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(compute(one_by_one), compute(at_once))
    declaration = build.declare(one_by_one)
    assert not declaration.layers[-1].endswith(("1", "3"))
    plan = some_plan(declaration, seed=0)
    assert_exact(*masked_and_cut(declaration, plan, compute))
