"""Masked by a binary plan against really cut: largest difference.

    python tests/benchmarks/export_exactness.py [--full]

Conformers of every attention type, causal or not, wav2vec 2.0, HuBERT and WavLM
of every norm mode and attention, and Whisper's encoder and decoder, in padded
batches, over random plans, with whole and with unequal heads; `--full` has the
shape of Conformer-small, 12 layers and more plans.
"""

import copy
from functools import partial

import torch
from common import (
    ATTENTIONS,
    encoders,
    random_scores,
    run,
    whisper_input,
    whispers,
)
from common import conformer as make_conformer

from sb_prune import (
    ParameterBudget,
    attach_,
    conformer_structures,
    cut_,
    wav2vec2_structures,
    whisper_structures,
)
from sb_prune.architectures import conformer, wav2vec2, whisper
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.cut.masking import detach_
from sb_prune.learn.fitting import fit_plan

TARGETS = (0.3, 0.5, 0.7, 0.9)


@torch.no_grad()
def difference(dense, structures, encode, target, seed):
    """Largest difference of one random plan at one target."""
    model = copy.deepcopy(dense).eval()
    declaration = structures(model)
    groups = ParameterBudget(target).groups(declaration)
    plan = fit_plan(declaration, groups, random_scores(declaration, seed))
    attach_(declaration).set_(plan.values(declaration))
    masked = encode(model)
    detach_(model)
    cut_(declaration, plan)
    return (masked - encode(model)).abs().max().item()


LENGTHS = torch.tensor([1.0, 0.8, 0.5])


def encode_features(model, frames=100):
    """A padded batch through a Conformer."""
    torch.manual_seed(0)
    source = torch.randn(3, frames, model.encoder.norm.norm.weight.numel())
    return model.encode(source, LENGTHS)


def encode_waveform(model, samples=16000):
    """A padded batch of 1 s through a Hugging Face encoder."""
    torch.manual_seed(0)
    mask = torch.arange(samples) < (LENGTHS * samples)[:, None]
    output = model(torch.randn(3, samples), attention_mask=mask)
    return output.last_hidden_state


def transcribe(model):
    """A batch through Whisper's encoder and decoder."""
    torch.manual_seed(0)
    mel, tokens = whisper_input(model, batch=3)
    found = model(mel, decoder_input_ids=tokens)
    states = (found.encoder_last_hidden_state, found.last_hidden_state)
    return torch.cat(states, dim=1)


def cases(full):
    """(dense model, its structures, what runs it)."""
    shape = {} if full else {"layers": 3, "width": 64, "hidden": 128}
    for attention in ATTENTIONS:
        for causal in (False, True):
            dense = make_conformer(attention=attention, causal=causal, **shape)
            yield dense, conformer_structures, encode_features
            if attention != "RoPEMHA":
                yield dense, unequal(conformer_structures), encode_features
    for dense in encoders(full):
        yield dense, wav2vec2_structures, encode_waveform
        yield dense, unequal(wav2vec2_structures), encode_waveform
    for dense in whispers(full):
        yield dense, whisper_structures, transcribe
        yield dense, unequal(whisper_structures), transcribe


def unequal(structures):
    """The same kinds and those inside heads."""
    known = {
        conformer_structures: conformer.KINDS,
        wav2vec2_structures: wav2vec2.KINDS,
        whisper_structures: whisper.KINDS,
    }[structures]
    return partial(structures, kinds=[*known, *INSIDE_HEADS])


def measure(full):
    """Largest difference over all cases."""
    found = [
        difference(*case, target, seed)
        for case in cases(full)
        for target in TARGETS
        for seed in range(5 if full else 3)
    ]
    return {"cases": len(found), "max_abs_diff": max(found)}


if __name__ == "__main__":
    run(measure)
