"""Real speed of deployed models: cut, as a graph, in 8-bit integers.

    python tests/benchmarks/deploy_speed.py [--full]

`wav2vec2`: the base, one utterance of 10 s, with 72% of its parameters gone at
random as in wav2vec2_speed.py (`all_kinds`). `whisper`: the base, the same
utterance, encoder and 40 tokens, with 30% gone at random; the dense one hears
30 s, the cut one the utterance and 2 s. Two threads; dense in torch, cut in
torch, cut in onnxruntime, cut in onnxruntime with all matrix products in
integers and other weights in 16 bits, in turns; `--full` takes more turns.
Random weights: what integers do to word errors is in real_int8.py. `joint`: the
recipe's Conformer, not cut, decoder and CTC together with a beam of 10, 40
tokens of the same utterance, in SpeechBrain and in the runtime.
"""

import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import onnxruntime
import sentencepiece
import torch
from cells import ROOT
from common import random_scores, run, whisper
from hyperpyyaml import load_hyperpyyaml
from transformers import Wav2Vec2Config, Wav2Vec2Model
from wav2vec2_speed import CUTS
from whisper_speed import KINDS, TOKENS, VOCABULARY, decode, encode

from sb_prune import ParameterBudget, cut_, whisper_structures
from sb_prune.cut.folding import fold_
from sb_prune.deploy import OnnxASR
from sb_prune.deploy.graphs import Input, write_graph
from sb_prune.deploy.integers import Graph
from sb_prune.deploy.recognisers import recogniser
from sb_prune.deploy.runtime.settings import write_settings
from sb_prune.deploy.whisper import write_graphs
from sb_prune.learn.fitting import fit_plan
from sb_prune.support.measure import count_parameters, measure_speed

THREADS, SECONDS, CONTEXT = 2, 10, 12
WHISPER_GONE = 0.3
CONFORMER = ROOT / "recipes/LibriSpeech/ASR/transformer/hparams/inference.yaml"
SIZES = {
    "n_fft": 512,
    "n_mels": 80,
    "d_model": 144,
    "nhead": 4,
    "num_encoder_layers": 12,
    "num_decoder_layers": 4,
    "d_ffn": 1024,
    "kernel_size": 31,
    "output_neurons": 5000,
    "blank_index": 0,
    "bos_index": 1,
    "eos_index": 2,
    "test_beam_size": 10,
    "ctc_weight_decode": 0.4,
}


class Hidden(torch.nn.Module):
    """The last hidden states, alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, wavs):
        return self.model(wavs).last_hidden_state


def session(graph):
    """A graph with as many threads as torch has here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(graph, options)


def in_both(path):
    """The graph of a file, and one with integers and weights of 16 bits."""
    small = Graph(path, half=True)
    whole = Graph(path).with_integers(set())
    return whole, small.with_integers(set(small.products()))


def summary(dense, timed, sizes, runs):
    """Seconds, ratios and sizes of what takes turns.

    Arguments
    ---------
    dense : torch.nn.Module
        Whose parameters the ratio of sizes counts, in float32.
    timed : dict
        torch_dense, torch_cut, onnx_cut, int8_cut -> (wavs, lens) -> anything.
    sizes : dict
        onnx_cut, int8_cut -> bytes.
    runs : int

    Returns
    -------
    dict
    """
    speed = measure_speed(timed, SECONDS, runs=runs)
    whole = 4 * count_parameters([dense])
    return {
        **{f"{n}_s": round(rtf * SECONDS, 4) for n, rtf in speed.items()},
        "ratios": {
            n: round(speed["torch_dense"] / rtf, 2) for n, rtf in speed.items()
        },
        "mb": {
            "torch_dense": round(whole / 2**20, 1),
            **{n: round(size / 2**20, 1) for n, size in sizes.items()},
        },
        "times_smaller": round(whole / sizes["int8_cut"], 2),
    }


def of_wav2vec2(folder, runs):
    """wav2vec2-base without 72% of its parameters."""
    torch.manual_seed(0)
    dense, model = (Wav2Vec2Model(Wav2Vec2Config()).eval() for _ in range(2))
    cut_(*CUTS["all_kinds"](model))
    fold_(model)
    path = folder / "model.onnx"
    wavs = torch.randn(2, 16000)
    inputs = {"wavs": Input(wavs, (0, 1))}
    write_graph(Hidden(model).eval(), inputs, ["states"], path)
    graphs = dict(zip(("onnx_cut", "int8_cut"), in_both(path)))
    sessions = {name: session(graph) for name, graph in graphs.items()}
    timed = {
        "torch_dense": lambda wavs, _: dense(wavs),
        "torch_cut": lambda wavs, _: model(wavs),
        **{
            name: lambda wavs, _, s=s: s.run(None, {"wavs": wavs.numpy()})
            for name, s in sessions.items()
        },
    }
    sizes = {name: len(graph) for name, graph in graphs.items()}
    return summary(dense, timed, sizes, runs)


