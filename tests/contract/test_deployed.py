"""Every family as an ONNX graph: what it computes, for any batch and length."""

from functools import partial

import numpy
import onnxruntime
import pytest
import torch
import transformers
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.decoders import (
    CTCScorer,
    S2STransformerBeamSearcher,
    S2STransformerGreedySearcher,
    ScorerBuilder,
    ctc_greedy_decode,
)
from speechbrain.decoders.seq2seq import (
    S2SWhisperBeamSearcher,
    S2SWhisperGreedySearcher,
)
from speechbrain.nnet.containers import LengthsCapableSequential
from speechbrain.nnet.linear import Linear
from test_architectures import BUILDS
from tiny_whisper import write_tiny_whisper

from sb_prune import cut_, lobes
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.deploy import OnnxASR
from sb_prune.deploy.adapters import traceable
from sb_prune.deploy.graphs import Input, write_graph
from sb_prune.deploy.quantize import Quantizer
from sb_prune.deploy.recognisers import recogniser
from sb_prune.deploy.runtime import kinds
from sb_prune.deploy.runtime.settings import DeployError, write_settings

TOLERANCE = 1e-4  # relative to the largest output
BATCHES = (1, 3)
LETTERS = "_abcdefgh"  # the first is the blank
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
    torch.manual_seed(0)  # of positions
    write_tiny_whisper(folder, decoder_layers=3)
    options = {"context": context, "min_context": 2.5, "language": "en"}
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


def deployed(model, folder, **options):
    """The runtime of a model."""
    folder.mkdir()
    settings = model.write_(folder, **options)
    write_settings(folder, {**settings, "sample_rate": model.sample_rate})
    return OnnxASR(folder)


def check_pieces(runtime, model, wav):
    """A long utterance is what SpeechBrain hears in its pieces."""
    texts, pieces = [], runtime.pieces(wav.numpy())
    for piece in pieces:
        wavs = torch.from_numpy(piece)[None]
        (tokens,) = model.transcribe(wavs, torch.ones(1))
        texts.append(runtime.decode([int(token) for token in tokens]))
    assert len(pieces) > 1
    found = runtime.long(wav.numpy())
    assert found == " ".join(filter(None, texts))
    return found


def check_sureness(runtime, model, wavs):
    """As SpeechBrain's `WhisperASR` decides what is silence."""
    found, _, scores, _ = model.search(model._encode(wavs), torch.ones(1))
    (tokens,) = ([int(token) for token in row] for row in found)
    expected = float(scores.sum()) / (len(tokens) + 1)
    sure = runtime.sureness(wavs[0].numpy(), tokens)
    assert tokens and sure == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("context", "seconds", "beam", "apart"),
    [
        (None, 7, None, False),
        ("utterance", 1, 3, True),
        (3.0, 0.2, None, False),
    ],
)
@torch.no_grad()
def test_whisper_writes_the_same_tokens(
    tmp_path, random_plan, context, seconds, beam, apart, monkeypatch
):
    lobe = cut_whisper(str(tmp_path / "dense"), random_plan, context)
    ratios = {"min_decode_ratio": 0.02, "max_decode_ratio": 0.1}
    if beam is None:
        search = S2SWhisperGreedySearcher(lobe, **ratios)
    else:
        search = S2SWhisperBeamSearcher([lobe], beam_size=beam, **ratios)
    modules = {"whisper": lobe, "decoder": search}
    model = recogniser({"modules": modules})
    asr = deployed(model, tmp_path / "deployed", apart=apart)
    assert ("features.onnx" in asr.model.sessions) == apart
    generator = torch.Generator().manual_seed(0)
    found, expected, differences = [], [], []
    for n, batch in enumerate((1, 3, 1, 2)):
        wavs = tones(batch, round(16000 * seconds) * (n + 1) + 7, generator)
        lens = torch.ones(batch)
        arrays = wavs.numpy(), lens.numpy()
        scores = model.scores(wavs, lens)
        assert_close(asr.model.scores(*arrays), scores)
        difference = (scores[0] - scores[-1]).abs().max()
        differences.append(difference / scores.abs().max())
        found += asr.transcribe_batch(*arrays)[1]
        expected += [list(tokens) for tokens in model.transcribe(wavs, lens)]
    assert found == expected
    wav = tones(1, asr.model.longest + 16000, generator)[0]
    text = check_pieces(asr.model, model, wav)
    assert text
    if beam is None:
        check_sureness(asr.model, model, wav[None, : asr.model.longest])
    for chance, unsure, left in [(2, 9, text), (-1, -99, text), (-1, 9, "")]:
        monkeypatch.setattr(kinds, "NO_SPEECH", chance)
        monkeypatch.setattr(kinds, "UNSURE", unsure)
        assert asr.model.long(wav.numpy()) == left
    one = wav[: asr.model.longest].numpy()  # which is never left out
    assert asr.model.long(one)
    assert max(differences) > 10 * TOLERANCE  # of utterances in a batch
    assert max(map(len, found)) > 1


