"""Analytic cost against the real tensors and the op-level counter.

    python tests/benchmarks/cost.py [--full]

Dense and cut at random plans: Conformers of every attention type, causal or
not, wav2vec 2.0, HuBERT and WavLM of every norm mode and attention, and
Whisper's encoder and decoder.
"""

import copy
from functools import partial

import torch
from common import (
    ATTENTIONS,
    WHISPER_TOKENS,
    conformer,
    encoders,
    random_scores,
    run,
    whisper_input,
    whispers,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sb_prune import (
    ParameterBudget,
    conformer_structures,
    cut_,
    mac_cost,
    parameter_cost,
    wav2vec2_structures,
    whisper_structures,
)
from sb_prune.declare.plan import full_plan
from sb_prune.learn.fitting import fit_plan


def errors(dense, structures, count, frames, target):
    """Relative errors of parameters and MACs at one plan; target 0: dense."""
    model = copy.deepcopy(dense).eval()
    declaration = structures(model)
    plan = full_plan(declaration)
    if target:
        groups = ParameterBudget(target).groups(declaration)
        scores = random_scores(declaration, seed=int(100 * target))
        plan = fit_plan(declaration, groups, scores)
    kept = plan.kept_counts(declaration)
    parameters = float(parameter_cost(declaration).of_kept(kept))
    macs = float(mac_cost(declaration, frames).of_kept(kept))
    cut_(declaration, plan)
    counted = sum(
        parameter.numel()
        for scope in declaration.scope
        for parameter in model.get_submodule(scope).parameters()
    )
    return (
        abs(parameters / counted - 1),
        abs(macs / count(model, frames) - 1),
    )


def conformer_macs(model, frames):
    """MACs of a Conformer, op by op, for one utterance."""
    source = torch.randn(1, frames, model.encoder.norm.norm.weight.numel())
    return count_by_class(lambda: model.encode(source))["ConformerEncoder"]


def waveform_macs(model, samples):
    """MACs of a Hugging Face encoder, op by op, for one utterance."""
    return count_by_class(lambda: model(torch.randn(1, samples)))["Global"]


def whisper_macs(model, frames):
    """MACs of Whisper's encoder and decoder, op by op, for one utterance."""
    mel, tokens = whisper_input(model, batch=1)
    forward = partial(model, mel, decoder_input_ids=tokens)
    return count_by_class(forward)["Global"]


def count_by_class(forward):
    """Class of a module -> MACs of a forward in it."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward()
    counts = counter.get_flop_counts()
    return {name: sum(ops.values()) / 2 for name, ops in counts.items()}


def cases(full):
    """(dense model, its structures, what counts its MACs, length)."""
    shape = {} if full else {"layers": 3, "width": 64, "hidden": 128}
    frames = 250 if full else 50
    for attention in ATTENTIONS:
        for causal in (False, True):
            dense = conformer(attention=attention, causal=causal, **shape)
            yield dense, conformer_structures, conformer_macs, frames
    for dense in encoders(full):
        yield dense, wav2vec2_structures, waveform_macs, 640 * frames
    for dense in whispers(full):
        frames = 2 * dense.config.max_source_positions
        structures = partial(
            whisper_structures, tokens_per_frame=WHISPER_TOKENS / frames
        )
        yield dense, structures, whisper_macs, frames


def measure(full):
    """Largest relative errors over all cases."""
    found = [
        errors(*case, target)
        for case in cases(full)
        for target in (0, 0.3, 0.5, 0.7, 0.9)
    ]
    parameters, macs = zip(*found)
    return {
        "cases": len(found),
        "max_rel_error_params": max(parameters),
        "max_rel_error_macs": max(macs),
    }


if __name__ == "__main__":
    run(measure)
