"""Baselines: structures chosen by a score."""

import io
from functools import partial

import pytest
import torch

from sb_prune import (
    ConstantSchedule,
    HardConcrete,
    LinearSchedule,
    MACBudget,
    ParameterBudget,
    ScorePruner,
    conformer_structures,
    local_score,
    magnitude_score,
    random_score,
    taylor_score,
)
from sb_prune.declare.cost import parameter_cost
from sb_prune.learn import scores
from sb_prune.run.settings import PruningSettings

LEAVES = ("ffn_units", "heads", "conv_channels")
SCORES = (random_score, magnitude_score, taylor_score)
every_score = pytest.mark.parametrize(
    "score", SCORES, ids=[score.__name__ for score in SCORES]
)


@pytest.fixture
def make_pruner(make_asr):
    def make(
        score=taylor_score,
        kinds=LEAVES,
        steps=20,
        schedule=LinearSchedule,
        **options,
    ):
        declaration = conformer_structures(make_asr(), kinds)
        pruner = ScorePruner(
            declaration,
            ParameterBudget(0.4),
            schedule(steps),
            score,
            **options,
        )
        pruner.attach_()
        return pruner

    return make


def walk(pruner, steps, backward_gates):
    for _ in range(steps):
        pruner.sample_()
        backward_gates(pruner.declaration, pruner.step)
        pruner.step_()


@every_score
def test_lands_on_its_budget(make_pruner, backward_gates, score):
    pruner = make_pruner(score)
    walk(pruner, 25, backward_gates)
    assert 0.4 <= pruner.realised_sparsity(pruner.plan()).item() < 0.42
    masked = pruner._chosen
    assert set(masked.tolist()) == {0.0, 1.0}
    cost = parameter_cost(pruner.declaration)
    plan = pruner.cut_()
    expected = cost.of_kept(plan.kept_counts(pruner.declaration))
    encoder = pruner.declaration.root.encoder
    assert sum(p.numel() for p in encoder.parameters()) == round(
        float(expected)
    )


@every_score
def test_resumes_bit_for_bit(make_pruner, backward_gates, score):
    whole, first, second = (make_pruner(score, every=4) for _ in range(3))
    walk(whole, 15, backward_gates)
    walk(first, 6, backward_gates)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    walk(second, 9, backward_gates)
    assert torch.equal(second.saliency, whole.saliency)
    assert torch.equal(second._chosen, whole._chosen)
    assert second.plan().to_dict() == whole.plan().to_dict()


@every_score
def test_one_score_per_unit_of_every_kind(make_asr, score):
    declaration = conformer_structures(make_asr())
    pruner = ScorePruner(declaration, ParameterBudget(0.5), score=score)
    scores = pruner.scores()
    assert scores.shape == (declaration.total_units,)
    assert torch.isfinite(scores).all()


def test_all_open_until_the_target_rises(make_pruner, backward_gates):
    pruner = make_pruner(every=1)
    pruner.sample_()
    assert (pruner._chosen == 1).all()
    backward_gates(pruner.declaration, 0)
    pruner.step_()
    pruner.sample_()
    assert not (pruner._chosen == 1).all()


def test_chooses_anew_only_every_few_steps(make_pruner, backward_gates):
    pruner = make_pruner(every=5)
    chosen = []
    for _ in range(11):
        walk(pruner, 1, backward_gates)
        chosen.append(pruner._chosen)
    changes = [
        not torch.equal(a, b) for a, b in zip(chosen, chosen[1:], strict=False)
    ]
    assert [i + 1 for i, changed in enumerate(changes) if changed] == [1, 5, 10]


def test_magnitude_is_that_of_what_leaves(make_asr):
    declaration = conformer_structures(make_asr(), ["ffn_units"])
    pruner = ScorePruner(
        declaration, ParameterBudget(0.3), score=magnitude_score
    )
    first, second = (
        declaration.root.encoder.layers[1].ffn_module2[1].ffn[i] for i in (0, 3)
    )
    gone = torch.cat(
        [first.weight[7], first.bias[7:8], second.weight[:, 7]]
    ).detach()
    name = "encoder.layers.1.ffn_module2.units"
    score = declaration.split(pruner.scores())[name][7]
    assert score == pytest.approx(gone.square().mean().sqrt().item())


def test_magnitude_of_a_module_counts_all_its_parameters(make_asr):
    declaration = conformer_structures(make_asr(), ["ffn_modules"])
    pruner = ScorePruner(
        declaration, ParameterBudget(0.3), score=magnitude_score
    )
    module = declaration.root.encoder.layers[0].ffn_module1
    gone = torch.cat([p.detach().flatten() for p in module.parameters()])
    score = declaration.split(pruner.scores())["encoder.layers.0.ffn_module1"]
    assert score.item() == pytest.approx(gone.square().mean().sqrt().item())


def test_magnitude_reads_position_biases_as_the_forward_does(make_asr):
    declaration = conformer_structures(make_asr(), ["heads"])
    root = declaration.root
    name = "encoder.layers.0.mha_layer"
    attention = root.get_submodule(name)
    width = attention.head_dim
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        viewed = attention.pos_bias_u.view(-1, width)
        viewed[2] = 1.0
    pruner = ScorePruner(
        declaration, ParameterBudget(0.1), score=magnitude_score
    )
    scores = declaration.split(pruner.scores())[f"{name}.heads"]
    assert scores.nonzero().flatten().tolist() == [2]


