"""Layers are chosen, left out, trained, exported; and pruned further."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import speechbrain as sb
import torch
import transformers
from matplotlib.axes import Axes
from rounding import assert_same_but_for_rounding
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from sb_prune import (
    LayerSettings,
    LayerwiseDistillation,
    conformer_structures,
    encoder_decoder_structures,
    lobes,
    pruned,
    wav2vec2_structures,
)
from sb_prune.depth.criteria import (
    ConvexityPeak,
    EvenlySpaced,
    LastLayers,
    LayerChoice,
    RandomLayers,
    SimilarBlock,
)
from sb_prune.depth.representations import (
    _Reservoir,
    layer_states,
    max_over_time,
    mean_over_time,
)
from sb_prune.depth.similarity import cosine_similarity, mutual_neighbours
from sb_prune.export.loading import load_export
from sb_prune.report.pictures import draw_layers
from sb_prune.run.data import Data
from sb_prune.run.run import Run

INFERENCE = Path(__file__).parents[1] / "tiny_wav2vec2.yaml"
LAYERS = 4
UTTERANCES = 24


class Recipe(sb.Brain):
    """A lobe and a Linear that say the word of an utterance."""

    def compute_forward(self, batch, stage):
        wavs, lengths = batch.to(self.device).sig
        encoded = self.modules.wav2vec2(wavs, lengths)
        return self.modules.lin(encoded).mean(1)

    def compute_objectives(self, predictions, batch, stage):
        target = torch.tensor([int(word == "up") for word in batch.word])
        return torch.nn.functional.cross_entropy(predictions, target)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.epochs_trained = getattr(self, "epochs_trained", 0) + 1
            self.hparams.train_logger.log_stats({"epoch": epoch}, {})
            self.checkpointer.save_and_keep_only()


class Log:
    """Keeps what is logged."""

    def __init__(self):
        self.stats = []

    def log_stats(self, meta, train_stats):
        self.stats.append(train_stats)


@pytest.fixture(scope="module")
def dense(tmp_path_factory, make_wav2vec2):
    """An ordinary Hugging Face folder of four layers."""
    folder = tmp_path_factory.mktemp("dense") / "encoder"
    make_wav2vec2(layers=LAYERS).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def data():
    """Two words by three speakers; each utterance has two segments."""
    generator = torch.Generator().manual_seed(1)
    rows = {
        str(i): {
            "number": i,
            "word": ("up", "down")[i % 2],
            "spk_id": "abc"[i % 3],
            "segments": [("S", 0.0, 0.4), ("T", 0.4, 1.0)],
        }
        for i in range(UTTERANCES)
    }
    wavs = torch.randn(UTTERANCES, 600, generator=generator)
    wavs[::2] = wavs[::2].cumsum(1) / 10

    def read(number):
        return wavs[number][: 500 + 4 * number]

    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(read, takes="number", provides="sig")
    dataset.set_output_keys(["id", "sig", "word"])
    return dataset


def make(folder, dense, pruning=None, epochs=2, module="wav2vec2", **block):
    folder.mkdir(exist_ok=True)
    yaml = folder / "inference.yaml"
    text = INFERENCE.read_text().replace("LOBE", "wav2vec2.Wav2Vec2")
    yaml.write_text(text.replace("out_features: 3", "out_features: 2"))
    torch.manual_seed(0)
    modules = {
        "wav2vec2": Wav2Vec2(
            str(dense), str(dense), output_norm=True, freeze=False
        ),
        "lin": torch.nn.Linear(16, 2),
    }
    modules["wav2vec2"].model.config.layerdrop = 0.0
    export = {"inference": str(yaml), "export_folder": str(folder / "export")}
    block = {
        "module": module,
        "structures": wav2vec2_structures,
        "criterion": ConvexityPeak(neighbours=3),
        "labels": ["word", "spk_id"],
        **(export if pruning is None else {}),
        **block,
    }
    hparams = {"layer_pruning": block, "wav2vec2_hub": str(dense)}
    if pruning is not None:
        hparams["pruning"] = {
            "module": "wav2vec2",
            "structures": wav2vec2_structures,
            "target": 0.3,
            "prune_epochs": 1,
            "schedule_steps": 2,
            **export,
            **pruning,
        }
    counter, model = EpochCounter(epochs), torch.nn.ModuleDict(modules)
    brain = pruned(Recipe)(
        modules=modules,
        opt_class=partial(torch.optim.Adam, lr=0.01),
        hparams={**hparams, "model": model, "train_logger": Log()},
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=Checkpointer(
            folder / "save", {"model": model, "counter": counter}
        ),
    )
    brain.counter = counter
    return brain


def begin(brain, dataset=None):
    """All that comes before training."""
    loader = ({"batch_size": 4}, {})
    train = Data(brain, dataset or data(), None, *loader)
    brain.pruning.begin_(brain, brain.counter, train)


def fit(brain):
    loader = {"batch_size": 4, "shuffle": True}
    brain.fit(brain.counter, data(), train_loader_kwargs=loader)
    brain.evaluate(data(), test_loader_kwargs={"batch_size": 4})
    brain.modules.eval()
    return brain


@torch.no_grad()
def encode(lobe):
    generator = torch.Generator().manual_seed(5)
    wavs = torch.randn(2, 700, generator=generator)
    return lobe(wavs, torch.tensor([1.0, 0.7]))


def layers_of(brain):
    stack = brain.modules["wav2vec2"].model.encoder.layers
    return [int(name) for name, _ in stack.named_children()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, dense):
    """A folder and the Brain that chose layers in it."""
    folder = tmp_path_factory.mktemp("layers")
    return folder, fit(make(folder, dense))


def test_the_choice_is_kept_and_followed(run):
    folder, brain = run
    choice = json.loads((folder / "save/layers.json").read_text())
    depth = sum(choice["keep"])
    assert layers_of(brain) == list(range(depth))
    for curve in choice["curves"].values():
        assert len(curve["scores"]) == len(curve["errors"]) == LAYERS + 1
        assert all(0 <= score <= 1 for score in curve["scores"])
    words = choice["curves"]["word"]["scores"]
    assert depth == 1 + int(np.argmax(words[1:]))
    assert list(choice["curves"]) == ["word", "spk_id"]
    assert (folder / "save/layers.png").stat().st_size > 1000


def test_the_export_is_what_was_evaluated(run, tmp_path):
    folder, brain = run
    expected = encode(brain.modules.wav2vec2)
    loaded = load_export(folder / "export").hparams["wav2vec2"]
    assert_same_but_for_rounding(encode(loaded), expected)
    swapped = lobes.Wav2Vec2(
        str(folder / "export"), str(tmp_path), output_norm=True
    )
    assert_same_but_for_rounding(encode(swapped.eval()), expected)
    card = (folder / "export/README.md").read_text()
    assert "ConvexityPeak" in card and "of 4" in card


def test_a_rerun_trains_nothing(run, dense):
    folder, brain = run
    before = encode(brain.modules.wav2vec2)
    again = fit(make(folder, dense))
    assert not hasattr(again, "epochs_trained")
    assert torch.equal(encode(again.modules.wav2vec2), before)


def test_evaluation_alone(run, dense):
    folder, brain = run
    alone = make(folder, dense)
    alone.evaluate(data(), test_loader_kwargs={"batch_size": 4})
    alone.modules.eval()
    assert_same_but_for_rounding(
        encode(alone.modules.wav2vec2), encode(brain.modules.wav2vec2)
    )


def test_a_stopped_run_ends_with_the_same_bits(run, dense, tmp_path):
    folder, brain = run
    fit(make(tmp_path / "stopped", dense, epochs=1))
    brain_again = fit(make(tmp_path / "stopped", dense))
    assert torch.equal(
        encode(brain_again.modules.wav2vec2), encode(brain.modules.wav2vec2)
    )


def test_a_kill_right_after_the_choice(run, dense, tmp_path):
    """No checkpoint stands, so nothing does: another may be made."""
    folder, brain = run
    other = make(tmp_path / "killed", dense, criterion=LastLayers(1))
    begin(other)
    assert layers_of(other) != layers_of(brain)
    again = fit(make(tmp_path / "killed", dense))
    assert layers_of(again) == layers_of(brain)
    assert torch.equal(
        encode(again.modules.wav2vec2), encode(brain.modules.wav2vec2)
    )


def test_of_a_dense_run(run, dense, tmp_path):
    """start_from: the weights that the layers are chosen of."""
    first = fit(make(tmp_path / "dense", dense, criterion=LastLayers(0)))
    block = {"start_from": str(tmp_path / "dense/save")}
    brain = make(tmp_path / "cut", dense, criterion=LastLayers(2), **block)
    begin(brain)
    whole = dict(first.modules.named_parameters())
    for name, tensor in brain.modules.named_parameters():
        assert torch.equal(tensor, whole[name])
    assert layers_of(brain) == [0, 1]
    fit(make(tmp_path / "cut", dense, criterion=LastLayers(2), **block))
    shutil.rmtree(tmp_path / "dense")  # it has served
    again = make(tmp_path / "cut", dense, criterion=LastLayers(2), **block)
    again.evaluate(data(), test_loader_kwargs={"batch_size": 4})
    assert layers_of(again) == [0, 1]


def test_the_folder_of_another_run(dense, tmp_path):
    """Its checkpoints are neither used nor lost."""
    fit(make(tmp_path, dense, criterion=LastLayers(0)))
    (tmp_path / "save/run.json").unlink()
    before = sorted((tmp_path / "save").iterdir())
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        fit(make(tmp_path, dense))
    assert sorted((tmp_path / "save").iterdir()) == before


def similar_block():
    """An object as a YAML makes it, another one in every process."""
    return SimilarBlock(partial(mutual_neighbours, neighbours=3), removed=2)


@pytest.mark.parametrize("labels", ["word", []])
@pytest.mark.parametrize(
    "criterion",
    [
        similar_block,
        partial(RandomLayers, removed=2, seed=1),
        partial(LastLayers, removed=2),
    ],
)
def test_other_criteria(dense, tmp_path, criterion, labels):
    block = {"labels": labels}
    brain = fit(make(tmp_path, dense, criterion=criterion(), **block))
    assert len(layers_of(brain)) == 2 and layers_of(brain)[0] == 0
    again = make(tmp_path, dense, criterion=criterion(), **block)
    again.evaluate(data(), test_loader_kwargs={"batch_size": 4})
    assert layers_of(again) == layers_of(brain)
    choice = json.loads((tmp_path / "save/layers.json").read_text())
    seen = (labels or "utterance") if criterion is similar_block else ""
    assert "".join(choice["curves"]) == seen
    assert (tmp_path / "save/layers.png").exists() == bool(seen)
    loaded = load_export(tmp_path / "export").hparams["wav2vec2"]
    assert_same_but_for_rounding(encode(loaded), encode(brain.modules.wav2vec2))


def test_layers_first_then_gates(dense, tmp_path):
    """Both blocks: what is left is pruned; one export of both."""
    block = {"criterion": SimilarBlock(cosine_similarity, removed=1)}
    brain = fit(make(tmp_path, dense, pruning={}, **block))
    left = layers_of(brain)
    assert len(left) == 3
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5
    expected = encode(brain.modules.wav2vec2)
    loaded = load_export(tmp_path / "export")
    assert_same_but_for_rounding(encode(loaded.hparams["wav2vec2"]), expected)
    swapped = lobes.Wav2Vec2(
        str(tmp_path / "export"), str(tmp_path / "hub"), output_norm=True
    )
    assert_same_but_for_rounding(encode(swapped.eval()), expected)
    card = (tmp_path / "export/README.md").read_text()
    assert "3 of 4" in card and "cut_max_abs_diff" in card
    alone = make(tmp_path, dense, pruning={}, **block)
    alone.evaluate(data(), test_loader_kwargs={"batch_size": 4})
    alone.modules.eval()
    assert_same_but_for_rounding(encode(alone.modules.wav2vec2), expected)


# ------------------------------------------------------------- distillation

PARTS = {"task", "distill_hidden", "distill_lin"}


def taught(folder, dense, **more):
    """The first and the last layer stay, and learn from all four."""
    loss = partial(LayerwiseDistillation, outputs=["lin"])
    block = {"criterion": EvenlySpaced(2), "labels": [], "distillation": loss}
    return make(folder, dense, **{**block, **more})


@torch.no_grad()
def states_and_logits(brain, batch):
    """Outputs of the first and the last layer, and of the Linear."""
    found = []
    stack = list(brain.modules.wav2vec2.model.encoder.layers)
    for module in (stack[0], stack[-1], brain.modules.lin):
        module.register_forward_hook(lambda *call: found.append(call[-1]))
    brain.compute_forward(batch, sb.Stage.VALID)
    return [x[0] if isinstance(x, tuple) else x for x in found]


@torch.no_grad()
def taught_by(brain, batch):
    """The same of the teacher, for a batch that the student hears."""
    teacher = brain.pruning.distiller.teacher
    teacher.begin_()
    Recipe.compute_forward(brain, batch, sb.Stage.VALID)
    (states,) = teacher.hidden.values()
    return [*states, teacher.outputs["lin"]]


def assert_teacher(brain, other):
    """The teacher of one is what the other is."""
    batch = PaddedBatch([data()[0], data()[1]])
    other.modules.eval()
    found, expected = taught_by(brain, batch), states_and_logits(other, batch)
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected):
        assert_same_but_for_rounding(ours, theirs)


@pytest.fixture(scope="module")
def taught_run(tmp_path_factory, dense):
    """A folder and the Brain that learned in it."""
    folder = tmp_path_factory.mktemp("taught")
    return folder, fit(taught(folder, dense))


def test_what_is_left_learns_from_the_whole(taught_run, dense, tmp_path):
    _, brain = taught_run
    assert layers_of(brain) == [0, LAYERS - 1]
    log = brain.hparams.train_logger.stats
    assert [set(numbers) for numbers in log] == [PARTS, PARTS]
    assert all(value > 0 for numbers in log for value in numbers.values())
    assert_teacher(brain, make(tmp_path, dense))


def test_a_stopped_run_has_the_same_teacher(taught_run, dense, tmp_path):
    _, brain = taught_run
    fit(taught(tmp_path, dense, epochs=1))
    again = fit(taught(tmp_path, dense))
    assert again.epochs_trained == 1
    assert_teacher(again, make(tmp_path / "new", dense))
    assert torch.equal(
        encode(again.modules.wav2vec2), encode(brain.modules.wav2vec2)
    )
    assert (
        again.hparams.train_logger.stats
        == (brain.hparams.train_logger.stats[1:])
    )


def test_a_teacher_that_was_cut_before(taught_run, dense, tmp_path):
    """start_from an export: again the model at the start, with what it has."""
    fit(make(tmp_path / "first", dense, criterion=LastLayers(1)))
    start = tmp_path / "first/export"
    block = {"start_from": str(start)}
    fit(taught(tmp_path / "second", dense, epochs=1, **block))
    again = fit(taught(tmp_path / "second", dense, **block))
    assert layers_of(again) == [0, 2]
    whole = make(tmp_path / "third", dense, criterion=LastLayers(0), **block)
    begin(whole)
    assert layers_of(whole) == [0, 1, 2]
    assert_teacher(again, whole)
    shutil.rmtree(tmp_path / "first")
    alone = taught(tmp_path / "second", dense, **block)
    alone.evaluate(data(), test_loader_kwargs={"batch_size": 4})
    assert alone.pruning.distiller is None  # it needs none
    with pytest.raises(
        ValueError, match="save needs its teacher, the model at the start, and"
    ):
        fit(taught(tmp_path / "second", dense, epochs=3, **block))


def test_another_teacher(dense, tmp_path):
    other = fit(make(tmp_path / "dense", dense, criterion=LastLayers(0)))
    block = {"teacher": str(tmp_path / "dense/save")}
    fit(taught(tmp_path / "small", dense, epochs=1, **block))
    again = fit(taught(tmp_path / "small", dense, **block))
    assert_teacher(again, other)


@pytest.mark.parametrize("key", ["teacher", "start_from"])
def test_the_same_checkpoint_teaches_a_run_that_goes_on(dense, tmp_path, key):
    """Though the run that it names has trained on meanwhile."""
    whole = {"criterion": LastLayers(0)}
    other = fit(make(tmp_path / "dense", dense, **whole))
    block = {key: str(tmp_path / "dense/save")}
    fit(taught(tmp_path / "small", dense, epochs=1, **block))
    (first,) = (tmp_path / "dense/save").glob("CKPT*")
    shutil.copytree(first, tmp_path / "kept")
    fit(make(tmp_path / "dense", dense, epochs=3, **whole))
    shutil.copytree(tmp_path / "kept", first, dirs_exist_ok=True)
    again = fit(taught(tmp_path / "small", dense, **block))
    assert_teacher(again, other)
    shutil.rmtree(first)
    with pytest.raises((OSError, ValueError), match="has lost CKPT"):
        fit(taught(tmp_path / "small", dense, epochs=3, **block))


# ---------------------------------------------------------- representations


def test_states_are_those_of_the_layers(dense, tmp_path):
    """Unpadded, pooled, labels beside them, in the order of the data."""
    brain = make(tmp_path, dense)
    model = brain.modules["wav2vec2"].model.eval()
    layers = list(model.encoder.layers)
    found = layer_states(
        brain, layers, data(), ["word", "segments"], 10**6, max_over_time
    )
    states, words = found["word"]
    assert len(states) == LAYERS + 1 and words == ["up", "down"] * 12
    parts, names = found["segments"]
    assert names == ["S", "T"] * UTTERANCES
    dataset = data()
    for i in (0, 7):
        wav = dataset[i]["sig"]
        wav = torch.nn.functional.layer_norm(wav, wav.shape)[None]
        with torch.no_grad():
            hidden = model(wav, output_hidden_states=True).hidden_states
        for place, state in enumerate(hidden):
            expected = state[0].amax(0).numpy()
            assert states[place][i] == pytest.approx(expected, abs=1e-5)
            frames = state.shape[1]
            first = state[0, : int(np.ceil(0.4 * frames))].amax(0).numpy()
            assert parts[place][2 * i] == pytest.approx(first, abs=1e-5)


def test_nothing_runs_behind_the_last_layer(dense, tmp_path):
    """A search in validation would take hours."""
    brain = make(tmp_path, dense)
    layers = list(brain.modules["wav2vec2"].model.encoder.layers)
    calls = []
    brain.modules["lin"].register_forward_hook(lambda *_: calls.append(1))
    found = layer_states(brain, layers, data(), [], 4, max_over_time)
    assert list(found) == ["utterance"] and not calls
    assert found["utterance"][1] == [None] * 4
    brain.compute_forward(PaddedBatch([data()[0]]), sb.Stage.VALID)
    assert calls


def test_segments_are_drawn_too(dense, tmp_path):
    brain = make(tmp_path, dense)
    layers = list(brain.modules["wav2vec2"].model.encoder.layers)
    states, names = layer_states(
        brain, layers, data(), ["segments"], 10, max_over_time
    )["segments"]
    assert len(names) == 10 and {*names} == {"S", "T"}
    assert states[0].shape == (10, 16)


@pytest.mark.parametrize("size, points", [(3, 10), (1, 3)])
def test_every_point_has_the_same_chance(size, points):
    kept = []
    for seed in range(300):
        reservoir = _Reservoir(size, seed)
        for number in range(points):
            frames = [torch.zeros(1, 1)]
            reservoir.add((number, frames), mean_over_time, "here")
        kept += reservoir.stacked("x")[1]
    chance = size / points
    counts = np.bincount(kept, minlength=points)
    spread = np.sqrt(300 * chance * (1 - chance))
    assert abs(counts - 300 * chance).max() < 5 * spread


def with_labels(value):
    dataset = data()
    dataset.add_dynamic_item(lambda _: value, takes="number", provides="what")
    return dataset


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "None is no label"),
        (torch.zeros(99), "an object of Tensor is no label; give a string"),
        ({"a": 1}, "is no label; give a string or a number"),
        (["a", "b"], "'a' is no segment"),
        (["abc"], "'abc' is no segment"),
        ([("a", 0.0, 0.5), ("b", 0.5)], r"\('b', 0.5\) is no segment"),
        ([("a", 1.2, 1.5)], "times as fractions of the utterance"),
        ([("a", 0.5, 0.2)], "times as fractions of the utterance"),
        ([("a", -0.1, 0.2)], "times as fractions of the utterance"),
        ([("a", "0", "1")], "times as fractions of the utterance"),
        ([(None, 0.0, 1.0)], "None is no label"),
    ],
)
def test_values_that_are_no_labels(dense, tmp_path, value, message):
    brain = make(tmp_path, dense)
    layers = list(brain.modules["wav2vec2"].model.encoder.layers)
    with pytest.raises(ValueError, match=f"what of utterance 0: .*{message}"):
        layer_states(
            brain, layers, with_labels(value), ["what"], 99, max_over_time
        )


def test_no_segments(dense, tmp_path):
    brain = make(tmp_path, dense)
    layers = list(brain.modules["wav2vec2"].model.encoder.layers)
    with pytest.raises(ValueError, match="sample has no segment of 'what'"):
        layer_states(brain, layers, with_labels([]), ["what"], 9, max_over_time)


def test_labels_in_tensors_are_numbers(dense, tmp_path):
    brain = make(tmp_path, dense)
    layers = list(brain.modules["wav2vec2"].model.encoder.layers)
    dataset = with_labels(torch.tensor([7]))
    found = layer_states(brain, layers, dataset, ["what"], 3, max_over_time)
    assert found["what"][1] == [7, 7, 7]


def test_the_sample_is_drawn(dense, tmp_path):
    brain = make(tmp_path, dense)
    layers = list(brain.modules["wav2vec2"].model.encoder.layers)

    def sample(seed):
        states, words = layer_states(
            brain, layers, data(), ["word"], 6, max_over_time, seed
        )["word"]
        assert len(words) == 6
        return states[0].tolist()

    assert sample(0) == sample(0) != sample(1)


def test_other_keys_and_generators_stay(dense, tmp_path):
    brain, dataset = make(tmp_path, dense), data()
    layers = list(brain.modules["wav2vec2"].model.encoder.layers)
    state = torch.get_rng_state()
    layer_states(brain, layers, dataset, ["spk_id"], 4, max_over_time)
    assert list(dataset[0]) == ["id", "sig", "word"]
    assert torch.equal(torch.get_rng_state(), state)


class OtherRecipe(sb.Brain):
    """SpeechBrain's own encoders: a Conformer, or wav2vec 2.0 in two parts."""

    def compute_forward(self, batch, stage):
        signals, lengths = batch.to(self.device).sig
        if "Transformer" in self.modules:
            return self.modules.Transformer.encode(signals, lengths)
        latents = self.modules.latent_extractor(signals)
        return self.modules.latent_encoder(latents, lengths)["embeddings"]


