"""Dims inside heads: declaration, cost, plans, and attention of what is left.

That masked and cut model agree is in tests/contract/test_architectures.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_same_but_for_rounding

from sb_prune import (
    MACBudget,
    ParameterBudget,
    Pruner,
    conformer_structures,
    cut_,
    magnitude_score,
    wav2vec2_structures,
)
from sb_prune.architectures import conformer, wav2vec2
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.cut.modules import heads
from sb_prune.declare.cost import mac_cost, parameter_cost
from sb_prune.declare.plan import full_plan
from sb_prune.declare.structure import Declaration, Structure
from sb_prune.learn.fitting import fit_plan, leaf_prices

ATTENTION = "encoder.layers.0.attention"
FAMILIES = ("Wav2Vec2", "Hubert", "WavLM", "SpeechBrain")
BUDGETS = {
    "parameters": ParameterBudget,
    "MACs": lambda target: MACBudget(target, frames=5_000),
}


@pytest.fixture
def many_buckets(monkeypatch):
    """Heads of every width are computed apart."""
    monkeypatch.setattr(heads, "WIDTH_STEP", 1)


def declare(model, kinds=wav2vec2.KINDS):
    return wav2vec2_structures(model, [*kinds, *INSIDE_HEADS])


def test_what_is_inside_heads(make_wav2vec2):
    declaration = declare(make_wav2vec2(), ["heads"])
    first = [s for s in declaration.structures if s.name.startswith(ATTENTION)]
    heads, query_key, value = first
    assert [s.units for s in first] == [4, 16, 16]
    assert heads.holds and not heads.is_leaf and not heads.cuts
    assert query_key.parent == value.parent == heads.name
    assert declaration.holder(query_key) is heads
    assert declaration.holder(heads) is None


def test_heads_cut_what_no_dims_do(make_asr):
    """in_proj_weight has q, k and v of RelPosMHAXL; here v are the heads'."""
    kinds = ["heads", "query_key_dims"]
    declaration = conformer_structures(make_asr(layers=1), kinds)
    heads, query_key = declaration.structures
    cuts = {cut.tensor.rsplit(".")[-1]: cut for cut in heads.cuts}
    assert cuts.keys() == {"in_proj_weight", "weight"}  # and out_proj's
    values = torch.arange(48).view(4, 3, 4)[:, 2]
    assert torch.equal(cuts["in_proj_weight"].index, values)
    assert query_key.cuts[0].index.shape == (16, 2)


@pytest.mark.parametrize("kind", INSIDE_HEADS)
def test_dims_need_heads(make_wav2vec2, kind):
    with pytest.raises(ValueError, match="lie inside heads; write heads too"):
        wav2vec2_structures(make_wav2vec2(), ["ffn_units", kind])


def test_rotated_dims_cannot_be_cut(make_asr):
    with pytest.raises(ValueError, match="query_key_dims.*match nothing"):
        conformer_structures(
            make_asr(attention="RoPEMHA"), ["heads", "query_key_dims"]
        )


def test_units_must_divide_evenly():
    heads = Structure("heads", "heads", 4, holds=True)
    dims = Structure("dims", "dims", 6, parent="heads")
    with pytest.raises(ValueError, match="6 units of dims are not divisible"):
        Declaration(torch.nn.Linear(1, 1), ("",), (heads, dims), None)


def test_dims_of_closed_heads_count_as_closed(make_wav2vec2):
    declaration = declare(make_wav2vec2(layers=1), ["heads"])
    plan = full_plan(declaration)
    plan.keep[f"{ATTENTION}.heads"][1:3] = False
    plan.keep[f"{ATTENTION}.query_key"][:3] = False
    assert plan.kept_counts(declaration).tolist() == [2, 5, 8]
    gone = 11 * 2 * 17 + 8 * (17 + 16)  # rows with their biases, columns
    cost = parameter_cost(declaration)
    kept = cost.of_kept(plan.kept_counts(declaration))
    assert cost.dense() - float(kept) == gone