def of_whisper(folder, runs):
    """Whisper-base without 30% of its parameters, hearing 12 s."""
    dense = whisper(vocabulary=VOCABULARY)
    model = whisper(vocabulary=VOCABULARY, context=50 * CONTEXT)
    declaration = whisper_structures(
        model, kinds=KINDS, tokens_per_frame=TOKENS / (100 * CONTEXT)
    )
    groups = ParameterBudget(WHISPER_GONE).groups(declaration)
    cut_(
        declaration,
        fit_plan(declaration, groups, random_scores(declaration, 0, 0.0)),
    )
    filters = torch.rand(80, 201)
    lobe = SimpleNamespace(
        model=model, _n_fft=400, _hop_length=160, _mel_filters=filters
    )
    shapes = write_graphs(lobe, folder, apart=False)
    pairs = [in_both(folder / f"{n}.onnx") for n in ("encoder", "decoder")]
    timed = {
        "torch_dense": lambda *_: decode(dense, encode(dense)),
        "torch_cut": lambda *_: decode(model, encode(model)),
    }
    sizes = {}
    for name, graphs in zip(("onnx_cut", "int8_cut"), zip(*pairs)):
        sizes[name] = sum(map(len, graphs))
        sessions = [session(graph) for graph in graphs]
        timed[name] = partial(transcribe, *sessions, shapes)
    return summary(dense, timed, sizes, runs)


def transcribe(encoder, decoder, shapes, wavs, lens):
    """Encodes, and decodes as many tokens as torch does."""
    heard = numpy.zeros((1, 16000 * CONTEXT), "float32")
    read = encoder.run(None, {"wavs": heard})
    past = [
        numpy.zeros((1, heads, 0, dims), "float32")
        for heads, dims in shapes
        for _ in "kv"
    ]
    names = [given.name for given in decoder.get_inputs()]
    token = numpy.ones((1, 1), "int64")
    for _ in range(TOKENS):
        feed = dict(zip(names, [token, *past, *read]))
        logits, *past = decoder.run(None, feed)
        token = logits.argmax(-1)[:, None]


def of_conformer(folder, runs):
    """A joint search: in SpeechBrain, and in the runtime."""
    torch.manual_seed(0)
    hparams = load_hyperpyyaml(CONFORMER, SIZES)
    hparams["normalize"].train()(torch.randn(1, 20, 80), torch.ones(1))
    torch.nn.ModuleDict(hparams["modules"]).eval()
    model = recogniser(hparams)
    frames = model.encoder(torch.zeros(1, 16000 * SECONDS), torch.ones(1))
    ratio = (TOKENS + 0.5) / frames.shape[1]
    model.search.min_decode_ratio = model.search.max_decode_ratio = ratio
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]),
        model_prefix=str(folder / "spelling"),
        vocab_size=7,
        minloglevel=2,
    )
    model.tokenizer.load(str(folder / "spelling.model"))
    settings = model.write_(folder)
    write_settings(folder, {**settings, "sample_rate": model.sample_rate})
    asr = OnnxASR(folder, threads=THREADS)
    timed = {
        "torch": model.transcribe,
        "onnx": lambda wavs, lens: asr.model.tokens(wavs.numpy(), lens.numpy()),
    }
    speed = measure_speed(timed, SECONDS, runs=runs)
    seconds = {f"{n}_s": round(rtf * SECONDS, 4) for n, rtf in speed.items()}
    return {**seconds, "ratio": round(speed["torch"] / speed["onnx"], 2)}


def measure(full):
    """Seconds, ratios and sizes of all models."""
    torch.set_num_threads(THREADS)
    runs = 15 if full else 5
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "conformer").mkdir()
        return {
            "wav2vec2": of_wav2vec2(folder, runs),
            "whisper": of_whisper(folder, runs),
            "joint": of_conformer(folder / "conformer", runs),
        }


if __name__ == "__main__":
    with torch.inference_mode():
        run(measure)
