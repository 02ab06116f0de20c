"""Attention that uses the map of the layer below again.

Jang et al., "Recycle-and-Distill" (Interspeech 2023, 2305.11685): a map is
computed once, passes one softmax, and is used as it is.

Shapes: B utterances, T frames, d model width, H heads, k head width.
"""

from torch.nn import functional as F
from transformers.models.hubert.modeling_hubert import HubertAttention
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Attention
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from sb_prune.cut.modules.attention import as_bias
from sb_prune.cut.modules.wavlm import dense_bias, gated_bias


class _UsesMap:
    """Values weighted by an attention map, whoever made it."""

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
    """Leaves its map, after the softmax, for the layer above.

    The reader takes it away, so that no map outlives its use.
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
    """Uses the map of the layer below, and hands it on."""

    attention_map = None

    def _read_map(self):
        (below,) = self._below
        found, below.attention_map = below.attention_map, None
        self.attention_map = found if self._hands_on else None
        return found


class _Maker(_MakesMap):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        """As the class it replaces; the weights are the map, (B, H, T, T)."""
        bias = as_bias(attention_mask, hidden_states)
        attention_map = self._make_map(hidden_states, bias)
        return self._apply_map(attention_map, hidden_states), attention_map


class _Reader(_ReadsMap):
    def forward(self, hidden_states, **kwargs):
        """As the class it replaces; the weights are the map, (B, H, T, T)."""
        attention_map = self._read_map()
        return self._apply_map(attention_map, hidden_states), attention_map


class Wav2Vec2MapMaker(_Maker, Wav2Vec2Attention):
    """wav2vec 2.0's, whose map the layer above uses again."""


class Wav2Vec2MapReader(_Reader, Wav2Vec2Attention):
    """wav2vec 2.0's, without query and key."""


class HubertMapMaker(_Maker, HubertAttention):
    """HuBERT's, whose map the layer above uses again."""


class HubertMapReader(_Reader, HubertAttention):
    """HuBERT's, without query and key."""


class WavLMMapMaker(_MakesMap, WavLMAttention):
    """WavLM's, whose map, the positions' bias in it, is used again."""

    def forward(
        self, hidden_states, attention_mask=None, position_bias=None, **kwargs
    ):
        """As the class it replaces; the weights are the map, (B, H, T, T)."""
        batch, frames, _ = hidden_states.shape
        if position_bias is None:
            position_bias = dense_bias(self, batch, frames)
        bias = gated_bias(self, hidden_states, position_bias, attention_mask)
        attention_map = self._make_map(hidden_states, bias)
        output = self._apply_map(attention_map, hidden_states)
        return output, attention_map, position_bias


class WavLMMapReader(_ReadsMap, WavLMAttention):
    """WavLM's, without query, key and gate of the positions' bias."""

    def forward(self, hidden_states, position_bias=None, **kwargs):
        """As the class it replaces; the weights are the map, (B, H, T, T)."""
        attention_map = self._read_map()
        output = self._apply_map(attention_map, hidden_states)
        return output, attention_map, position_bias


MAKERS = {
    WavLMAttention: WavLMMapMaker,
    HubertAttention: HubertMapMaker,
    Wav2Vec2Attention: Wav2Vec2MapMaker,
}


READERS = {
    WavLMAttention: WavLMMapReader,
    HubertAttention: HubertMapReader,
    Wav2Vec2Attention: Wav2Vec2MapReader,
}