@settings(max_examples=20, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_expected_cost_of_certain_gates_is_exact(
    make_wav2vec2, random_plan, seed
):
    declaration = declare(make_wav2vec2())
    plan = random_plan(declaration, seed)
    for structure in declaration.structures:
        if structure.removes:  # which expected cost multiplies term by term
            plan.keep[structure.name][:] = True
    counts = plan.kept_counts(declaration)
    for cost in (parameter_cost(declaration), mac_cost(declaration, 700)):
        expected = cost.expected(plan.values(declaration))
        assert float(expected) == pytest.approx(float(cost.of_kept(counts)))


def test_expected_cost_is_the_mean_over_gates(make_wav2vec2):
    declaration = declare(make_wav2vec2(layers=1), ["heads"])
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(declaration.total_units, generator=generator)
    cost = parameter_cost(declaration)
    drawn = [
        cost.expected(torch.bernoulli(chance, generator=generator))
        for _ in range(3000)
    ]
    mean = float(torch.stack(drawn).mean())
    assert mean == pytest.approx(float(cost.expected(chance)), rel=2e-3)


@pytest.mark.parametrize("unit", BUDGETS)
@pytest.mark.parametrize("family", ["Wav2Vec2", "WavLM"])
@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
    target=st.sampled_from([0.2, 0.5, 0.7]),
    min_keep=st.integers(1, 2),
)
def test_plans_land_within_one_unit_below(
    make_wav2vec2, family, unit, seed, spread, target, min_keep
):
    declaration = declare(make_wav2vec2(family))
    (group,) = BUDGETS[unit](target).groups(declaration, min_keep)
    generator = torch.Generator().manual_seed(seed)
    scores = [
        torch.rand(s.units, generator=generator)
        + spread * torch.rand(1, generator=generator)
        for s in declaration.structures
    ]
    plan = fit_plan(declaration, [group], torch.cat(scores), None, min_keep)
    plan.check(declaration)
    left = group.cost.of_kept(plan.kept_counts(declaration))
    short = group.dense * (1 - target) - float(left)
    prices = leaf_prices(declaration, group, plan)
    assert -1e-6 * group.dense <= short
    assert not prices or short < min(prices.values())
    for structure in declaration.structures:
        holder = declaration.holder(structure)
        if holder and plan.is_open(structure, declaration):
            inside = plan.keep[structure.name].view(holder.units, -1).sum(1)
            assert (inside[plan.keep[holder.name]] >= min_keep).all()
            assert not inside[~plan.keep[holder.name]].any()


def test_a_head_without_dims_goes(make_wav2vec2):
    declaration = declare(make_wav2vec2(layers=1), ["heads"])
    (group,) = ParameterBudget(0.1).groups(declaration)
    scores = torch.ones(declaration.total_units)
    values = declaration.split(scores)[f"{ATTENTION}.value"]
    values[:4] = 0
    plan = fit_plan(declaration, [group], scores)
    assert plan.keep[f"{ATTENTION}.heads"].tolist() == [False, True, True, True]


def test_an_open_head_needs_a_dim(make_wav2vec2):
    declaration = declare(make_wav2vec2(), ["heads"])
    plan = full_plan(declaration)
    plan.keep[f"{ATTENTION}.value"][4:8] = False
    with pytest.raises(ValueError, match="value keeps no unit while"):
        plan.check(declaration)
    plan.keep[f"{ATTENTION}.heads"][1] = False
    plan.check(declaration)