class Samples(Asr):
    """The same from waveforms, whose samples are features of frames."""

    def forward(self, wavs, lens):
        _, features = self.shape
        frames = wavs.shape[1] // features
        source = wavs[:, : frames * features].unflatten(1, (frames, features))
        return super().forward(source, lens)


DECODERS = {  # build -> (kinds inside heads, options of the search)
    "conformer + decoder": (False, {"beam_size": 3, "ctc": 0.3}),
    "branchformer + decoder": (True, {}),
    "transformer + decoder post-norm": (True, {"beam_size": 4}),
}
END = 2


def search_of(model, linear, beam_size=None, ctc=None):
    """A search of SpeechBrain's, greedy or with a beam."""
    options = {
        "modules": [model, linear],
        "bos_index": 1,
        "eos_index": END,
        "min_decode_ratio": 0.0,
        "max_decode_ratio": 0.5,
    }
    if beam_size is None:
        return S2STransformerGreedySearcher(**options)
    options |= {"beam_size": beam_size, "using_eos_threshold": False}
    if ctc is not None:
        heard = Linear(len(LETTERS), input_size=16)
        heard.w.weight *= 6
        scorer = CTCScorer(heard, blank_index=0, eos_index=END)
        weights = {"ctc": ctc}
        options["scorer"] = ScorerBuilder(weights, full_scorers=[scorer])
    return S2STransformerBeamSearcher(**options)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_attention_decoder_writes_the_same_tokens(
    make_model, random_plan, tmp_path, name
):
    build, (unequal, options) = BUILDS[name], DECODERS[name]
    torch.manual_seed(0)
    whole = build.make(make_model, tgt_vocab=len(LETTERS))
    kinds = build.kinds + (INSIDE_HEADS if unequal else ())
    declaration = build.structures(whole, kinds=kinds)
    plan = random_plan(declaration, seed=3)
    layers = "decoder.layers"
    plan.keep[f"{layers}.0.self_attn"][:] = False
    plan.keep[f"{layers}.1.multihead_attn"][:] = False
    for name in ("0", "1", "0.multihead_attn"):
        plan.keep[f"{layers}.{name}"][:] = True
    for layer in whole.decoder.layers:  # it shall listen
        layer.multihead_attn.att.out_proj.weight *= 10
    cut_(declaration, plan)
    linear = Linear(len(LETTERS), input_size=16)
    linear.w.weight *= 6
    search = search_of(whole, linear, **options).eval()
    model = recogniser(
        {
            "modules": {"encoder": Samples(whole), "decoder": search},
            "tokenizer": letters(),
            "sample_rate": 120,
        }
    )
    asr = deployed(model, tmp_path / "deployed")
    generator = torch.Generator().manual_seed(0)
    found, expected = [], []
    for batch, samples in ((1, 80), (3, 240), (2, 403), (1, 130)):
        wavs = torch.randn(batch, samples, generator=generator)
        lens = torch.linspace(1, 0.6, batch)
        arrays = wavs.numpy(), lens.numpy()
        scores = model.scores(wavs, lens)
        assert_close(asr.model.scores(*arrays), scores)
        found += asr.transcribe_batch(*arrays)[1]
        expected += [list(map(int, t)) for t in model.transcribe(wavs, lens)]
    assert found == expected
    check_pieces(asr.model, model, torch.randn(120 * 32, generator=generator))
    assert len(set(map(tuple, found))) > 3 and max(map(len, found)) > 3
    folder, heard = (
        tmp_path / "deployed",
        [wavs[0].numpy(), wavs[0, :80].numpy()],
    )
    choice = Quantizer(asr, folder, heard).choose(max_kl=100.0)
    assert 0 < choice.cost < 100 and len(choice.integers) > 9


