"""What exports of earlier formats refer to, kept so that they still load.

1   up to version 0.1: one plan; names in private modules
2   in version 0.2: one plan; public names only
3   a list of edits (see `sb_prune.cut.edits`)

Format 1 refers to paths of modules that have moved since. The package offers
the namespaces below as its attributes, so that for example
`sb_prune.roots.side_by_side` is still found.
"""

from types import SimpleNamespace

from sb_prune.architectures.branchformer import branchformer_structures
from sb_prune.architectures.conformer import conformer_structures
from sb_prune.architectures.encoder_decoder import encoder_decoder_structures
from sb_prune.architectures.front_end import front_end_structures
from sb_prune.architectures.transformer import (
    decoder_structures,
    transformer_structures,
)
from sb_prune.architectures.wav2vec2 import wav2vec2_structures
from sb_prune.architectures.whole_layers import layer_structures
from sb_prune.cut.edits import Cut, Fold, rebuild
from sb_prune.declare.joined import joined_structures
from sb_prune.declare.roots import side_by_side
from sb_prune.export.build import Pretrainer

BUILDERS = ("!apply:sb_prune.build_cut", "!apply:sb_prune.export.build_cut")

loading = SimpleNamespace(Pretrainer=Pretrainer)
roots = SimpleNamespace(side_by_side=side_by_side)
structure = SimpleNamespace(joined_structures=joined_structures)
structures = SimpleNamespace(
    branchformer=SimpleNamespace(
        branchformer_structures=branchformer_structures
    ),
    conformer=SimpleNamespace(conformer_structures=conformer_structures),
    convolution=SimpleNamespace(front_end_structures=front_end_structures),
    encoder_decoder=SimpleNamespace(
        encoder_decoder_structures=encoder_decoder_structures
    ),
    transformer=SimpleNamespace(
        decoder_structures=decoder_structures,
        transformer_structures=transformer_structures,
    ),
    wav2vec2=SimpleNamespace(wav2vec2_structures=wav2vec2_structures),
    whole_layers=SimpleNamespace(layer_structures=layer_structures),
)


def build_cut(factory, structures, plan, format=1):
    """Builds a module that was cut once; exports of formats 1 and 2 call it.

    Arguments
    ---------
    factory : callable
        Makes the dense module. Takes no arguments.
    structures : callable
        Module -> Declaration.
    plan : dict
        The units that stay, as `Plan.to_dict` writes them.
    format : int
        Format of the export.

    Returns
    -------
    torch.nn.Module
        On the meta device.
    """
    return rebuild(factory, edits_of_plan(structures, plan), format)


def edits_of_plan(structures, plan):
    """The edits that one plan of formats 1 and 2 stands for."""
    return [Cut(structures=structures, plan=plan), Fold()]