def begin_alone(brain, settings, dataset):
    """All that comes before training, without a YAML."""
    counter = EpochCounter(1)
    brain.checkpointer.add_recoverable("counter", counter)
    data = Data(brain, dataset, None, {}, {})
    Run(layers=settings).begin_(brain, counter, data)


@pytest.mark.parametrize("family", ["conformer", "SpeechBrain wav2vec2"])
def test_layers_of_speechbrains_own(family, make_asr, make_wav2vec2, tmp_path):
    if family == "conformer":
        modules = {"Transformer": make_asr(layers=3)}
        module, structures = "Transformer", conformer_structures
        shape = (13, 6)
    else:
        modules = dict(make_wav2vec2("SpeechBrain", layers=3))
        module, structures = list(modules), wav2vec2_structures
        shape = (700,)
    generator = torch.Generator().manual_seed(1)
    signals = torch.randn(8, *shape, generator=generator)
    dataset = DynamicItemDataset(
        {str(i): {"number": i, "spk_id": "ab"[i % 2]} for i in range(8)}
    )
    dataset.add_dynamic_item(signals.__getitem__, ["number"], "sig")
    dataset.set_output_keys(["sig"])
    model = torch.nn.ModuleDict(modules)
    brain = OtherRecipe(
        modules=modules,
        hparams={"seed": 1},
        run_opts={"device": "cpu"},
        checkpointer=Checkpointer(tmp_path / "save", {"model": model}),
    )
    settings = LayerSettings(
        module, structures, ConvexityPeak(neighbours=2), labels="spk_id"
    )
    with torch.no_grad():
        batch = PaddedBatch([dataset[0]])
        before = brain.compute_forward(batch, sb.Stage.VALID)
    begin_alone(brain, settings, dataset)
    choice = json.loads((tmp_path / "save/layers.json").read_text())
    assert len(choice["curves"]["spk_id"]["scores"]) == 4
    with torch.no_grad():
        after = brain.compute_forward(batch, sb.Stage.VALID)
    assert torch.equal(before, after) == all(choice["keep"])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "block, message",
    [
        ({"labels": "intent"}, "labels: the training data have no key 'inte"),
        (
            {"pooling": torch.mean},
            r"pooling: mean gives an object of Tensor of .*; write a function",
        ),
        ({"pooling": torch.cov}, "pooling: cov gives an object of Tensor"),
        (
            {"pooling": lambda frames: frames.mean(1)},
            "pooling: gives points of different sizes; write a function over",
        ),
        (
            {"criterion": SimilarBlock(np.subtract, removed=1)},
            r"similarity: subtract gives an array of shape \(24, 16\)",
        ),
        ({"criterion": LastLayers(removed=4)}, "removed: 4 of 4 layers; keep"),
        ({"criterion": ConvexityPeak(50)}, "neighbours: 50 of 24 points"),
    ],
)
def test_bad_blocks(dense, tmp_path, block, message):
    with pytest.raises(ValueError, match=message):
        fit(make(tmp_path, dense, **block))
    assert not (tmp_path / "save/layers.json").exists()


