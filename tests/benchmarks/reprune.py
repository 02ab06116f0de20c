"""Models that are pruned again and again, each time to more of the original.

    python tests/benchmarks/reprune.py [--full]

Conformers of every attention, Branchformer, Transformers, an encoder-decoder,
a front-end with its Conformer, and wav2vec 2.0, HuBERT and WavLM of every norm
mode and attention, by random scores: all kinds, slices alone, and all kinds
with unequal heads, for parameters and for MACs. First 30% of the original goes,
then 50%, and in every fifth case 65%. `--full` has 12 layers and more plans.

    max_abs_diff      masked against cut, from the second pruning on, relative
                      to outputs above 1
    max_rebuilt_diff  the cut model against the one that is rebuilt from the
                      stock module, the plans and a state dict
    max_landing_error_units
                      unused budget, in units of the cheapest open leaf
"""

from functools import partial

import torch
from common import (
    ATTENTIONS,
    conformer,
    encoder_factories,
    landing_error,
    random_scores,
    run,
)
from export_exactness import LENGTHS, encode_waveform
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.nnet.attention import RoPEMHA

from sb_prune import (
    Cut,
    MACBudget,
    ParameterBudget,
    branchformer_structures,
    conformer_structures,
    cut_,
    encoder_decoder_structures,
    front_end_structures,
    joined_structures,
    rebuild,
    transformer_structures,
    wav2vec2_structures,
)
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.cut.edits import folded
from sb_prune.cut.folding import folded_state
from sb_prune.cut.masking import attach_, detach_
from sb_prune.learn.fitting import fit_plan

TARGETS = (0.3, 0.5, 0.65)
FREQUENCIES = 12  # of the features of the front-end


def encode(model):
    """A padded batch of features through an encoder."""
    torch.manual_seed(0)
    source = torch.randn(3, 50, model.encoder.norm.norm.weight.numel())
    return model.encode(source, LENGTHS)


def transcribe(model):
    """The same, and tokens through a decoder behind it."""
    torch.manual_seed(0)
    source = torch.randn(3, 50, model.encoder.norm.norm.weight.numel())
    tokens = torch.randint(1, 5, (3, 20))
    return torch.cat(model(source, tokens, LENGTHS), dim=1)


def encode_behind_front_end(root):
    """A padded batch through a front-end and the encoder behind it."""
    torch.manual_seed(0)
    features = root["CNN"](torch.randn(3, 100, FREQUENCIES))
    return root["Transformer"].encode(features, LENGTHS)


def make_with_front_end(**shape):
    """A front-end of two blocks, and the Conformer that reads its output."""
    torch.manual_seed(0)
    front_end = ConvolutionFrontEnd(
        (3, 100, FREQUENCIES),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=(16, 8),
        kernel_sizes=(3, 3),
        strides=(2, 2),
        residuals=(False, False),
    )
    *_, frequencies, channels = front_end.get_output_shape()
    model = conformer(**shape, input_size=frequencies * channels)
    return torch.nn.ModuleDict({"CNN": front_end, "Transformer": model})


def front_end_and_conformer(root, kinds=None):
    """Declares both; `kinds` are those of the Conformer."""
    parts = [front_end_structures, partial(conformer_structures, kinds=kinds)]
    return joined_structures(root, parts)


def models(full):
    """(factory of the dense model, its structures, what runs it)."""
    shape = {"layers": 12} if full else {"layers": 3, "width": 64}
    shape |= {"hidden": 576 if full else 128, "kernel": 15}
    make = partial(conformer, **shape)
    for attention in ATTENTIONS:
        yield partial(make, attention=attention), conformer_structures, encode
    other = partial(make, encoder_module="branchformer", csgu_linear_units=256)
    yield other, branchformer_structures, encode
    other = partial(make, encoder_module="transformer", attention="regularMHA")
    for norms_first in (False, True):
        other = partial(other, normalize_before=norms_first)
        yield other, transformer_structures, encode
    other = partial(make, num_decoder_layers=2)
    yield other, encoder_decoder_structures, transcribe
    other = partial(make_with_front_end, **shape)
    yield other, front_end_and_conformer, encode_behind_front_end
    for other in encoder_factories(full):
        yield other, wav2vec2_structures, encode_waveform


def cases(full):
    """(factory, its structures, what runs it, budget)."""
    for make, structures, compute in models(full):
        dense = structures(rebuild(make, []))
        for kinds in kinds_of(dense, structures):
            chosen = partial(structures, kinds=kinds)
            for budget in (ParameterBudget, MACBudget):
                yield make, chosen, compute, budget


def kinds_of(dense, structures):
    """Yields lists of kinds: all, slices alone, all with unequal heads."""
    beside = "front_end_channels" * (structures is front_end_and_conformer)
    known = {s.kind: s for s in dense.structures if s.kind != beside}
    yield list(known)
    yield [kind for kind, structure in known.items() if structure.is_leaf]
    if not any(isinstance(m, RoPEMHA) for m in dense.root.modules()):
        yield [*known, *INSIDE_HEADS]


@torch.no_grad()
def prune(make, structures, compute, budget, targets, seed):
    """Prunes a model to one target after another.

    Returns
    -------
    cut, rebuilt, landing : list of float
        From the second pruning on: the difference between masked and cut model,
        that between cut and rebuilt model, and the landing error.
    """
    model, original = make().eval(), structures(rebuild(make, []))
    edits, found = [], []
    for target in targets:
        declaration = structures(model)
        (group,) = budget(target).groups(declaration, original=original)
        scores = random_scores(declaration, seed)
        plan = fit_plan(declaration, [group], scores)
        landing = landing_error(declaration, group, plan)
        attach_(declaration).set_(plan.values(declaration))
        masked = compute(model)
        detach_(model)
        cut_(declaration, plan)
        edits.append(Cut(structures=structures, plan=plan.to_dict()))
        again = rebuild(make, folded(edits, model)).eval()
        again.load_state_dict(folded_state(model), assign=True)
        cut = compute(model)
        found.append(
            (difference(masked, cut), difference(compute(again), cut), landing)
        )
    return zip(*found[1:])


def difference(found, expected):
    """Largest difference, relative to outputs above 1."""
    largest = expected.abs().max().clamp_min(1)
    return ((found - expected).abs().max() / largest).item()


def measure(full):
    """Largest differences over all cases, and how close they land."""
    found = [
        prune(*case, TARGETS[: 2 + (number % 5 == 0)], seed)
        for number, case in enumerate(cases(full))
        for seed in range(3 if full else 1)
    ]
    cut, rebuilt, landing = (
        [value for case in values for value in case] for values in zip(*found)
    )
    return {
        "cases": len(found),
        "prunings": len(cut) + len(found),
        "max_abs_diff": max(cut),
        "max_rebuilt_diff": max(rebuilt),
        "max_landing_error_units": round(max(landing), 4),
    }


if __name__ == "__main__":
    run(measure)
