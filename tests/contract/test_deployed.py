"""Every family as an ONNX graph: what it computes, for any batch and length."""

import numpy
import onnxruntime
import pytest
import torch
from speechbrain.decoders.seq2seq import S2SWhisperGreedySearcher
from test_architectures import BUILDS
from tiny_whisper import write_tiny_whisper

from sb_prune import cut_, lobes
from sb_prune.architectures.parts import INSIDE_HEADS
from sb_prune.deploy import OnnxASR
from sb_prune.deploy.adapters import traceable
from sb_prune.deploy.graphs import Input, write_graph
from sb_prune.deploy.recognisers import recogniser
from sb_prune.deploy.settings import write_settings

TOLERANCE = 1e-4  # relative to the largest output
BATCHES = (1, 3)
WHOLE = [  # heads as a whole; in the others their dims too
    "conformer RelPosMHAXL",
    "conformer RoPEMHA",
    "transformer post-norm",
    "Wav2Vec2 sdpa",
    "WavLM eager large",
]
UNEQUAL = [
    "conformer RelPosMHAXL causal",
    "conformer regularMHA",
    "branchformer RelPosMHAXL",
    "transformer",
    "Wav2Vec2 eager large",
    "Hubert sdpa",
    "WavLM eager",
]
CASES = [*((n, False) for n in WHOLE), *((n, True) for n in UNEQUAL)]


class Asr(torch.nn.Module):
    """(source, lens) -> encoding, of a TransformerASR."""

    shape = (13, 6)

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, source, lens):
        return self.model.encode(source, lens)


class HuggingFace(Asr):
    """The same of a Hugging Face encoder of waveforms."""

    shape = (700,)

    def forward(self, source, lens):
        steps = torch.arange(source.shape[1])
        mask = steps < (lens * source.shape[1])[:, None]
        return self.model(source, attention_mask=mask).last_hidden_state


def run_onnx(path, *given):
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    arrays = [tensor.numpy() for tensor in given]
    return session.run(None, dict(zip(names, arrays)))


def assert_close(found, expected):
    assert found.shape == tuple(expected.shape)
    off = numpy.abs(found - expected.numpy()).max()
    assert off <= TOLERANCE * expected.abs().max().item()


@pytest.mark.parametrize(("name", "unequal"), CASES)
@torch.no_grad()
def test_graph_computes_what_the_cut_model_does(
    make_model, random_plan, tmp_path, name, unequal
):
    build = BUILDS[name]
    model = build.make(make_model)
    kinds = [k for k in build.kinds if unequal or k not in INSIDE_HEADS]
    declaration = build.structures(model, kinds=kinds)
    cut_(declaration, random_plan(declaration, seed=3))
    hugging_face = "family" in build.options
    module = (HuggingFace if hugging_face else Asr)(model).eval()
    frames, *features = module.shape
    path = tmp_path / "graph.onnx"
    example = torch.randn(2, frames, *features)
    write_graph(
        traceable(module),
        {
            "source": Input(example, (0, 1)),
            "lens": Input(torch.tensor([1.0, 0.6]), (0,)),
        },
        ["states"],
        path,
    )
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        for length in (frames, 2 * frames - 1, 5 * frames + 3):
            size = (batch, length, *features)
            source = torch.randn(size, generator=generator)
            lens = torch.linspace(1, 0.6, batch)
            (found,) = run_onnx(path, source, lens)
            assert_close(found, module(source, lens))


def tones(batch, samples, generator):
    """(batch, samples): of another height each, which come and go."""
    seconds = torch.arange(samples) / 16000
    height, beat = torch.rand(2, batch, 1, generator=generator)
    swell = torch.sin(20 * beat * seconds).relu()
    return swell * torch.sin(20000 * height * seconds)


def cut_whisper(folder, random_plan, context):
    """A lobe whose encoder and decoder are cut, two attentions among them."""
    write_tiny_whisper(folder, decoder_layers=3)
    options = {"context": context, "min_context": 2.5}
    lobe = lobes.Whisper(folder, folder, **options).eval()
    for layer in lobe.model.decoder.layers:  # it shall listen
        layer.encoder_attn.out_proj.weight *= 10
    build = BUILDS["Whisper + decoder sdpa"]
    declaration = build.structures(lobe.model, kinds=build.kinds)
    plan = random_plan(declaration, seed=3)
    layers = "decoder.layers"
    plan.keep[f"{layers}.0.self_attn"][:] = False
    plan.keep[f"{layers}.1.encoder_attn"][:] = False
    plan.keep[f"{layers}.2"][:] = True
    cut_(declaration, plan)
    return lobe


@pytest.mark.parametrize(("context", "seconds"), [(None, 7), ("utterance", 1)])
@torch.no_grad()
def test_whisper_writes_the_same_tokens(
    tmp_path, random_plan, context, seconds
):
    lobe = cut_whisper(str(tmp_path / "dense"), random_plan, context)
    search = S2SWhisperGreedySearcher(
        lobe, min_decode_ratio=0.0, max_decode_ratio=0.1
    )
    modules = {"whisper": lobe, "decoder": search}
    model = recogniser({"modules": modules})
    folder = tmp_path / "deployed"
    folder.mkdir()
    settings = model.write_(folder)
    write_settings(folder, {**settings, "sample_rate": 16000})
    asr = OnnxASR(folder)
    generator = torch.Generator().manual_seed(0)
    found, expected, apart = [], [], []
    for n, batch in enumerate((1, 3, 1, 2)):
        wavs = tones(batch, 16000 * seconds * (n + 1) + 7, generator)
        lens = torch.ones(batch)
        arrays = wavs.numpy(), lens.numpy()
        scores = model.scores(wavs, lens)
        assert_close(asr.model.scores(*arrays), scores)
        apart.append((scores[0] - scores[-1]).abs().max() / scores.abs().max())
        found += asr.transcribe_batch(*arrays)[1]
        expected += [list(tokens) for tokens in model.transcribe(wavs, lens)]
    assert found == expected
    assert max(apart) > 10 * TOLERANCE  # of utterances in a batch
    assert max(map(len, found)) > 1
