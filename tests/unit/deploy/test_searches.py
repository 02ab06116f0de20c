"""Searches that a deployed model could not do alike are refused."""

import pytest
import torch
from speechbrain.decoders import (
    CoverageScorer,
    CTCScorer,
    S2SRNNGreedySearcher,
    S2STransformerBeamSearcher,
    S2STransformerGreedySearcher,
    ScorerBuilder,
)

from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.deploy.searches import beam_of, check_search

BASE = {
    "bos_index": 1,
    "eos_index": 2,
    "min_decode_ratio": 0.0,
    "max_decode_ratio": 1.0,
}
KINDS = S2STransformerGreedySearcher, S2STransformerBeamSearcher


def beam(scorer=None, **options):
    return S2STransformerBeamSearcher(
        [None, torch.nn.Linear(2, 5)],
        beam_size=3,
        scorer=scorer,
        **BASE,
        **options,
    )


def with_ctc(weight, window=0, kind="full_scorers", others=()):
    ctc = CTCScorer(None, blank_index=0, eos_index=2, ctc_window_size=window)
    weights = {"ctc": weight, **{name: 1.0 for name, _ in others}}
    scorers = [ctc, *(scorer for _, scorer in others)]
    return ScorerBuilder(weights, **{kind: scorers})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"using_max_attn_shift": True}, "using_max_attn_shift"),
        ({"return_topk": True}, "return_topk"),
        ({"scorer": with_ctc(1.0)}, "ctc: 1.0"),
        ({"scorer": with_ctc(0.4, window=3)}, "ctc_window_size"),
        (
            {"scorer": with_ctc(0.4, others=[("coverage", CoverageScorer(5))])},
            "scorer: coverage",
        ),
    ],
)
def test_a_beam_search_that_differs_is_refused(options, message):
    with pytest.raises(DeployError, match=message):
        check_search(beam(**options), *KINDS)


def test_another_search_is_refused():
    search = S2SRNNGreedySearcher(None, None, None, **BASE)
    with pytest.raises(DeployError, match="S2SRNNGreedySearcher"):
        check_search(search, *KINDS)


def test_chance_is_refused():
    search = S2STransformerGreedySearcher([None, None], 0.5, **BASE)
    with pytest.raises(DeployError, match=r"temperature: 0\.5"):
        check_search(search, *KINDS)


def test_settings_of_a_beam():
    scorer = with_ctc(0.4, kind="partial_scorers")
    search = beam(scorer, temperature=1.15, using_eos_threshold=False)
    check_search(search, *KINDS)
    assert beam_of(search) == {
        "size": 3,
        "temperature": 1.15,
        "by_length": True,
        "threshold": None,
        "ctc": {"blank": 0, "weight": 0.4, "candidates": 6},
    }
    assert beam_of(beam())["threshold"] == 1.5
    assert beam_of(S2STransformerGreedySearcher([None, None], **BASE)) is None
