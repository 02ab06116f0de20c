"""An encoder made here is an ordinary Hugging Face folder."""

import socket

import pytest
import torch
from rounding import assert_same_but_for_rounding
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from transformers import AutoFeatureExtractor, AutoModel

from sb_prune.demo.encoder import write_untrained

SHAPE = {
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
}


@pytest.fixture
def folder(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return write_untrained(str(tmp_path / "untrained"), **SHAPE)


@pytest.fixture
def no_network(monkeypatch):
    """Whoever connects to anything is refused."""

    def refuse(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_shape_is_what_was_asked_for(folder, no_network):
    config = AutoModel.from_pretrained(folder).config
    assert {key: getattr(config, key) for key in SHAPE} == SHAPE
    assert config.feat_extract_norm == "group"
    assert not config.do_stable_layer_norm
    assert AutoFeatureExtractor.from_pretrained(folder).do_normalize


def test_lobe_loads_it(folder, no_network):
    lobe = Wav2Vec2(folder, save_path=folder).eval()
    model = AutoModel.from_pretrained(folder).eval()
    wavs = torch.randn(2, 4000)
    normal = torch.nn.functional.layer_norm(wavs, wavs.shape[1:])
    assert_same_but_for_rounding(lobe(wavs), model(normal).last_hidden_state)
    assert lobe(wavs).shape == (2, 12, 16)  # 50 frames for each second


def test_random_state_decides(folder, tmp_path):
    again = {}
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            path = write_untrained(str(tmp_path / str(seed)), **SHAPE)
        again[seed] = AutoModel.from_pretrained(path).state_dict()
    first = AutoModel.from_pretrained(folder).state_dict()
    same = {
        seed: all(
            torch.equal(value, state[name]) for name, value in first.items()
        )
        for seed, state in again.items()
    }
    assert same == {0: True, 1: False}
