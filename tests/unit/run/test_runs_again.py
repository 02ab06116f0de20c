"""Runs that prune what an earlier run has pruned, in every family.

Each is a whole run of a second, through a Brain: it starts from an export,
counts its target from the original dense model, and exports anew.
"""

import json
import logging
import shutil
from functools import partial
from pathlib import Path

import pytest
import small_runs
import torch
import transformers
from fork_server import run_forked
from rounding import assert_same_but_for_rounding
from small_runs import encoder, landing, make, prune, pruning
from speechbrain.nnet.containers import LengthsCapableSequential

from sb_prune import (
    LayerwiseDistillation,
    MACBudget,
    ParameterBudget,
    conformer_structures,
    front_end_structures,
    lobes,
    wav2vec2_structures,
)
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.depth import LastLayers
from sb_prune.export.loading import load_export
from sb_prune.report.command import write_report
from sb_prune.students import make_student

PRUNED = {
    "Wav2Vec2": lobes.Wav2Vec2,
    "Hubert": lobes.HuBERT,
    "WavLM": lobes.WavLM,
}
FIXTURES = Path(small_runs.__file__).parents[1] / "fixtures"
DISTILLATION = partial(LayerwiseDistillation, outputs=["lin"])
LINES = """
import sys
import torch
from sb_prune.export.loading import load_export
torch.set_num_threads(1)
state = load_export(sys.argv[1]).hparams["modules"]["encoder"].state_dict()
torch.save(state, sys.argv[2])
"""


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory, make_wav2vec2):
    """Function: family -> an ordinary Hugging Face folder of a dense model."""

    def write(family="Wav2Vec2", **options):
        folder = tmp_path_factory.mktemp("dense") / family
        make_wav2vec2(family, **options).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
        return folder

    return write


def swapped(export, family="Wav2Vec2", **options):
    """The lobe of sb_prune whose source is an export."""
    return PRUNED[family](
        str(export), str(export), output_norm=True, freeze=False, **options
    )


def check(brain, model, target, steps, budget=ParameterBudget):
    """Everything that holds for an export of any run that prunes.

    Arguments
    ---------
    brain : Brain
        Whose run has ended.
    model : Model
        The dense one.
    target : float
    steps : int
        Number of cuts since the original.
    budget : callable
    """
    folder = Path(brain.pruning.settings.publication.folder)
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5
    export = load_export(folder)
    assert len(export.steps) == steps
    assert 0 <= landing(export, model.dense(), target, budget) < 1
    expected = model.predictions(brain.modules)
    assert_same_but_for_rounding(model.predictions(export.hparams), expected)
    if isinstance(export.encoder, LengthsCapableSequential):  # takes waveforms
        report = write_report(folder, seconds=0.1)
        assert (folder / "structure.png").is_file()
        assert report.count("|") > 20
    return export


def sizes_of(export):
    """Name -> shape of all tensors of the cut modules."""
    state = export.history.rebuild().state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


# -------------------------------------------------------------------- families


@pytest.mark.parametrize("budget", [ParameterBudget, MACBudget])
def test_a_conformer_is_pruned_three_times(tmp_path, budget):
    model = small_runs.conformer()
    if budget is MACBudget:
        budget = partial(budget, frames=50)
    for number, target in enumerate([0.3, 0.5, 0.7]):
        start = {"start_from": str(tmp_path / f"{number - 1}/export")}
        brain = prune(
            tmp_path / f"{number}",
            model,
            target,
            budget=budget,
            distillation=DISTILLATION,
            **(start if number else {}),
        )
        check(brain, model, target, number + 1, budget)


def test_a_front_end_and_what_it_feeds(tmp_path):
    model = small_runs.behind_front_end()
    first = prune(tmp_path / "first", model, 0.3)
    check(first, model, 0.3, 1)
    start = {"start_from": str(tmp_path / "first/export")}
    again = prune(tmp_path / "again", model, 0.5, **start)
    check(again, model, 0.5, 2)


def test_of_two_modules_one_is_pruned_before(tmp_path):
    """The targets of each count from its own dense module."""
    model = small_runs.behind_front_end()
    alone = {"module": "Transformer", "structures": conformer_structures}
    prune(tmp_path / "first", model, 0.4, **alone)
    before = load_export(tmp_path / "first/export")
    start = {"start_from": str(tmp_path / "first/export")}
    prune(tmp_path / "again", model, 0.5, **start)
    export = load_export(tmp_path / "again/export")
    assert len(export.steps) == 2
    assert 0 <= landing(export, model.dense(), 0.5) < 1
    assert before.key == "Transformer"
    assert export.history.module == model.module


