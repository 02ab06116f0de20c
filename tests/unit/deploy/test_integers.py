"""Products in integers, and the choice of which."""

import numpy
import onnx
import onnxruntime
import pytest
import torch

from sb_prune.deploy.graphs import Input, write_graph
from sb_prune.deploy.integers import Graph
from sb_prune.deploy.quantize import (
    Quantizer,
    kl_divergence,
    word_error_rate,
)
from sb_prune.deploy.runtime.kinds import CTC, Whisper
from sb_prune.deploy.runtime.settings import DeployError

WORDS = 1200


class Small(torch.nn.Module):
    """Tokens -> logits, with the table of embeddings tied to the output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(WORDS, 8)
        self.one, self.two = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, tokens):
        x = self.two(self.one(self.table(tokens)).relu())
        return x @ self.table.weight.T


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    tokens = torch.ones(2, 3, dtype=torch.long)
    inputs = {"tokens": Input(tokens, (0, 1))}
    write_graph(Small().eval(), inputs, ["logits"], path)
    return path


def run(graph, tokens):
    session = onnxruntime.InferenceSession(graph)
    return session.run(None, {"tokens": tokens})[0]


@pytest.fixture
def tokens():
    return numpy.arange(60).reshape(2, 30) * 20


def test_products_are_named_by_their_modules(path):
    names = [name.partition("/")[0] for name in Graph(path).products()]
    assert names == ["table", "one", "two", "model"]


@torch.no_grad()
def test_nothing_in_integers_is_the_graph_itself(path, tokens):
    expected = Small()(torch.from_numpy(tokens)).numpy()
    found = run(Graph(path).with_integers(set()), tokens)
    assert numpy.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("place", range(4))
@torch.no_grad()
def test_each_product_comes_close(path, tokens, place):
    graph = Graph(path)
    name = graph.products()[place]
    expected = Small()(torch.from_numpy(tokens)).numpy()
    off = numpy.abs(run(graph.with_integers({name}), tokens) - expected).max()
    assert 1e-5 < off < 0.03 * numpy.abs(expected).max()


def test_the_file_gets_smaller(path):
    graph = Graph(path)
    before = len(graph.with_integers(set()))
    small = graph.with_integers(set(graph.products()))
    assert len(small) < 0.8 * before  # transposed by itself, it is kept twice
    kept = onnx.load_from_string(small).graph.initializer
    wide = [w.name for w in kept if w.data_type == 1 and len(w.dims) == 2]
    assert all("scales" in name for name in wide)


@pytest.mark.parametrize("count", [0, 3])
@torch.no_grad()
def test_other_weights_can_have_16_bits(path, tokens, tmp_path, count):
    """In a file, which is as small as they are."""
    graph = Graph(path, half=True)
    named = set(graph.products()[1 : 1 + count])
    expected = run(Graph(path).with_integers(named), tokens)
    written = tmp_path / "half.onnx"
    for _ in range(2):  # the second time in place of the first
        graph.write(named, written)
    off = numpy.abs(run(str(written), tokens) - expected).max()
    # an activation may be rounded to the next integer
    most = 0.03 if count else 1e-3
    assert 1e-6 < off < most * numpy.abs(expected).max()
    weights = written.with_name("half.onnx.data").stat().st_size
    integers = count > 2  # the table is kept once as it is, once transposed
    assert weights < 1.1 * WORDS * 8 * (2 + integers)


class Turned(torch.nn.Module):
    """What it returns was transposed, which no other node reads."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x).transpose(1, 2)


@torch.no_grad()
def test_outputs_stay_outputs(tmp_path):
    model, path = Turned().eval(), tmp_path / "model.onnx"
    x = torch.randn(2, 3, 4)
    write_graph(model, {"x": Input(x, (0, 1))}, ["y"], path)
    graph = Graph(path)
    session = onnxruntime.InferenceSession(
        graph.with_integers(set(graph.products()))
    )
    found = session.run(None, {"x": x.numpy()})[0]
    assert numpy.abs(found - model(x).numpy()).max() < 0.05


# ---------------------------------------------------------------- the choice


class Fake:
    """A model of one graph, whose text is its most probable token."""

    graphs = ("model.onnx",)

    def load_(self, name, graph):
        self.sessions = {name: onnxruntime.InferenceSession(graph)}

    def scores_along(self, wavs, lens, tokens):
        (session,) = self.sessions.values()
        return [session.run(None, {"tokens": wavs.astype("int64")})[0][0]]

    def tokens(self, wavs, lens):
        (scores,) = self.scores_along(wavs, lens, None)
        return scores.argmax(-1)[None].tolist()

    def long(self, wav):
        return " ".join(map(str, self.tokens(wav[None], None)[0]))