def test_scores_and_prices_of_heads(make_wav2vec2):
    declaration = declare(make_wav2vec2(layers=1), ["heads"])
    pruner = Pruner(declaration, ParameterBudget(0.1))
    scores = declaration.split(magnitude_score(pruner))
    dims = [scores[f"{ATTENTION}.{d}"].square() for d in ("query_key", "value")]
    mean = (dims[0] + dims[1]).view(4, 4).mean(1) / 2
    assert torch.allclose(scores[f"{ATTENTION}.heads"], mean.sqrt())
    prices = declaration.split(pruner.prices)
    assert prices[f"{ATTENTION}.query_key"].tolist() == [2 * 17] * 16
    assert prices[f"{ATTENTION}.value"].tolist() == [17 + 16] * 16
    assert prices[f"{ATTENTION}.heads"].tolist() == [4 * (34 + 33)] * 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_exact_with_a_bucket_for_each_width(
    make_wav2vec2,
    random_plan,
    masked_and_cut,
    encode_waveform,
    many_buckets,
    family,
    seed,
):
    declaration = declare(make_wav2vec2(family), ["heads", "ffn_units"])
    plan = random_plan(declaration, seed)
    masked, cut = masked_and_cut(declaration, plan, encode_waveform)
    assert (masked - cut).abs().max() <= 1e-5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", ["RelPosMHAXL", "regularMHA"])
def test_conformers_with_a_bucket_for_each_width(
    make_asr,
    random_plan,
    masked_and_cut,
    encode,
    many_buckets,
    attention,
    causal,
):
    model = make_asr(attention=attention, causal=causal)
    kinds = [*conformer.KINDS, *INSIDE_HEADS]
    declaration = conformer_structures(model, kinds)
    masked, cut = masked_and_cut(
        declaration, random_plan(declaration, keep=0.7), encode
    )
    assert (masked - cut).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert"])
def test_eager_attention_and_sdpa_agree(
    make_wav2vec2, random_plan, encode_waveform, family
):
    outputs = []
    for attention in ("eager", "sdpa"):
        model = make_wav2vec2(family, attention=attention)
        declaration = declare(model)
        cut_(declaration, random_plan(declaration, seed=3))
        with torch.no_grad():
            outputs.append(encode_waveform(model))
    assert torch.allclose(*outputs, atol=1e-5)


def test_transformers_reads_the_weights(make_wav2vec2, random_plan):
    model = make_wav2vec2(attention="eager")
    declaration = declare(model, ["heads"])
    plan = random_plan(declaration, seed=1)
    cut_(declaration, plan)
    output = model(torch.randn(2, 700), output_attentions=True)
    for i, weights in enumerate(output.attentions):
        kept = plan.keep[f"encoder.layers.{i}.attention.heads"].sum()
        assert weights.shape[:2] == (2, kept)
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


def test_a_cut_model_trains(make_wav2vec2, random_plan, encode_waveform):
    """With dropout, which both ways of computing heads have."""
    for attention in ("eager", "sdpa"):
        model = make_wav2vec2(attention=attention, dropout=0.5).train()
        declaration = declare(model, ["heads"])
        cut_(declaration, random_plan(declaration, seed=1))
        first, second = encode_waveform(model), encode_waveform(model)
        assert not torch.equal(first, second)
        first.sum().backward()
        gradient = model.encoder.layers[0].attention.q_proj.weight.grad
        assert gradient.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("family", ["Wav2Vec2", "WavLM", "SpeechBrain"])
def test_an_exported_model_still_runs(
    make_wav2vec2, random_plan, encode_waveform, family
):
    """No index that a trace has seen may come back in an eager forward."""
    model = make_wav2vec2(family)
    declaration = declare(model, ["heads"])
    cut_(declaration, random_plan(declaration, seed=1))
    before = encode_waveform(model)
    encoder, inputs = model, torch.randn(2, 700)
    if family == "SpeechBrain":
        encoder, inputs = model["latent_encoder"], torch.randn(2, 9, 4)
    # torch 2.6 is strict unless told, and cannot trace transformers then
    program = torch.export.export(encoder, (inputs,), strict=False)
    first = next(iter(encoder(inputs).values()))
    assert type(first) is torch.Tensor
    exported = next(iter(program.module()(inputs).values()))
    assert (exported - first).abs().max() <= 1e-5
    assert_same_but_for_rounding(encode_waveform(model), before)