@pytest.mark.parametrize(
    "family, way, inside",
    [
        ("Wav2Vec2", "start_from", ["value_dims"]),
        ("Hubert", "source", INSIDE_HEADS),
        ("WavLM", "source", INSIDE_HEADS),
    ],
)
def test_unequal_heads_of_every_family(
    tmp_path, dense_folder, family, way, inside
):
    structures = partial(wav2vec2_structures, kinds=["heads", *inside])
    source = dense_folder(family)
    _twice(tmp_path, source, family, way, 0.08, 0.15, structures=structures)


@pytest.mark.parametrize(
    "family, way, norms_first",
    [
        ("Wav2Vec2", "source", False),
        ("Hubert", "start_from", True),
        ("WavLM", "start_from", False),
    ],
)
def test_every_family_of_speech_encoders(
    tmp_path, dense_folder, family, way, norms_first
):
    source = dense_folder(family, norms_first=norms_first)
    _twice(tmp_path, source, family, way, 0.3, 0.5)


def _twice(tmp_path, source, family, way, first, second, **block):
    """Prunes an encoder twice, and checks both exports."""
    model = encoder(source, family)
    brain = prune(tmp_path / "first", model, first, **block)
    check(brain, model, first, 1)
    export, modules = tmp_path / "first/export", None
    if way == "source":
        modules = {**model.build(), "wav2vec2": swapped(export, family)}
    else:
        block["start_from"] = str(export)
    brain = prune(
        tmp_path / "again",
        model,
        second,
        modules,
        distillation=DISTILLATION,
        **block,
    )
    check(brain, model, second, 2)
    config = json.loads((tmp_path / "again/export/config.json").read_text())
    edits = [next(iter(e)) for e in config["sb_prune"]["edits"]]
    assert edits == ["cut", "fold", "cut"]  # what was folded stays plain
    lobe = swapped(tmp_path / "again/export", family)
    assert_same_but_for_rounding(
        model.predictions({**brain.modules, "wav2vec2": lobe}),
        model.predictions(brain.modules),
    )
    assert model.predictions(brain.modules).isfinite().all()


def test_the_source_stays_while_runs_start_from_one_another(
    tmp_path, dense_folder
):
    """A lobe has the first cut from its source, and gets the second."""
    model = encoder(dense_folder())
    prune(tmp_path / "first", model, 0.2)

    def modules():
        return {**model.build(), "wav2vec2": swapped(tmp_path / "first/export")}

    prune(tmp_path / "second", model, 0.35, modules())
    start = {"start_from": str(tmp_path / "second/export")}
    third = prune(tmp_path / "third", model, 0.5, modules(), **start)
    check(third, model, 0.5, 3)


def test_layers_left_out_then_pruned_then_pruned_again(tmp_path, dense_folder):
    model = encoder(dense_folder(layers=3))
    layers = {
        "module": model.module,
        "structures": wav2vec2_structures,
        "criterion": LastLayers(removed=1),
    }
    block = pruning(tmp_path / "first", model, 0.5)
    blocks = {"layer_pruning": layers, "pruning": block}
    first = small_runs.fit(make(tmp_path / "first", model, blocks), model)
    export = check(first, model, 0.5, 2)
    assert list(export.steps[0].declaration.by_name) == [
        f"model.encoder.layers.{i}.whole" for i in range(3)
    ]
    start = {"start_from": str(tmp_path / "first/export")}
    again = prune(tmp_path / "again", model, 0.65, **start)
    check(again, model, 0.65, 3)


def test_layers_are_left_out_of_what_was_pruned(tmp_path, dense_folder):
    model = encoder(dense_folder(layers=3))
    prune(tmp_path / "first", model, 0.3)
    layers = {
        "module": model.module,
        "structures": wav2vec2_structures,
        "criterion": LastLayers(removed=1),
        "start_from": str(tmp_path / "first/export"),
    }
    block = pruning(tmp_path / "again", model, 0.7)
    blocks = {"layer_pruning": layers, "pruning": block}
    again = small_runs.fit(make(tmp_path / "again", model, blocks), model)
    check(again, model, 0.7, 3)