def test_one_class_only(dense, tmp_path):
    brain = make(tmp_path, dense, labels="word")
    rows = data()
    rows = rows.filtered_sorted(key_test={"word": lambda word: word == "up"})
    with pytest.raises(ValueError, match=r"labels: \['up'\] alone"):
        begin(brain, rows)


def test_weights_that_are_not_numbers(dense, tmp_path):
    brain = make(tmp_path, dense)
    weight = brain.modules["wav2vec2"].model.encoder.layers[1].layer_norm
    weight.weight.data[0] = torch.nan
    message = "utterance 0: layer 2 gives values that are not finite"
    with pytest.raises(ValueError, match=message):
        begin(brain)


def test_classes_of_one_are_counted(dense, tmp_path, caplog):
    brain = make(tmp_path, dense, labels="number")
    with pytest.raises(ValueError, match="every class has one point"):
        begin(brain)
    assert "24 of 24 in the sample are alone" in caplog.text


@pytest.mark.parametrize("flat", [True, False])
def test_a_flat_curve_is_said_to_be(dense, tmp_path, caplog, flat):
    brain = make(tmp_path, dense, labels="word")
    scores = [0.5] * 5 if flat else [0.5, 0.1, 0.2, 0.9, 0.5]
    choice = LayerChoice([True] * LAYERS, scores, [0.1] * 5)
    brain.pruning.settings.criterion.__class__ = type(
        "Fixed", (ConvexityPeak,), {"__call__": lambda *_: choice}
    )
    begin(brain)
    assert ("all layers score alike" in caplog.text) == flat
    choice = json.loads((tmp_path / "save/layers.json").read_text())
    assert choice["curves"]["word"]["points"] == UTTERANCES


