"""Beam search with numpy finds what that of SpeechBrain finds."""

import numpy
import pytest
import torch
from speechbrain.decoders import (
    CTCScorer,
    S2STransformerBeamSearcher,
    ScorerBuilder,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.linear import Linear

from sb_prune.deploy.runtime.beam import PrefixScores, beam_search
from sb_prune.deploy.runtime.search import log_softmax

BLANK, BEGIN, END, TOKENS = 0, 1, 2, 11
LENS = torch.tensor([1.0, 0.55, 0.07])
FRAMES = 15


@pytest.fixture
def model():
    """An untrained decoder that is sure of what it says, and CTC beside it."""
    torch.manual_seed(0)
    model = TransformerASR(
        TOKENS, 4, 16, nhead=2, num_encoder_layers=1, num_decoder_layers=1,
        d_ffn=16,
    )  # fmt: skip
    said, heard = (Linear(TOKENS, input_size=16) for _ in range(2))
    for linear in (said, heard):
        linear.w.weight.data *= 6
    return torch.nn.ModuleList([model, said, heard]).eval()


class Steps:
    """Steps of the model, which read the whole text each time."""

    def __init__(self, model, states, ends, temperature):
        self.model, self.linear, _ = model
        self.states, self.ends = states, ends
        self.temperature, self.said = temperature, None

    def __call__(self, new):
        new = torch.from_numpy(new)
        said = new if self.said is None else torch.cat([self.said, new], 1)
        self.said = said
        decoded, _ = self.model.decode(said, self.states, self.ends)
        logits = self.linear(decoded)[:, -1] / self.temperature
        return log_softmax(logits.numpy())

    def keep(self, index):
        self.said = self.said[index]


OPTIONS = {
    "decoder": {},
    "not_by_length": {"length_normalization": False},
    "threshold": {"using_eos_threshold": True, "eos_threshold": 1.2},
    "least": {"min_decode_ratio": 0.6, "max_decode_ratio": 0.8},
    "short": {"max_decode_ratio": 0.2},
    "wide": {"beam_size": 11},
    "one": {"beam_size": 1},
    "ctc": {"ctc": 0.4},
    "candidates": {"ctc": 0.3, "is_partial": True},
    "ctc_not_by_length": {"ctc": 0.5, "length_normalization": False},
    "ctc_one_frame": {"ctc": 0.4, "frames": 1, "lens": torch.ones(2)},
    "ctc_beyond_frames": {"ctc": 0.4, "max_decode_ratio": 1.2, "frames": 9},
    # a text that is too long for its frames would have no score, so that
    # nothing says which of several is found
    "ctc_threshold": {
        "ctc": 0.2,
        "using_eos_threshold": True,
        "max_decode_ratio": 0.4,
        "lens": torch.tensor([1.0, 0.8, 0.5]),
    },
}


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_as_speechbrain_searches(model, name):
    options = {
        "min_decode_ratio": 0.0,
        "max_decode_ratio": 1.0,
        "beam_size": 4,
        "temperature": 1.15,
        "using_eos_threshold": False,
        **OPTIONS[name],
    }
    weight, lens = options.pop("ctc", None), options.pop("lens", LENS)
    frames = options.pop("frames", FRAMES)
    is_partial = options.pop("is_partial", False)
    beam, scorer = options["beam_size"], None
    if weight is not None:
        ctc = CTCScorer(model[2], blank_index=BLANK, eos_index=END)
        kind = "partial_scorers" if is_partial else "full_scorers"
        scorer = ScorerBuilder(
            weights={"ctc": weight}, scorer_beam_scale=1.5, **{kind: [ctc]}
        )
    search = S2STransformerBeamSearcher(
        model[:2], bos_index=BEGIN, eos_index=END, scorer=scorer, **options
    )
    generator = torch.Generator().manual_seed(1)
    found, expected = [], []
    for _ in range(4):
        states = 2 * torch.randn(len(lens), frames, 16, generator=generator)
        tokens, *_ = search(states, lens)
        expected += [list(map(int, text)) for text in tokens]
        ends = torch.round(frames * lens).int()
        copied = states.repeat_interleave(beam, 0)
        all_ends = ends.repeat_interleave(beam)
        steps = Steps(model, copied, all_ends, options["temperature"])
        joint = weight and PrefixScores(
            model[2](states).log_softmax(-1).numpy(),
            ends.numpy(),
            beam,
            BLANK,
            END,
            weight,
            int(1.5 * beam) if is_partial else None,
        )
        least, most = (
            int(frames * options[f"{name}_decode_ratio"])
            for name in ("min", "max")
        )
        found += beam_search(
            steps,
            steps.keep,
            numpy.full((len(copied), 1), BEGIN),
            beam,
            END,
            least,
            most,
            search.length_normalization,
            search.eos_threshold if search.using_eos_threshold else None,
            joint,
        )
    assert found == expected
    assert len(set(map(tuple, found))) > (3 if frames > 1 else 0)


def test_no_step_says_nothing():
    def step(new):
        raise AssertionError

    prompts = numpy.array([[BEGIN]] * 4)
    assert beam_search(step, None, prompts, 2, END, 0, 0) == [[], []]