@pytest.mark.parametrize("family", ["Hubert", "WavLM"])
def test_a_student_is_pruned_twice(
    tmp_path, dense_folder, make_wav2vec2, family
):
    source = tmp_path / "student"
    teacher = make_wav2vec2(family, layers=3)
    student = make_student(teacher, reuse=[False, True, False])
    student.save_pretrained(source)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(source)
    model = encoder(dense_folder(family, layers=3), family)
    kinds = ["ffn_modules", "ffn_units"]
    block = {"structures": partial(wav2vec2_structures, kinds=kinds)}
    lobe = partial(swapped, family=family)
    modules = {**model.build(), "wav2vec2": lobe(source)}
    first = prune(tmp_path / "first", model, 0.15, modules, **block)
    assert first.pruning.facts["cut_max_abs_diff"] <= 1e-5
    modules = {**model.build(), "wav2vec2": lobe(tmp_path / "first/export")}
    again = prune(
        tmp_path / "again",
        model,
        0.3,
        modules,
        distillation=DISTILLATION,
        teacher=str(tmp_path / "first/export"),
        **block,
    )
    assert again.pruning.facts["cut_max_abs_diff"] <= 1e-5
    export = load_export(tmp_path / "again/export")
    assert len(export.steps) == 2
    student = export.history.original()
    assert 0 <= landing(export, student, 0.3) < 1
    config = json.loads((tmp_path / "again/export/config.json").read_text())
    edits = [next(iter(e)) for e in config["sb_prune"]["edits"]]
    assert edits == ["student", "cut", "fold", "cut"]
    assert_same_but_for_rounding(
        model.predictions(
            {**again.modules, "wav2vec2": lobe(tmp_path / "again/export")}
        ),
        model.predictions(again.modules),
    )


@pytest.mark.parametrize("format", ["format_1", "format_2"])
@pytest.mark.parametrize("way", ["start_from", "source"])
def test_an_old_export_of_an_encoder_is_the_start(tmp_path, format, way):
    old = shutil.copytree(FIXTURES / format / "wav2vec2", tmp_path / "old")
    model = encoder(_dense_of(old, tmp_path / "dense"))
    modules, start = None, {"start_from": str(old)}
    if way == "source":
        modules, start = {**model.build(), "wav2vec2": swapped(old)}, {}
    brain = prune(tmp_path / "again", model, 0.8, modules, **start)
    export = check(brain, model, 0.8, len(load_export(old).steps) + 1)
    assert len(export.steps) > 1
    cuts = [n for n, s in sizes_of(load_export(old)).items() if s]
    assert len(sizes_of(export)) <= len(cuts)


def _dense_of(export, folder):
    """A Hugging Face folder of the dense model that an export was made of."""
    config = json.loads((export / "config.json").read_text())
    ours = [key for key in config if key.startswith("sb_prune")]
    for key in ours:
        del config[key]
    assert ours
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    shutil.copy(export / "preprocessor_config.json", folder)
    return folder