def test_more_than_one_stack(make_asr, tmp_path):
    model = make_asr(layers=2, num_decoder_layers=2)
    brain = OtherRecipe(
        modules={"Transformer": model},
        hparams={"seed": 1},
        run_opts={"device": "cpu"},
        checkpointer=Checkpointer(tmp_path / "save", {"model": model}),
    )
    settings = LayerSettings(
        "Transformer", encoder_decoder_structures, LastLayers(1)
    )
    with pytest.raises(ValueError, match="one depth is chosen"):
        begin_alone(brain, settings, data())


@pytest.mark.parametrize(
    "pruning, block, message",
    [
        ({"module": "lin"}, {}, "layer_pruning: module: 'wav2vec2'; write th"),
        ({"start_from": "x"}, {}, "pruning: start_from: layers are left out"),
        (
            {},
            {"export_folder": "x", "inference": "y"},
            "layer_pruning: export_folder: pruning exports what both",
        ),
        (
            {},
            {"distillation": LayerwiseDistillation},
            "layer_pruning: distillation: pruning trains what both have left; ",
        ),
    ],
)
def test_blocks_that_do_not_fit(dense, tmp_path, pruning, block, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, dense, pruning=pruning, **block)


def test_another_criterion_in_the_same_folder(run, dense):
    folder, _ = run
    brain = make(folder, dense, criterion=ConvexityPeak(neighbours=4))
    with pytest.raises(ValueError, match="layer_pruning: criterion: .*Con"):
        fit(brain)
    brain = make(folder, dense, pooling=max_over_time)
    with pytest.raises(
        ValueError, match="layer_pruning: pooling: .*mean_over_t"
    ):
        fit(brain)