@pytest.fixture
def quantizer(path, tokens):
    def make(labelled=(), heard=tokens, **options):
        asr = type("Asr", (), {"model": Fake()})
        asr.model.load_("model.onnx", str(path))
        return Quantizer(asr, path.parent, list(heard), labelled, **options)

    return make


def test_all_are_taken_if_they_may(quantizer):
    choice = quantizer().choose(max_kl=10.0)
    assert len(choice.integers) == 4 and not choice.floats and not choice.alone
    assert 0 < choice.cost < 10


def test_those_that_cost_least_are_taken(quantizer):
    whole = quantizer().choose(max_kl=10.0).cost
    choice = quantizer().choose(max_kl=whole / 2)
    assert choice.integers and choice.floats
    assert choice.cost <= whole / 2
    costs = [choice.alone[name] for name in choice.integers + choice.floats]
    assert costs == sorted(costs)
    one_more = choice.integers + choice.floats[:1]
    keys = [("model.onnx", name.partition(": ")[2]) for name in one_more]
    assert quantizer()._divergence(keys) > whole / 2


def test_weights_of_16_bits_alone_may_be_too_much(quantizer):
    assert not quantizer(half=True).choose(max_kl=0.0).is_allowed
    assert quantizer(half=True).choose(max_kl=10.0).is_allowed


def test_a_decoder_is_not_hidden_by_the_frames_of_ctc(quantizer):
    """Each mean counts: of few tokens, and of many frames."""
    made = quantizer()
    even, other = numpy.zeros((1, 2)), numpy.log([[0.25, 0.75]])
    made._scores = [even, numpy.zeros((99, 2))]
    made._scores_now = lambda heard: [other, numpy.zeros((99, 2))]
    assert made._divergence([]) == kl_divergence(even, other)


def test_none_is_taken_if_nothing_may_be_lost(quantizer):
    choice = quantizer().choose(max_kl=0.0)
    assert not choice.integers and choice.cost == 0 and choice.is_allowed


def test_word_errors_decide_where_there_are_words(quantizer, tokens):
    said = quantizer()._model
    labelled = [(wav, said.long(wav)) for wav in tokens]
    whole = quantizer(labelled).choose(max_wer_loss=100.0)
    assert len(whole.integers) == 4 and whole.cost > 0
    choice = quantizer(labelled).choose(max_wer_loss=whole.cost / 2)
    assert choice.cost <= whole.cost / 2 and choice.floats


@pytest.mark.parametrize(
    "kind, language, wrong",
    [(Whisper, "en", 0), (Whisper, "de", 100), (CTC, None, 100)],
)
def test_words_of_english_are_compared_as_in_whispers_paper(
    kind, language, wrong
):
    model = object.__new__(kind)
    model.settings = {"language": language}
    model.long = lambda wav: "Mister 21"
    assert word_error_rate(model, [(None, "MR TWENTY ONE")] * 2) == wrong


def test_what_was_chosen_is_written(quantizer, tmp_path, tokens):
    made = quantizer()
    choice = made.choose(max_kl=10.0)
    made.write(tmp_path, choice.integers)
    found = run(str(tmp_path / "model.onnx"), tokens)
    (scores,) = made._model.scores_along(tokens, 1, 1)
    assert numpy.array_equal(found[0], scores)


def test_static_scales_are_judged_by_other_utterances(quantizer, tokens):
    """Nothing is clipped in the utterance that they are from."""
    both = quantizer(static=True)
    alone = quantizer(heard=tokens[:1], static=True)
    for one, other in zip(both._graphs.values(), alone._graphs.values()):
        assert one.ranges == other.ranges
    cost = both.choose(max_kl=10.0).cost
    assert cost > 2 * alone.choose(max_kl=10.0).cost


def test_static_scales_are_those_of_the_calibration(
    quantizer, tmp_path, tokens
):
    """As those of each call, where nothing is louder than there."""
    made = quantizer(heard=tokens[:1], static=True)
    choice = made.choose(max_kl=10.0)
    assert len(choice.integers) == 4
    made.write(tmp_path, choice.integers)
    kinds = [n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == 3  # not of the table
    assert "DynamicQuantizeLinear" not in kinds
    dynamic = quantizer(heard=tokens[:1]).choose(max_kl=10.0)
    assert 0 < choice.cost < 2 * dynamic.cost
    (ranges,) = (graph.ranges for graph in made._graphs.values())
    loud = {name: (low / 4, high / 4) for name, (low, high) in ranges.items()}
    ranges.update(loud)
    made._taken = dict.fromkeys(made._taken)
    assert made.choose(max_kl=10.0).cost > 2 * choice.cost  # it is clipped


def test_there_must_be_audio(path):
    with pytest.raises(DeployError, match="no calibration audio"):
        Quantizer(None, path.parent, [])
