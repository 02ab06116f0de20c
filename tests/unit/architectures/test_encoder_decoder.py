"""What is declared of a whole encoder-decoder."""

import pytest

from sb_prune import (
    ParameterBudget,
    conformer_structures,
    decoder_structures,
    encoder_decoder_structures,
    mac_cost,
    parameter_cost,
)
from sb_prune.declare.tables import structure_table
from sb_prune.learn.fitting import fit_plan


def names(declaration):
    return [s.name for s in declaration.structures]


def test_it_is_the_encoder_and_the_decoder(make_asr):
    model = make_asr(num_decoder_layers=3)
    both = encoder_decoder_structures(model)
    encoder, decoder = conformer_structures(model), decoder_structures(model)
    assert both.scope == ("encoder", "decoder")
    assert names(both) == names(encoder) + names(decoder)
    assert both.layers == encoder.layers + decoder.layers
    for cost in (parameter_cost, lambda d: mac_cost(d, frames=50)):
        parts = cost(encoder).dense() + cost(decoder).dense()
        assert cost(both).dense() == pytest.approx(parts)


def test_only_one_side(make_asr):
    model = make_asr(num_decoder_layers=1)
    declaration = encoder_decoder_structures(model, only="^decoder")
    assert names(declaration) == names(decoder_structures(model))


def test_budgets_of_their_own(make_asr, random_plan):
    targets = {"encoder": 0.7, "decoder": 0.3}
    declaration = encoder_decoder_structures(make_asr(num_decoder_layers=3))
    groups = ParameterBudget(targets).groups(declaration)
    scores = random_plan(declaration).values(declaration)
    plan = fit_plan(declaration, groups, scores)
    for group in groups:
        left = float(group.cost.of_kept(plan.kept_counts(declaration)))
        assert 0 <= group.sparsity(left) - targets[group.prefix] < 0.05


def test_a_row_per_layer_of_both(make_asr, random_plan):
    declaration = encoder_decoder_structures(make_asr(num_decoder_layers=1))
    rows = structure_table(declaration, random_plan(declaration))
    assert [row[0] for row in rows[1:-1]] == list(declaration.layers)
    assert "multihead_attn.heads" in rows[0]


@pytest.mark.parametrize("decoder_layers", [0, 1])
def test_either_side_missing_is_refused(make_asr, decoder_layers):
    model = make_asr(num_decoder_layers=decoder_layers)
    if decoder_layers:
        del model.encoder
    missing = "ConformerEncoder or .*" if decoder_layers else "TransformerDec"
    with pytest.raises(ValueError, match=f"module: no {missing}"):
        encoder_decoder_structures(model)