def test_a_damaged_choice(run, dense, tmp_path):
    folder, _ = run
    shutil.copytree(folder / "save", tmp_path / "save")
    choice = tmp_path / "save/layers.json"
    text = choice.read_text()
    short = {**json.loads(text), "keep": [True]}
    for bad in (text[: len(text) // 2], json.dumps(short), "[]"):
        choice.write_text(bad)
        with pytest.raises(ValueError, match="layers.json is missing or damag"):
            fit(make(tmp_path, dense))
    choice.unlink()
    with pytest.raises(ValueError, match="layers.json is missing or damaged"):
        fit(make(tmp_path, dense))


def test_evaluation_without_a_choice(dense, tmp_path):
    brain = make(tmp_path, dense)
    with pytest.raises(ValueError, match="holds no run of sb_prune; train fir"):
        brain.evaluate(data(), test_loader_kwargs={"batch_size": 4})


def test_a_recipe_that_skips_layers(dense, tmp_path):
    brain = make(tmp_path, dense)
    other = [torch.nn.Identity()]
    with pytest.raises(RuntimeError, match="did not run all of them"):
        layer_states(brain, other, data(), ["word"], 4, max_over_time)


# ----------------------------------------------------------------- criteria


def clouds():
    """Five states of 40 points; the third separates the two classes best."""
    generator = np.random.default_rng(0)
    labels = [0, 1] * 20
    states = generator.normal(size=(5, 40, 6))
    states[2][::2] += 20
    states[4] = states[3] + 0.01 * generator.normal(size=(40, 6))
    return list(states), labels


def test_convexity_peaks_where_classes_are_apart():
    states, labels = clouds()
    choice = ConvexityPeak(neighbours=5)(states, labels)
    assert choice.keep == [True, True, False, False] and choice.depth == 2
    assert len(choice.scores) == len(choice.errors) == 5


def test_of_equal_peaks_the_lowest():
    _, labels = clouds()
    apart = np.random.default_rng(0).normal(size=(40, 3))
    apart[::2] += 99
    choice = ConvexityPeak(neighbours=5)([apart] * 4, labels)
    assert choice.keep == [True, False, False]


def test_what_enters_the_first_layer_is_no_choice():
    states, labels = clouds()
    states[0][::2] += 99
    assert ConvexityPeak(neighbours=5)(states, labels).depth == 2


def test_the_most_similar_block_goes():
    states, _ = clouds()
    choice = SimilarBlock(cosine_similarity, removed=1)(states, None)
    assert choice.keep == [True, True, True, False]
    assert np.argmax(choice.scores) == 2 and len(choice.scores) == 3


@pytest.mark.parametrize("removed", [-1, 1.5, True, None])
def test_numbers_of_layers(removed):
    for criterion in (LastLayers, RandomLayers):
        with pytest.raises(ValueError, match="removed: .*; write a whole numb"):
            criterion(removed)


def test_a_block_of_no_layers():
    with pytest.raises(ValueError, match="removed: 0; write a whole number, 1"):
        SimilarBlock(cosine_similarity, removed=0)


def test_every_label_is_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Axes, "plot", lambda *_, label, **__: drawn.append(label)
    )
    monkeypatch.setattr(Axes, "legend", lambda *_: None)
    curve = {"scores": [0.1, 0.2, 0.3], "errors": []}
    curves = {str(i): curve for i in range(7)}
    choice = {"keep": [True, False], "criterion": "X", "curves": curves}
    draw_layers(tmp_path / "layers.png", choice)
    assert drawn == list(curves)


def test_depth():
    assert LayerChoice([True, False, True]).depth == 2