def test_indices_follow_the_model_and_are_not_saved(make_wav2vec2, random_plan):
    model = make_wav2vec2(layers=1)
    declaration = declare(model, ["heads"])
    cut_(declaration, random_plan(declaration, seed=1))
    layout = model.encoder.layers[0].attention.layout
    assert {b.dtype for b in layout.buffers()} == {torch.int64}
    assert not any("layout" in name for name in model.state_dict())
    assert all(b.is_meta for b in model.to("meta").buffers())


@pytest.fixture
def unequal(make_wav2vec2):
    """A layer with heads of 4, 2, 1 and 4 query and 4, 1, 2, 3 value dims."""
    model = make_wav2vec2(layers=1)
    declaration = declare(model, ["heads"])
    plan = full_plan(declaration)
    plan.keep[f"{ATTENTION}.query_key"][[5, 6, 8, 9, 10]] = False
    plan.keep[f"{ATTENTION}.value"][[4, 5, 6, 9, 10, 12]] = False
    cut_(declaration, plan)
    return model


def test_unequal_heads_are_declared_again(unequal):
    heads, query_key, value = declare(unequal, ["heads"]).structures
    assert query_key.inside == (4, 2, 1, 4) and value.inside == (4, 1, 2, 3)
    assert (query_key.units, value.units) == (11, 10)
    assert heads.masks[0].index.tolist() == [
        [0, 1, 2, 3],
        [4, -1, -1, -1],
        [5, 6, -1, -1],
        [7, 8, 9, -1],
    ]


def test_widths_follow_both_cuts(unequal):
    declaration = declare(unequal, ["heads"])
    plan = full_plan(declaration)
    plan.keep[f"{ATTENTION}.heads"][1] = False
    plan.keep[f"{ATTENTION}.query_key"][[0, 8]] = False
    plan.keep[f"{ATTENTION}.value"][5] = False
    assert plan.kept_counts(declaration).tolist() == [3, 7, 8]
    cut_(declaration, plan)
    attention = unequal.encoder.layers[0].attention
    assert attention.widths == ((3, 1, 3), (4, 1, 3))
    assert attention.num_heads == 3
    assert attention.q_proj.out_features == 7
    assert attention.v_proj.out_features == 8


def test_by_default_dims_are_declared_where_heads_are_unequal(
    make_wav2vec2, unequal
):
    for model, expected in ((make_wav2vec2(), set()), (unequal, INSIDE_HEADS)):
        kinds = {s.kind for s in wav2vec2_structures(model).structures}
        assert kinds == {*wav2vec2.KINDS, *expected}


@pytest.mark.parametrize("kinds", [["heads"], ["heads", "value_dims"]])
def test_unequal_heads_alone_are_refused(unequal, kinds):
    missing = " and ".join(k for k in INSIDE_HEADS if k not in kinds)
    with pytest.raises(ValueError, match=f"differ in width.*write {missing} t"):
        wav2vec2_structures(unequal, kinds)
    wav2vec2_structures(unequal, ["attention_modules", "ffn_units"])


@pytest.mark.parametrize("family", ["Wav2Vec2", "WavLM", "RelPosMHAXL"])
def test_heads_alone_where_all_are_equally_narrow(
    make_wav2vec2, make_asr, masked_and_cut, encode, encode_waveform, family
):
    """Queries narrower than values, then only values of each width."""
    if family == "RelPosMHAXL":
        model, run, structures = make_asr(), encode, conformer_structures
    else:
        model, run = make_wav2vec2(family), encode_waveform
        structures = wav2vec2_structures
    declaration = structures(model, ["heads", "query_key_dims"])
    plan = full_plan(declaration)
    for structure in declaration.structures:
        if structure.kind == "query_key_dims":
            plan.keep[structure.name][::4] = False
    cut_(declaration, plan)
    for kinds in (["heads"], ["heads", "value_dims"], None):
        declaration = structures(model, kinds)
        plan = full_plan(declaration)
        for structure in declaration.structures:
            if structure.kind == "heads":
                plan.keep[structure.name][1] = False
            if structure.kind == "value_dims":
                plan.keep[structure.name][::3] = False
        masked, cut = masked_and_cut(declaration, plan, run)
        assert (masked - cut).abs().max() <= 1e-5
    attention = next(m for m in model.modules() if hasattr(m, "layout"))
    assert attention.widths[0] == (3,)
    assert len(attention.widths[1]) == 1


