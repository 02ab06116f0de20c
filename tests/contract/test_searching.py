"""Searchers find the same words in a cut encoder-decoder as in a masked one.

Shapes: B utterances, T frames, d model width, V tokens.
"""

import pytest
import torch
from speechbrain.decoders import (
    CoverageScorer,
    CTCScorer,
    S2STransformerBeamSearcher,
    S2STransformerGreedySearcher,
    ScorerBuilder,
)
from speechbrain.nnet.linear import Linear

from sb_prune import ParameterBudget, cut_, encoder_decoder_structures
from sb_prune.declare.plan import full_plan
from sb_prune.learn.fitting import fit_plan

VOCABULARY, WIDTH = 20, 16
BLANK, BOS, EOS = 0, 1, 2
DECODING = {
    "bos_index": BOS,
    "eos_index": EOS,
    "min_decode_ratio": 0.0,
    "max_decode_ratio": 0.8,
}


def output_layer(seed):
    """d -> V, sharp enough that hypotheses differ."""
    layer = Linear(input_size=WIDTH, n_neurons=VOCABULARY, bias=False)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(layer.w.weight, generator=generator)
    return layer


def ctc():
    return {"ctc": CTCScorer(output_layer(2), BLANK, EOS)}


def coverage():
    return {"coverage": CoverageScorer(VOCABULARY)}


def beam_searcher(model, scorers):
    scorer = None
    if scorers:
        weights = dict.fromkeys(scorers, 0.4)
        scorer = ScorerBuilder(weights, full_scorers=[*scorers.values()])
    return S2STransformerBeamSearcher(
        [model, output_layer(1)], beam_size=4, topk=2, scorer=scorer, **DECODING
    )


SEARCHERS = {
    "beam": lambda model: beam_searcher(model, {}),
    "beam with CTC": lambda model: beam_searcher(model, ctc()),
    "greedy": lambda model: S2STransformerGreedySearcher(
        [model, output_layer(1)], **DECODING
    ),
}


@torch.no_grad()
def transcripts(model, make_searcher):
    """Hypotheses and their scores, from encoding to the last token."""
    source = torch.randn(3, 13, 6, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([1.0, 0.8, 0.6])
    states = model.encode(source, lengths)
    hypotheses, _, scores, _ = make_searcher(model)(states, lengths)
    return hypotheses, scores


def half_of(declaration, seed):
    """A plan that keeps half of the parameters, by random scores."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(declaration.total_units, generator=generator)
    groups = ParameterBudget(0.5).groups(declaration)
    return fit_plan(declaration, groups, scores)


@pytest.mark.parametrize(
    "encoder", ["conformer", "transformer", "branchformer"]
)
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_half_of_an_encoder_decoder(
    make_asr, masked_and_cut, encoder, searcher
):
    attention = "regularMHA" if encoder == "transformer" else "RelPosMHAXL"
    for seed in range(3):
        model = make_asr(
            attention,
            seed=seed,
            encoder_module=encoder,
            num_decoder_layers=2,
            tgt_vocab=VOCABULARY,
            normalize_before=encoder != "transformer" or seed > 0,
            csgu_linear_units=24,
        )
        dense, _ = transcripts(model, SEARCHERS[searcher])
        declaration = encoder_decoder_structures(model)
        (masked, masked_scores), (cut, cut_scores) = masked_and_cut(
            declaration,
            half_of(declaration, seed),
            lambda m: transcripts(m, SEARCHERS[searcher]),
        )
        assert cut == masked
        assert torch.allclose(cut_scores, masked_scores, atol=1e-4)
        assert cut != dense


@pytest.mark.parametrize("gone", ["cross_attention_modules", "layers"])
def test_attention_that_is_gone_can_still_be_read(make_asr, gone):
    """CoverageScorer reads the weights of the last layer."""
    model = make_asr(num_decoder_layers=2, tgt_vocab=VOCABULARY)
    declaration = encoder_decoder_structures(model)
    plan = full_plan(declaration)
    for structure in declaration.structures:
        if structure.kind == gone:
            plan.keep[structure.name][:] = False
    cut_(declaration, plan)
    found, _ = transcripts(model, lambda m: beam_searcher(m, coverage()))
    without, _ = transcripts(model, lambda m: beam_searcher(m, {}))
    assert found == without  # no frame is covered twice
