"""The edit that makes a student of a stock encoder."""

from dataclasses import dataclass

from torch import nn
from transformers import WhisperConfig
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from sb_prune.cut.edits import Edit
from sb_prune.cut.modules.map_reuse import MAKERS, READERS


@dataclass(frozen=True)
class StudentShape(Edit):
    """The edit that turns a stock encoder into a student.

    Layers that reuse an attention map lose their queries and keys, and if the
    front-end makes as many channels as the model is wide, no projection
    follows it.

    Arguments
    ---------
    module : str
        Path, from the root, of the encoder; empty: the root.
    reuse : list of bool
        For each layer, whether it reuses the attention map of the layer below.
    """

    reuse: tuple = ()

    def change_(self, module):
        """Changes the encoder, in place."""
        config, layers = module.config, module.encoder.layers
        check_pattern(self.reuse, len(layers))
        is_whisper = isinstance(config, WhisperConfig)
        if not is_whisper and config.conv_dim[-1] == config.hidden_size:
            module.feature_projection.projection = nn.Identity()
        below = None
        for i, layer in enumerate(layers):
            attention = layer.self_attn if is_whisper else layer.attention
            is_read = i + 1 < len(layers) and self.reuse[i + 1]
            if self.reuse[i]:
                _read_map_(attention, below, is_read)
            elif is_read:
                attention.__class__ = _variant(attention, MAKERS)
            below = attention


def _read_map_(attention, below, hands_on):
    """Makes an attention module reuse the map of the module below it."""
    is_wavlm = isinstance(attention, WavLMAttention)
    names = ["q_proj", "k_proj"]
    names += ["gru_rel_pos_linear", "gru_rel_pos_const"] if is_wavlm else []
    for name in names:
        delattr(attention, name)
    attention.__class__ = _variant(attention, READERS)
    attention._below = (below,)  # in a tuple, so as not to become a submodule
    attention._hands_on = hands_on


def _variant(attention, classes):
    return next(c for s, c in classes.items() if isinstance(attention, s))


def check_pattern(reuse, layers):
    """Refuses a pattern of reused attention maps that no encoder can have.

    Arguments
    ---------
    reuse : list of bool
    layers : int

    Raises
    ------
    ValueError
        If it has not one entry for each layer, or the first reuses a map.
    """
    if len(reuse) != layers:
        raise ValueError(
            f"reuse: {len(reuse)} entries for {layers} layers; write one each"
        )
    if reuse[0]:
        raise ValueError(
            "reuse: the first layer has none below whose map it could use; "
            "start with False"
        )