@pytest.mark.parametrize("min_keep", [1, 2])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unit", BUDGETS)
def test_plans_of_unequal_heads_land_within_one_unit(
    make_wav2vec2, random_plan, unit, seed, min_keep
):
    model = make_wav2vec2()
    first = declare(model)
    plan = random_plan(first, seed, keep=0.8)
    for structure in first.structures:
        if structure.removes:
            plan.keep[structure.name][:] = True
    cut_(first, plan)
    declaration = declare(model)
    (group,) = BUDGETS[unit](0.5).groups(declaration, min_keep)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(declaration.total_units, generator=generator)
    plan = fit_plan(declaration, [group], scores, None, min_keep)
    plan.check(declaration)
    left = group.cost.of_kept(plan.kept_counts(declaration))
    short = 0.5 * group.dense - float(left)
    prices = leaf_prices(declaration, group, plan)
    assert -1e-6 * group.dense <= short < min(prices.values())
    for structure in declaration.structures:
        holder = declaration.holder(structure)
        if holder and plan.is_open(structure, declaration):
            inside = plan.kept_inside(structure, declaration)
            least = torch.tensor(structure.inside).clamp(max=min_keep)
            kept = plan.keep[holder.name]
            assert (inside >= least)[kept].all()
            assert not inside[~kept].any()


def test_scores_and_prices_of_unequal_heads(unequal):
    declaration = declare(unequal, ["heads"])
    pruner = Pruner(declaration, ParameterBudget(0.1))
    prices = declaration.split(pruner.prices)
    heads = [34 * q + 33 * v for q, v in zip((4, 2, 1, 4), (4, 1, 2, 3))]
    assert prices[f"{ATTENTION}.heads"].tolist() == heads
    assert prices[f"{ATTENTION}.query_key"].tolist() == [34] * 11
    scores = declaration.split(magnitude_score(pruner))
    dims = [scores[f"{ATTENTION}.{d}"].square() for d in ("query_key", "value")]
    second = (dims[0][4:6].mean() + dims[1][4]) / 2
    assert torch.allclose(scores[f"{ATTENTION}.heads"][1], second.sqrt())


def test_a_gate_of_a_head_counts_for_all_its_dims(unequal):
    declaration = declare(unequal, ["heads"])
    cost = parameter_cost(declaration)
    gates = torch.ones(declaration.total_units)
    gates[2] = 0.5  # the third head: 1 query and key dim, 2 of value
    half = cost.dense() - float(cost.expected(gates))
    assert half == pytest.approx((34 + 2 * 33) / 2)


@pytest.mark.parametrize("inside", [(4, 2), (1, 2, 2), (2, 2, 2)])
def test_what_lies_inside_must_fit(inside):
    heads = Structure("heads", "heads", 3, holds=True)
    dims = Structure("dims", "dims", 5, parent="heads", inside=inside)
    parts = (torch.nn.Linear(1, 1), ("",), (heads, dims), None)
    if inside == (1, 2, 2):
        values = Declaration(*parts).held(dims, torch.tensor([7, 8, 9]))
        assert values.tolist() == [7, 8, 8, 9, 9]
        return
    with pytest.raises(ValueError, match="inside: .* for 5 units of dims in t"):
        Declaration(*parts)