def test_saliency_is_the_squared_first_order_term(make_asr, encode):
    declaration = conformer_structures(make_asr(), ["ffn_units"])
    pruner = ScorePruner(
        declaration, ParameterBudget(0.3), LinearSchedule(9), decay=0.0
    )
    pruner.attach_()
    pruner.sample_()
    loss = encode(declaration.root).square()[..., :3].sum()
    loss.backward()
    pruner.step_()
    name = "encoder.layers.0.ffn_module1"
    last = declaration.root.get_submodule(name)[1].ffn[3]
    stored = last._parameters["weight"]
    first_order = (stored.grad * stored).sum(0).square()
    found = declaration.split(pruner.saliency)[f"{name}.units"]
    assert torch.allclose(found, first_order, rtol=1e-3)


def test_prices_are_what_a_unit_frees(make_asr):
    declaration = conformer_structures(make_asr(), LEAVES)
    pruner = ScorePruner(declaration, ParameterBudget(0.3))
    price = declaration.split(pruner.prices)[
        "encoder.layers.0.ffn_module1.units"
    ]
    assert price.tolist() == [2 * 16 + 1] * 32
    by_macs = ScorePruner(declaration, MACBudget(0.3, frames=10))
    macs = declaration.split(by_macs.prices)[
        "encoder.layers.0.ffn_module1.units"
    ]
    assert macs.tolist() == [2 * 16 * 10] * 32


def test_taylor_scores_are_per_price(make_pruner, backward_gates):
    pruner = make_pruner()
    walk(pruner, 3, backward_gates)
    of_kind = {s.kind: s.name for s in pruner.declaration.structures}
    found = pruner.declaration.split(pruner.scores())
    saliency = pruner.declaration.split(pruner.saliency)
    # a head has 4 rows or columns of 5 matrices, and of 2 biases of positions
    prices = {"ffn_units": 2 * 16 + 1, "heads": 5 * 4 * 16 + 2 * 4}
    for kind, price in prices.items():
        name = of_kind[kind]
        expected = saliency[name] / price
        assert (expected > 0).all()
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("scale", [1.0, 1e-9, 0.0])
def test_a_loss_that_depends_on_no_unit_is_noticed(
    make_pruner, backward_gates, monkeypatch, scale
):
    """As that of a distillation from an exact copy."""
    said = []
    monkeypatch.setattr(scores.logger, "warning_once", said.append)
    pruner = make_pruner()
    pruner.scores()
    assert not said  # nothing has been measured yet
    pruner.sample_()
    backward_gates(pruner.declaration, 1, scale)
    pruner.step_()
    pruner.scores()
    assert len(said) == (scale < 1)
    assert all("the loss depends on no unit" in text for text in said)


def test_units_that_are_chosen_before_a_step_are_noticed(
    make_pruner, monkeypatch
):
    said = []
    monkeypatch.setattr(scores.logger, "warning_once", said.append)
    pruner = make_pruner()
    pruner.sample_()
    assert not said
    pruner.schedule = ConstantSchedule()
    pruner.sample_()
    (text,) = said
    assert "before a step has measured them" in text


def test_a_step_that_is_not_finite_is_left_out(make_pruner, backward_gates):
    pruner = make_pruner()
    walk(pruner, 3, backward_gates)
    before = pruner.saliency.clone()
    pruner.sample_()
    backward_gates(pruner.declaration, 9, scale=float("nan"))
    assert pruner.step_() is False
    assert torch.equal(pruner.saliency, before)


def test_the_scale_of_mixed_precision_is_taken_out(make_pruner, backward_gates):
    plain, scaled = make_pruner(), make_pruner()
    for pruner, scale in ((plain, 1.0), (scaled, 256.0)):
        pruner.sample_()
        backward_gates(pruner.declaration, 1, scale)
        pruner.step_(scale)
    assert torch.allclose(plain.saliency, scaled.saliency)


def test_bad_every(make_pruner):
    with pytest.raises(ValueError, match="every: 0; write a whole number, 1"):
        make_pruner(every=0)


def test_a_block_with_score_and_gates():
    with pytest.raises(ValueError, match="leave out `gates`"):
        PruningSettings(
            "model",
            conformer_structures,
            0.5,
            1,
            1,
            score=taylor_score,
            gates=HardConcrete,
        )


def test_the_first_choice_is_not_waited_for(make_pruner, backward_gates):
    """Weights that were held would learn from noise until then."""
    pruner = make_pruner(every=8, schedule=partial(LinearSchedule, start=0.5))
    for _ in range(12):
        rises = pruner.rises()
        walk(pruner, 1, backward_gates)
        assert (pruner._chosen == 1).all() != rises


def test_each_structure_loses_the_same_share(make_pruner):
    score = partial(local_score, score=random_score)
    pruner = make_pruner(score, kinds=["ffn_units"])
    plan, random = pruner.plan(final=True), random_score(pruner)
    pieces = pruner.declaration.split(random)
    shares = {}
    for name, kept in plan.keep.items():
        if pieces[name].numel() > 1:  # no whole module
            shares[name] = kept.float().mean().item()
            assert pieces[name][kept].min() > pieces[name][~kept].max()
    assert len(shares) > 2 and max(shares.values()) < 1
    assert max(shares.values()) - min(shares.values()) < 0.05


def test_dims_are_ranked_inside_each_head(make_asr):
    declaration = conformer_structures(make_asr(), ["heads", "value_dims"])
    pruner = ScorePruner(declaration, ParameterBudget(0.05))
    ranks = declaration.split(local_score(pruner, score=random_score))
    dims = next(s for s in declaration.structures if s.kind == "value_dims")
    inside = declaration.by_holder(dims, ranks[dims.name])
    assert len(inside) > 1
    for piece in inside:
        expected = (torch.arange(len(piece)) + 1) / len(piece)
        assert torch.allclose(piece.sort().values, expected)
