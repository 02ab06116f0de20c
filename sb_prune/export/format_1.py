"""Names that exports of format 1 refer to, kept so that they still load.

These were paths of modules that have moved since. `sb_prune.__getattr__` offers
the namespaces below as attributes of the package, so that for example
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
from sb_prune.declare.joined import joined_structures
from sb_prune.declare.roots import side_by_side
from sb_prune.export.build import Pretrainer

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
