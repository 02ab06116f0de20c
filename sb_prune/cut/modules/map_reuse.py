"""Attention that reuses the attention map of the layer below.

Jang et al., "Recycle-and-Distill" (Interspeech 2023, 2305.11685). The map is
reused after its softmax, without changes.

Shapes: B utterances, T frames, d model width, H heads, k head width.
"""

from torch.nn import functional as F
from transformers.models.hubert.modeling_hubert import HubertAttention
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Attention
from transformers.models.wavlm.modeling_wavlm import WavLMAttention
from transformers.models.whisper.modeling_whisper import WhisperAttention

from sb_prune.cut.modules.heads import as_bias
from sb_prune.cut.modules.wavlm import dense_bias, gated_bias


class _UsesMap:
    """Mixin that applies an attention map to the values of its own layer."""

    def _apply_map(self, attention_map, hidden_states):
        """(B, T, d)"""
        values = self._split(self.v_proj(hidden_states))
        dropped = F.dropout(attention_map, self.dropout, self.training)
        joined = (dropped @ values).transpose(1, 2).flatten(2)
        return self.out_proj(joined)

    def _split(self, x):
        """(B, H, T, k)"""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class _MakesMap(_UsesMap):
    """Mixin that computes a map and keeps it for the layer above.

    That layer takes the map away, so that no map is kept longer than needed.
    """

    attention_map = None

    def _make_map(self, hidden_states, bias):
        """(B, H, T, T)"""
        q, k = self.q_proj(hidden_states), self.k_proj(hidden_states)
        scores = self._split(q) * self.scaling @ self._split(k).mT
        if bias is not None:
            scores = scores + bias
        self.attention_map = scores.softmax(-1)
        return self.attention_map


class _ReadsMap(_UsesMap):
    """Mixin that takes the map of the layer below and may hand it on."""

    attention_map = None

    def _read_map(self):
        (below,) = self._below
        found, below.attention_map = below.attention_map, None
        if found is None:
            raise RuntimeError(
                "attention that is reused: the layer below has not run just "
                "before; write layerdrop: 0.0, and no gradient checkpointing"
            )
        self.attention_map = found if self._hands_on else None
        return found


class _Maker(_MakesMap):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        """Has the arguments and results of the class that it replaces."""
        bias = as_bias(attention_mask, hidden_states)
        attention_map = self._make_map(hidden_states, bias)
        return self._apply_map(attention_map, hidden_states), attention_map


class _Reader(_ReadsMap):
    def forward(self, hidden_states, **kwargs):
        """Has the arguments and results of the class that it replaces."""
        attention_map = self._read_map()
        return self._apply_map(attention_map, hidden_states), attention_map


class Wav2Vec2MapMaker(_Maker, Wav2Vec2Attention):
    """Attention of wav2vec 2.0 whose map the layer above reuses."""


class Wav2Vec2MapReader(_Reader, Wav2Vec2Attention):
    """Attention of wav2vec 2.0 without queries and keys."""


class HubertMapMaker(_Maker, HubertAttention):
    """Attention of HuBERT whose map the layer above reuses."""


class HubertMapReader(_Reader, HubertAttention):
    """Attention of HuBERT without queries and keys."""


class WavLMMapMaker(_MakesMap, WavLMAttention):
    """Attention of WavLM whose map the layer above reuses.

    The map includes the position bias.
    """

    def forward(
        self, hidden_states, attention_mask=None, position_bias=None, **kwargs
    ):
        """Has the arguments and results of the class that it replaces."""
        batch, frames, _ = hidden_states.shape
        if position_bias is None:
            position_bias = dense_bias(self, batch, frames)
        bias = gated_bias(self, hidden_states, position_bias, attention_mask)
        attention_map = self._make_map(hidden_states, bias)
        output = self._apply_map(attention_map, hidden_states)
        return output, attention_map, position_bias


class WavLMMapReader(_ReadsMap, WavLMAttention):
    """Attention of WavLM without queries, keys and gated position bias."""

    def forward(self, hidden_states, position_bias=None, **kwargs):
        """Has the arguments and results of the class that it replaces."""
        attention_map = self._read_map()
        output = self._apply_map(attention_map, hidden_states)
        return output, attention_map, position_bias


class WhisperMapMaker(_Maker, WhisperAttention):
    """Attention of Whisper's encoder whose map the layer above reuses."""


class WhisperMapReader(_Reader, WhisperAttention):
    """Attention of Whisper's encoder without queries and keys."""


MAKERS = {
    WavLMAttention: WavLMMapMaker,
    HubertAttention: HubertMapMaker,
    Wav2Vec2Attention: Wav2Vec2MapMaker,
    WhisperAttention: WhisperMapMaker,
}


READERS = {
    WavLMAttention: WavLMMapReader,
    HubertAttention: HubertMapReader,
    Wav2Vec2Attention: Wav2Vec2MapReader,
    WhisperAttention: WhisperMapReader,
}
