"""SpeechBrain's lobes of Hugging Face models, for pruned ones too.

In any recipe, one entry replaces a dense model by a pruned one:

    wav2vec2: !new:sb_prune.lobes.Wav2Vec2
        source: path/to/export    # or its name on the hub
        save_path: !ref <save_folder>/wav2vec2_checkpoint

The lobes have the arguments and outputs of the classes of the same names in
`speechbrain.integrations.huggingface`, and load dense models as these do. A
pruned model is a Hugging Face folder. In its `config.json` an entry `sb_prune`
is added to the config of the dense model: it says what was cut, or for a
student (`sb_prune.students`) which layers reuse an attention map.
"""

from sb_prune.export.build import load_verified  # noqa: F401, of format 1
from sb_prune.export.hugging_face import skeleton
from sb_prune.lobes.self_supervised import (
    HuBERT,
    Wav2Vec2,
    WavLM,
    save_encoder,
)
from sb_prune.lobes.whisper import Whisper

__all__ = ["HuBERT", "WavLM", "Wav2Vec2", "Whisper", "save_encoder", "skeleton"]