def letters():
    tokenizer = CTCTextEncoder()
    tokenizer.insert_blank(LETTERS[0], index=0)
    tokenizer.update_from_iterable(LETTERS[1:], sequence_input=False)
    return tokenizer


@pytest.fixture
def make_lobe(tmp_path):
    """Function: name, options -> a lobe of a small model, in eval mode."""

    def make(name, **options):
        folder = tmp_path / name
        if name == "Whisper":
            write_tiny_whisper(str(folder))
        else:
            config = transformers.Wav2Vec2Config(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=32,
                conv_dim=[8] * 7,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
                num_conv_pos_embeddings=8,
                num_conv_pos_embedding_groups=2,
            )
            transformers.Wav2Vec2Model(config).save_pretrained(folder)
            transformers.Wav2Vec2FeatureExtractor(
                return_attention_mask=True
            ).save_pretrained(folder)
        lobe = getattr(lobes, name)
        return lobe(str(folder), str(folder), **options).eval()

    return make


ALIGNED = {"encoder_only": True, "aligned": True}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Wav2Vec2", {}),
        ("Whisper", {**ALIGNED, "context": "utterance", "margin": 1.0}),
        ("Whisper", {**ALIGNED, "context": 6.0, "margin": 1.0}),
        ("Whisper", {**ALIGNED, "context": 3.0, "margin": 1.0}),
    ],
)
@torch.no_grad()
def test_ctc_on_a_lobe(make_lobe, tmp_path, name, options):
    """From waveforms to letters, in a batch, alone and from a long file."""
    torch.manual_seed(0)
    encoder = LengthsCapableSequential(
        lobe=make_lobe(name, **options),
        lin=torch.nn.Linear(16, len(LETTERS)),
        log_softmax=torch.nn.LogSoftmax(-1),
    )
    encoder.eval().lin.weight *= 10
    model = recogniser(
        {
            "modules": {"encoder": encoder},
            "decoding_function": partial(ctc_greedy_decode, blank_id=0),
            "tokenizer": letters(),
        }
    )
    asr = deployed(model, tmp_path / "deployed")
    generator = torch.Generator().manual_seed(0)
    most = (asr.model.longest or 80000) / 16000
    for batch, seconds in ((1, 0.9), (3, 1.9), (2, min(most, 4.9))):
        wavs = tones(batch, round(16000 * seconds), generator)
        lens = torch.linspace(1, 0.6, batch)
        arrays = wavs.numpy(), lens.numpy()
        assert_close(asr.model.scores(*arrays), model.scores(wavs, lens))
        words, tokens = asr.transcribe_batch(*arrays)
        assert tokens == model.transcribe(wavs, lens)
        assert words == ["".join(LETTERS[t] for t in row) for row in tokens]
    wavs = tones(1, 16000 * 33 + 5, generator)
    (whole,) = model.transcribe(wavs, torch.ones(1))
    text = asr.model.long(wavs[0].numpy())
    assert text and len(text) == pytest.approx(len(whole), rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_only": True}, "with aligned: True"),
        (
            {**ALIGNED, "context": "utterance", "min_context": 4.0},
            "min_context",
        ),
    ],
)
def test_whisper_with_ctc_that_is_heard_otherwise_is_refused(
    make_lobe, options, message
):
    hparams = {
        "modules": {
            "encoder": LengthsCapableSequential(
                lobe=make_lobe("Whisper", **options)
            )
        },
        "decoding_function": partial(ctc_greedy_decode, blank_id=0),
        "tokenizer": None,
    }
    with pytest.raises(DeployError, match=message):
        recogniser(hparams)