# ---------------------------------------------------------- what is carried on


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Folder of a run that pruned a Conformer by 30%."""
    folder = tmp_path_factory.mktemp("first")
    prune(folder, small_runs.conformer(), 0.3)
    return folder


def begun(folder, model, target, modules=None, **block):
    """A Brain that is ready to train."""
    block = pruning(folder, model, target, **block)
    brain = make(folder, model, {"pruning": block}, modules)
    loader = {"batch_size": None}
    with pytest.raises(KeyboardInterrupt):
        brain.on_fit_start = _interrupt
        brain.fit(
            brain.hparams.epoch_counter,
            model.batches(),
            train_loader_kwargs=loader,
        )
    return brain


def _interrupt():
    raise KeyboardInterrupt


def test_all_modules_start_with_the_weights_of_the_export(first, tmp_path):
    model = small_runs.conformer()
    start = {"start_from": str(first / "export")}
    brain = begun(tmp_path, model, 0.5, **start)
    export = load_export(first / "export").hparams
    (file,) = (tmp_path / "save/dense").rglob("model.ckpt")
    ours = torch.load(file, weights_only=True)
    for number, name in enumerate(model.entries):
        theirs = export[name].state_dict()
        prefix = f"{number}."
        assert {
            key.removeprefix(prefix) for key in ours if key.startswith(prefix)
        } == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(ours[prefix + key], value)
    assert brain.modules["lin"].weight.requires_grad


def test_an_output_layer_of_another_task_stays(first, tmp_path, caplog):
    model = small_runs.conformer()
    other = torch.nn.Linear(16, 7)
    before = other.weight.detach().clone()
    modules = {**model.build(), "lin": other}
    changed = small_runs.Model(
        **{
            **vars(model),
            "yaml": model.yaml.replace("out_features: 3", "out_features: 7"),
        }
    )
    start = {"start_from": str(first / "export")}
    with caplog.at_level(logging.WARNING):
        brain = begun(tmp_path, changed, 0.5, modules, **start)
    assert "lin has other shapes, and stays as this recipe made it" in (
        caplog.text
    )
    assert torch.equal(brain.modules["lin"].weight, before)


def test_the_teacher_is_the_model_at_the_start(first, tmp_path):
    model = small_runs.conformer()
    brain = prune(
        tmp_path,
        model,
        0.5,
        start_from=str(first / "export"),
        distillation=DISTILLATION,
    )
    _check_teacher(brain, load_export(first / "export").hparams)


def test_the_teacher_is_a_dense_run(first, tmp_path):
    """It has more units than its student, in the same layers."""
    model = small_runs.conformer()
    dense = small_runs.fit(_dense_run(tmp_path / "dense", model), model)
    brain = prune(
        tmp_path / "again",
        model,
        0.5,
        start_from=str(first / "export"),
        distillation=DISTILLATION,
        teacher=str(tmp_path / "dense/save"),
    )
    _check_teacher(brain, dense.modules)
    check(brain, model, 0.5, 2)


def test_evaluation_needs_no_teacher(tmp_path):
    model = small_runs.conformer()
    small_runs.fit(_dense_run(tmp_path / "dense", model), model)
    block = small_runs.pruning(
        tmp_path,
        model,
        0.5,
        distillation=DISTILLATION,
        teacher=str(tmp_path / "dense/save"),
    )
    small_runs.fit(make(tmp_path, model, {"pruning": block}), model)
    shutil.rmtree(tmp_path / "dense")
    alone = make(tmp_path, model, {"pruning": block})
    alone.evaluate(model.batches(), test_loader_kwargs={"batch_size": None})
    assert alone.pruning.is_cut and alone.pruning.distiller is None


def test_an_encoder_learns_from_the_dense_run(tmp_path, dense_folder):
    """Its teacher is under weight norm, the student is folded already."""
    model = encoder(dense_folder())
    small_runs.fit(_dense_run(tmp_path / "dense", model), model)
    prune(tmp_path / "first", model, 0.3)
    brain = prune(
        tmp_path / "again",
        model,
        0.5,
        start_from=str(tmp_path / "first/export"),
        distillation=DISTILLATION,
        teacher=str(tmp_path / "dense/save"),
    )
    check(brain, model, 0.5, 2)


def test_the_teacher_is_another_export(first, tmp_path):
    model = small_runs.conformer()
    start = {"start_from": str(first / "export")}
    prune(tmp_path / "half", model, 0.5, **start)
    brain = prune(
        tmp_path / "again",
        model,
        0.6,
        start_from=str(tmp_path / "half/export"),
        distillation=DISTILLATION,
        teacher=str(first / "export"),
    )
    _check_teacher(brain, load_export(first / "export").hparams)
    check(brain, model, 0.6, 3)


def _dense_run(folder, model):
    brain = make(folder, model, {})
    brain.on_stage_end = lambda *_, **__: brain.checkpointer.save_and_keep_only(
        meta={}
    )
    return brain


def _check_teacher(brain, expected):
    copies = brain.pruning.distiller.teacher._copies
    assert copies.keys() == {"Transformer", "lin"}
    for name, copied in copies.items():
        theirs = expected[name].state_dict()
        assert copied.state_dict().keys() == theirs.keys()
        for key, value in copied.state_dict().items():
            assert torch.equal(value, theirs[key])


def test_the_export_is_the_same_in_a_new_process(first, tmp_path):
    model = small_runs.conformer()
    start = {"start_from": str(first / "export")}
    brain = prune(tmp_path, model, 0.5, **start)
    (tmp_path / "load.py").write_text(LINES)
    done = run_forked(
        tmp_path / "load.py", tmp_path / "export", tmp_path / "state.pt"
    )
    assert done.returncode == 0, done.stderr
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    ours = brain.hparams.model.state_dict()
    assert len(loaded) == len(ours)
    for value, (name, expected) in zip(loaded.values(), ours.items()):
        assert torch.equal(value, expected), name


def test_a_run_that_was_pruned_again_goes_on(first, tmp_path):
    """The same command once more trains nothing, and exports the same."""
    model = small_runs.conformer()
    start = {"start_from": str(first / "export")}
    once = prune(tmp_path, model, 0.5, **start)
    expected = model.predictions(once.modules)
    shutil.rmtree(tmp_path / "export")
    twice = prune(tmp_path, model, 0.5, **start)
    assert torch.equal(model.predictions(twice.modules), expected)
    check(twice, model, 0.5, 2)


def test_only_some_structures_were_declared_before(tmp_path):
    """Each cut may be declared by another function."""
    model = small_runs.conformer()
    kinds = partial(conformer_structures, kinds=["ffn_units"])
    prune(tmp_path / "first", model, 0.2, structures=kinds)
    heads = partial(conformer_structures, kinds=["heads", "conv_channels"])
    start = {"start_from": str(tmp_path / "first/export")}
    again = prune(tmp_path / "again", model, 0.4, structures=heads, **start)
    check(again, model, 0.4, 2)


def test_a_front_end_alone_after_its_transformer(tmp_path):
    """What was pruned in a module of several stays known."""
    model = small_runs.behind_front_end()
    prune(tmp_path / "first", model, 0.3)
    start = {
        "start_from": str(tmp_path / "first/export"),
        "module": "CNN",
        "structures": front_end_structures,
    }
    with pytest.raises(ValueError, match="write module: .'CNN', 'Transformer"):
        prune(tmp_path / "again", model, 0.5, **start)
