"""Hidden states of a lobe that pads utterances itself: Whisper's encoder."""

from types import SimpleNamespace

import pytest
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from tiny_whisper import write_tiny_whisper

from sb_prune import lobes
from sb_prune.depth.representations import layer_states


@pytest.fixture
def brain(tmp_path):
    """What `layer_states` needs of one."""
    write_tiny_whisper(tmp_path)

    def make(**options):
        lobe = lobes.Whisper(
            str(tmp_path), str(tmp_path), encoder_only=True, **options
        )
        return SimpleNamespace(
            modules=torch.nn.ModuleDict({"encoder": lobe}),
            compute_forward=lambda batch, stage: lobe(batch.sig.data),
            noprogressbar=True,
        )

    return make


def states_of(brain, samples, labels=()):
    """Frames that a point is pooled from, and all of the layer's values."""
    row = {"sig": torch.randn(samples), "half": [("late", 0.5, 1.0)]}
    dataset = DynamicItemDataset({"a": row}, output_keys=["sig"])
    layers = list(brain.modules["encoder"].model.encoder.layers)
    pooling = torch.nn.Flatten(0)
    found = layer_states(brain, layers, dataset, labels, 1, pooling)
    (found,) = found.values()
    width = brain.modules["encoder"].model.config.d_model
    return [state.reshape(-1, width) for state in found[0]]


def test_silence_behind_the_utterance_is_not_looked_at(brain):
    aligned = brain(aligned=True, context="utterance", margin=0.5)
    torch.manual_seed(0)
    whole = states_of(aligned, 16000)
    assert [len(frames) for frames in whole] == [50, 50, 50]
    torch.manual_seed(0)
    late = states_of(aligned, 16000, ["half"])
    for frames, end in zip(whole, late):
        assert (frames[25:] == end).all()


def test_layers_may_write_into_what_they_are_given():
    """So what goes into the first must be kept as it was."""
    layers = [torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True)]
    brain = SimpleNamespace(
        modules=torch.nn.ModuleDict({"all": torch.nn.Sequential(*layers)}),
        compute_forward=lambda batch, stage: brain.modules["all"](
            batch.sig.data
        ),
        noprogressbar=True,
    )
    row = {"sig": torch.randn(3, 4)}
    dataset = DynamicItemDataset({"a": row}, output_keys=["sig"])
    pooling = torch.nn.Flatten(0)
    found = layer_states(brain, layers, dataset, [], 1, pooling)
    (first, second, third), _ = found["utterance"]
    expected = layers[0](row["sig"]).detach()
    assert torch.equal(torch.from_numpy(second).view(3, 4), expected)
    assert (second < 0).any() and (third >= 0).all()
    assert torch.equal(torch.from_numpy(first).view(3, 4), row["sig"])


def test_silence_that_a_decoder_would_read_is_not_looked_at(brain):
    padded = brain(context="utterance", margin=0.5)
    assert [len(frames) for frames in states_of(padded, 16000)] == [50] * 3


def test_an_utterance_in_several_pieces_is_refused(brain):
    aligned = brain(aligned=True, context="utterance", margin=0.5)
    with pytest.raises(ValueError, match="1550 frames no more than 800 are"):
        states_of(aligned, 31 * 16000)


def test_a_lobe_that_does_not_say_where_silence_begins(brain, monkeypatch):
    padded = brain(context="utterance", margin=0.5)
    monkeypatch.delattr(lobes.Whisper, "speech_frames")
    with pytest.raises(ValueError, match="write !new:sb_prune.lobes.Whisper"):
        states_of(padded, 16000)
