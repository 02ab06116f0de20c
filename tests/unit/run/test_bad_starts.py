"""What is wrong with the start of a run is said before anything trains.

Exports that are damaged, edited or of something else, as `start_from`, as
`teacher` and as the `source` of a lobe; targets below what is gone; an
`inference` YAML of another model; a run that has lost its start.
"""

import json
import re
import shutil
from functools import partial

import pytest
import small_runs
import transformers
from small_runs import fit, make, prune, pruning

from sb_prune import (
    LayerwiseDistillation,
    front_end_structures,
    lobes,
)
from sb_prune.depth import LastLayers
from sb_prune.export.loading import ExportError, load_export

DISTILLATION = partial(LayerwiseDistillation, outputs=["lin"])
YAML = "hyperparams.yaml"
COPY = "copy the whole (export )?folder again"
DENSE = "write the save folder of a dense run, or an export"


@pytest.fixture(scope="module")
def speech(tmp_path_factory, make_wav2vec2):
    """The recipe of a small wav2vec 2.0."""
    folder = tmp_path_factory.mktemp("dense") / "wav2vec2"
    make_wav2vec2().save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return small_runs.encoder(folder)


@pytest.fixture(scope="module")
def models(speech):
    """Recipes of two families, by the entry that is pruned."""
    return {"Transformer": small_runs.conformer(), "wav2vec2": speech}


@pytest.fixture(scope="module")
def exports(tmp_path_factory, models):
    """Exports of both, of which 30% are gone."""
    folders = {entry: tmp_path_factory.mktemp(entry) for entry in models}
    for entry, model in models.items():
        prune(folders[entry], model, 0.3)
    return {entry: folder / "export" for entry, folder in folders.items()}


def refusal(
    folder, model, target=0.5, yaml=None, layers=None, begun=False, **block
):
    """Why a run is refused. Nothing was trained, and nothing is written.

    Arguments
    ---------
    folder : Path
        The output folder.
    model : Model
    target : float
    yaml : str, optional
        The inference YAML; by default that of the model.
    layers : dict, optional
        Block `layer_pruning` in place of the other.
    begun : bool
        Whether it is the first batch that is refused.
    block : dict
        Changes in the block `pruning`.
    """
    blocks = {"pruning": pruning(folder, model, target, **block)}
    if layers is not None:
        blocks = {"layer_pruning": layers}
    if yaml is not None:
        (folder / "inference.yaml").write_text(yaml)
    brain = make(folder, model, blocks)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        fit(brain, model)
    assert brain.optimizer_step == 0
    assert not (folder / "export").exists()
    if not begun:
        assert not (folder / "save/run.json").exists()
    return str(caught.value)


# ------------------------------------------------------- how one is damaged


def without(file):
    return lambda folder: (folder / file).unlink()


def truncated(file, part=0.5):
    def damage(folder):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(part * len(content))])

    return damage


def edited(pattern, written, file=YAML):
    def damage(folder):
        text = (folder / file).read_text(encoding="utf-8")
        changed = re.sub(pattern, written, text, count=1)
        assert changed != text
        (folder / file).write_text(changed, encoding="utf-8")

    return damage


def damaged(export, damage, folder):
    """A copy of an export, in `folder`."""
    copy = shutil.copytree(export, folder / "damaged")
    damage(copy)
    return copy


UNITS = r"(ffn_module1.units: ')\d+( of 32): [^']*"
READ = rf"DAMAGED/hyperparams.yaml cannot be read .*%s.*{COPY}"
FIT = rf"DAMAGED/model.ckpt does not fit .* edited\?\): .*%s.*{COPY}"
DAMAGES = {
    "no weights": (without("model.ckpt"), f"DAMAGED/model.ckpt is .*; {COPY}"),
    "torn weights": (
        truncated("model.ckpt"),
        f"DAMAGED/model.ckpt is not the file that was exported.*{COPY}",
    ),
    "indices out of range": (
        edited(UNITS, r"\1 1\2: 32"),
        READ % r"ffn_module1.units: ' ?1 of 32: 32'",
    ),
    "more indices than counted": (
        edited(UNITS, r"\g<1>1\2: 0-1"),
        READ % "2 positions",
    ),
    "fewer units": (edited(UNITS, r"\g<1>1\2: 0"), FIT % "size mismatch"),
    "units of another size": (
        edited(r"'\d of 4: [^']*", "'1 of 5: 0"),
        READ % "has 5 units in the plan and 4 in the model",
    ),
    "a structure too many": (
        edited("( +)encoder.layers.0: ", r"\1encoder.9: '1 of 1: 0'\n\g<0>"),
        READ % "encoder.9 has 1 units in the plan and no in the model",
    ),
    "a structure of no layer": (
        edited("encoder.layers.2.mha_layer:", "encoder.layers.9.mha_layer:"),
        READ % r"encoder.layers.\d.mha_layer has .* in the plan and",
    ),
    "another module": (
        edited("( +)structures:", r"\1module: encoder.layers.0\n\g<0>"),
        READ % "no ConformerEncoder found in ConformerEncoderLayer",
    ),
    "no such module": (
        edited("( +)structures:", r"\1module: nowhere\n\g<0>"),
        READ % "nowhere",
    ),
    "another function": (
        edited("sb_prune.conformer_s", "sb_prune.transformer_s"),
        READ % "no TransformerEncoder found",
    ),
    "no such function": (
        edited("sb_prune.conformer_s", "sb_prune.no_s"),
        READ % "no such entity as sb_prune.no_structures",
    ),
    "no such edit": (edited("sb_prune.Cut", "sb_prune.Knife"), READ % "Knife"),
    "no edit": (edited(r"!new:sb_prune.Cut", r""), READ % "no list of edits"),
    "one edit for all": (
        edited(r"edits:[\s\S]*?\nlin:", "edits: 3\nlin:"),
        READ % "edits: is no list of edits",
    ),
    "no edits": (
        edited(r"edits:[\s\S]*?\nlin:", "edits: []\nlin:"),
        FIT % "Missing key",
    ),
    "nothing about edits": (
        edited(r"  edits:[\s\S]*?\nlin:", "lin:"),
        READ % "it has no 'edits'",
    ),
    "a plan of nothing": (
        edited(r"plan:\n[\s\S]*?\nlin:", "plan: 3\nlin:"),
        READ % "'int' object",
    ),
    "another stock module": (
        edited("d_model: 16", "d_model: 8"),
        READ % "made for another architecture",
    ),
    "no modules": (
        edited(r"\nmodules:\n  encoder.*\n", "\n"),
        READ % "it has no 'modules'",
    ),
    "no pretrainer": (
        edited(r"pretrainer:[\s\S]*", ""),
        READ % "it has no 'pretrainer'",
    ),
    "a pretrainer of nothing": (
        edited(r"pretrainer:[\s\S]*", "pretrainer: 3\n"),
        READ % "loadables",
    ),
    "no YAML": (truncated(YAML, 0), f"DAMAGED/{YAML} is no export.*; name the"),
    "half a YAML": (truncated(YAML), READ % ""),
    "a picture": (
        lambda f: (f / YAML).write_bytes(b"\x89PNG\xff\xfe"),
        READ % "'utf-8' codec",
    ),
}


@pytest.mark.parametrize(
    "key, name",
    [
        *(("start_from", name) for name in DAMAGES),
        *(("teacher", name) for name in list(DAMAGES)[:3]),
    ],
)
def test_a_damaged_export(models, exports, tmp_path, key, name):
    damage, told = DAMAGES[name]
    export = damaged(exports["Transformer"], damage, tmp_path)
    block = {"distillation": DISTILLATION, key: str(export)}
    message = refusal(tmp_path, models["Transformer"], **block)
    told = told.replace("DAMAGED", re.escape(str(export)))
    assert re.match(f"{key}: {told}", message), message
    assert "\n" not in message
    assert len(message) < 800


@pytest.mark.parametrize("file", ["model.safetensors", "lin.ckpt"])
@pytest.mark.parametrize("damage", [without, truncated])
def test_a_damaged_export_of_an_encoder(
    models, exports, tmp_path, file, damage
):
    export = damaged(exports["wav2vec2"], damage(file), tmp_path)
    message = refusal(tmp_path, models["wav2vec2"], start_from=str(export))
    assert re.match(f"start_from: {export / file} is .*; {COPY}", message)


@pytest.mark.filterwarnings("ignore:.*meta parameter")
def test_a_yaml_that_ends_after_any_line(exports, tmp_path):
    """Those of the plan are alike, and every tenth will do."""
    export = damaged(exports["Transformer"], lambda _: None, tmp_path)
    lines = (export / YAML).read_text(encoding="utf-8").splitlines()
    ends = [
        number
        for number, line in enumerate(lines)
        if number % 10 == 0 or not line.startswith("      ")
    ]
    for number in ends:
        (export / YAML).write_text("\n".join(lines[:number]), encoding="utf-8")
        with pytest.raises(ExportError, match=rf"{export}.*; \w+"):
            load_export(export)


# --------------------------------------------------------- what is no start


def a_file(folder):
    (folder / "notes").write_text("years of work")
    return folder / "notes"


def an_empty_folder(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def any_folder(folder):
    (folder / "pictures").mkdir()
    (folder / "pictures/a.png").touch()
    return folder / "pictures"


def a_hugging_face_folder(folder):
    (folder / "hub").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / "hub" / name).write_text("{}")
    return folder / "hub"


def an_output_folder(folder):
    """As SpeechBrain leaves it: with the recipe's YAML in it."""
    (folder / "results/save").mkdir(parents=True)
    (folder / "results" / YAML).write_text("seed: 1\nmodules: {}\n")
    return folder / "results"


def a_folder_of_pruning(folder):
    (folder / "save/prune").mkdir(parents=True)
    (folder / "save/run.json").write_text("{}")
    return folder / "save"


PLACES = [
    (lambda folder: folder / "nowhere", f"does not exist; {DENSE}"),
    (a_file, f"is a file; {DENSE}"),
    (an_empty_folder, f"is empty; {DENSE}"),
    (any_folder, r"has no checkpoint with \['model'\]; write the save folder"),
    (an_output_folder, "is the output_folder of a run; write its `save` if"),
    (a_folder_of_pruning, "has the checkpoints of a pruning; write its export"),
]


@pytest.mark.parametrize(
    "key, where, told",
    [
        *(("start_from", *place) for place in PLACES),
        *(("teacher", *place) for place in PLACES[::3]),
        *(("layer_pruning", *place) for place in PLACES[::3]),
    ],
)
def test_what_is_neither_a_run_nor_an_export(
    models, tmp_path, key, where, told
):
    model, place = models["Transformer"], where(tmp_path)
    block, layers = {"distillation": DISTILLATION, key: str(place)}, None
    if key == "layer_pruning":
        key, block = "start_from", {}
        layers = {
            "module": model.module,
            "structures": model.structures,
            "criterion": LastLayers(removed=1),
            "start_from": str(place),
        }
    message = refusal(tmp_path / "run", model, layers=layers, **block)
    assert re.match(f"{key}: {place} {told}", message), message


def test_a_hugging_face_folder(models, tmp_path):
    """It is what a lobe loads; only the lobe's source may be one."""
    place = a_hugging_face_folder(tmp_path)
    model = models["wav2vec2"]
    message = refusal(tmp_path / "a", model, start_from=str(place))
    assert message == (
        f"start_from: {place} is a Hugging Face folder; write it as `source` "
        "of the lobe, and leave start_from out"
    )
    block = {"distillation": DISTILLATION, "teacher": str(place)}
    message = refusal(tmp_path / "b", model, **block)
    assert message == f"teacher: {place} is a Hugging Face folder; {DENSE}"


# ------------------------------------------------ exports of something else


@pytest.mark.parametrize(
    "ours, theirs", [("Transformer", "wav2vec2"), ("wav2vec2", "Transformer")]
)
def test_an_export_of_another_family(models, exports, tmp_path, ours, theirs):
    start = {"start_from": str(exports[theirs])}
    message = refusal(tmp_path, models[ours], **start)
    assert re.match(f"start_from: {exports[theirs]}: it is '{theirs}'", message)
    assert f"'{ours}' that `module` names; write an export of" in message


def test_another_family_under_the_same_name(exports, speech, tmp_path):
    """Both recipes call their encoder `Transformer`."""
    yaml = re.sub(r"wav2vec2(?=[:>])", "Transformer", speech.yaml)
    model = small_runs.Model(
        yaml,
        ["Transformer", "lin"],
        "Transformer",
        speech.structures,
        speech.compute,
        speech.shape,
    )
    start = {"start_from": str(exports["Transformer"])}
    message = refusal(tmp_path, model, **start)
    assert re.match(r"start_from: .*export: it was made from another", message)
    assert "there (a TransformerASR)" in message
    assert "in this recipe (a Wav2Vec2); write the values of" in message


def test_an_export_of_another_entry(exports, tmp_path):
    model = small_runs.behind_front_end()
    block = {"module": "CNN", "structures": front_end_structures}
    start = {"start_from": str(exports["Transformer"])}
    message = refusal(tmp_path, model, **block, **start)
    assert "it is 'Transformer' that was pruned there" in message
    assert "'CNN' that `module` names; write module: Transformer" in message


def test_an_export_of_another_size(exports, tmp_path):
    """The front-end feeds wider features."""
    model = small_runs.behind_front_end()
    start = {"start_from": str(exports["Transformer"])}
    message = refusal(tmp_path, model, **start)
    assert "has the shape (16, 6) there" in message
    assert "(16, 12) in this recipe" in message


@pytest.mark.parametrize("key", ["start_min_key", "start_max_key"])
@pytest.mark.parametrize("in_layers", [False, True])
def test_an_export_has_no_checkpoints(
    models, exports, tmp_path, key, in_layers
):
    model, layers = models["Transformer"], None
    start = {"start_from": str(exports["Transformer"]), key: "WER"}
    if in_layers:
        layers = {
            "module": model.module,
            "structures": model.structures,
            "criterion": LastLayers(removed=1),
            **start,
        }
    message = refusal(
        tmp_path, model, layers=layers, **({} if in_layers else start)
    )
    assert message == (
        f"{key}: 'WER' chooses among checkpoints, and start_from: "
        f"{start['start_from']} is an export, which has none; leave {key} out"
    )


@pytest.mark.parametrize(
    "target, milestones, told",
    [
        (0.2, (), r"target: 0.2 is not .*30.0% of the param.*; write more"),
        (0.6, [0.1, 0.4], r"pruning: milestones: 0.1 is not .*30.0% of the p"),
    ],
)
def test_less_than_is_gone(models, exports, tmp_path, target, milestones, told):
    message = refusal(
        tmp_path,
        models["Transformer"],
        target,
        milestones=milestones,
        start_from=str(exports["Transformer"]),
    )
    assert re.match(told, message), message


# ------------------------------------------------ the YAML of another model

YAMLS = {
    "Transformer": [
        ("d_model: 16", "d_model: 8"),
        ("d_ffn: 32", "d_ffn: 64"),
        ("nhead: 4", "nhead: 2"),
        ("kernel_size: 5", "kernel_size: 7"),
        ("num_encoder_layers: 3", "num_encoder_layers: 2"),
        ("num_encoder_layers: 3", "num_encoder_layers: 4"),
        ("conformer", "transformer"),
        ("conformer", "branchformer"),
        ("RelPosMHAXL", "RoPEMHA"),
        ("normalize_before: True", "normalize_before: False"),
        ("out_features: 3", "out_features: 4"),
        ("torch.nn.Linear", "torch.nn.NoLinear"),
    ],
    "wav2vec2": [("out_features: 3", "out_features: 4")],
}


@pytest.mark.parametrize(
    "again, entry, before, after",
    [
        (again, entry, *pair)
        for entry, pairs in YAMLS.items()
        for again in (False, True)
        for pair in (pairs if again else pairs[::4])
    ],
)
def test_the_yaml_of_another_model(
    models, exports, tmp_path, again, entry, before, after
):
    model = models[entry]
    assert before in model.yaml
    yaml = model.yaml.replace(before, after)
    start = {"start_from": str(exports[entry])} if again else {}
    message = refusal(tmp_path, model, yaml=yaml, **start)
    assert re.match(
        rf"inference: {tmp_path}/inference.yaml: "
        r"(it builds another model|\w+ cannot be built)",
        message,
    ), message
    assert "write the values of the training YAML" in message


def test_the_yaml_of_something_else(models, exports, tmp_path):
    name = re.escape(f"inference: {tmp_path}/inference.yaml")
    model, export = models["Transformer"], exports["Transformer"]
    for yaml, told in (
        (models["wav2vec2"].yaml, "has no Transformer, which is pruned; write"),
        ((export / YAML).read_text(), "is the YAML of an export; write that"),
    ):
        start = {"start_from": str(export)}
        message = refusal(tmp_path, model, yaml=yaml, **start)
        assert re.match(f"{name} {told}", message), message


# ----------------------------------------------------------------- teachers


@pytest.fixture(scope="module")
def other(tmp_path_factory, models):
    """Function: what the YAML says, and instead -> an export of that model."""
    model = models["Transformer"]

    def make(*changes):
        yaml = model.yaml
        for before, after in changes:
            yaml = yaml.replace(before, after)
        folder = tmp_path_factory.mktemp("other")
        prune(folder, small_runs.Model(**{**vars(model), "yaml": yaml}), 0.3)
        return folder / "export"

    return make


def test_a_teacher_of_another_recipe(models, exports, tmp_path):
    place = exports["wav2vec2"]
    block = {"distillation": DISTILLATION, "teacher": str(place)}
    message = refusal(tmp_path, models["Transformer"], **block)
    assert message == (
        f"teacher: {place} has no Transformer, which is to learn from it; "
        "write a dense run of this recipe, or an export of it"
    )


@pytest.mark.parametrize(
    "changes, begun, told",
    [
        ([("layers: 3", "layers: 2")], False, "Transformer has no encoder.lay"),
        (
            [("d_model: 16", "d_model: 32"), ("es: 16", "es: 32")],
            True,
            "Transformer.encoder.layers gives (2, 13, 32), that of the student",
        ),
    ],
)
def test_a_teacher_of_another_size(
    models, exports, tmp_path, other, changes, begun, told
):
    message = refusal(
        tmp_path,
        models["Transformer"],
        begun=begun,
        distillation=DISTILLATION,
        teacher=str(other(*changes)),
        start_from=str(exports["Transformer"]),
    )
    assert message.startswith(f"teacher: {told}"), message
    assert "write a teacher" in message


# -------------------------------------------------------- sources of a lobe


def with_cut(change):
    """Changes the cut in config.json."""

    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (cut, *_) = config["sb_prune"]["edits"]
        change(cut["cut"], cut["cut"]["plan"])
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def with_entry(**changes):
    """Changes the entry `sb_prune` in config.json; None deletes."""

    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        config["sb_prune"].update(changes)
        for key in [k for k, v in changes.items() if v is None]:
            del config["sb_prune"][key]
        (folder / "config.json").write_text(json.dumps(config))

    return damage


FFN = "encoder.layers.0.feed_forward.units"
SOURCES = {
    "no weights": (without("model.safetensors"), "named model.safetensors"),
    "torn weights": (truncated("model.safetensors"), "is not the file that"),
    "indices out of range": (
        with_cut(lambda _, plan: plan.update({FFN: "1 of 32: 32"})),
        f"cannot read {FFN}: '1 of 32: 32'",
    ),
    "fewer units": (
        with_cut(lambda _, plan: plan.update({FFN: "1 of 32: 0"})),
        "does not fit the encoder that config.json describes",
    ),
    "a structure too many": (
        with_cut(lambda _, plan: plan.update({"encoder.9": "1 of 1: 0"})),
        "encoder.9 has 1 units in the plan and no in the model",
    ),
    "a structure too few": (
        with_cut(lambda _, plan: plan.pop(FFN)),
        f"{FFN} has no units in the plan and 32 in the model",
    ),
    "no plan": (with_cut(lambda cut, _: cut.pop("plan")), "has no 'plan'"),
    "a plan of nothing": (
        with_cut(lambda cut, _: cut.update(plan=3)),
        "a Cut, does not fit the model",
    ),
    "no such kind": (
        with_cut(lambda cut, _: cut.update(kinds=["toes"])),
        r"kinds: \['toes'\] cannot be cut here",
    ),
    "another function": (
        with_cut(lambda cut, _: cut.update(structures="no_structures")),
        "sb_prune has no function 'no_structures'",
    ),
    "no edits": (with_entry(edits=None), "it has no 'edits'"),
    "edits of nothing": (with_entry(edits=[3]), "'int' object"),
    "another model": (
        edited(
            '"intermediate_size": 32', '"intermediate_size": 64', "config.json"
        ),
        "has 32 units in the plan and 64 in the model",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_damaged_source(exports, tmp_path, name):
    damage, told = SOURCES[name]
    export = damaged(exports["wav2vec2"], damage, tmp_path)
    with pytest.raises(ValueError) as caught:
        lobes.Wav2Vec2(str(export), str(export))
    message = str(caught.value)
    assert re.match(f"source: {export}.*{told}.*; {COPY}$", message), message


# ------------------------------------------------ a run that lost its start


@pytest.fixture(scope="module")
def lost(models, exports, tmp_path_factory):
    """A second pruning whose `dense` is torn, and how it was started."""
    folder = tmp_path_factory.mktemp("lost")
    start = shutil.copytree(exports["Transformer"], folder / "start")
    block = {"start_from": str(start)}
    prune(folder / "again", models["Transformer"], 0.5, **block)
    (weights,) = (folder / "again/save/dense").rglob("model.ckpt")
    truncated(weights.name)(weights.parent)
    return folder / "again", start


def test_the_snapshot_is_torn_and_the_start_gone(models, exports, lost):
    """Gone, then another, then put back."""
    folder, start = lost
    again = partial(prune, folder, models["Transformer"], 0.5)
    shutil.rmtree(start)
    with pytest.raises(ValueError) as caught:
        again(start_from=str(start))
    assert str(caught.value) == (
        f"output_folder: {folder}/save has lost its dense/, the model at the "
        f"start, and it cannot be read again (start_from: {start} does not "
        f"exist; {DENSE}); put back what start_from names, or write another "
        "output_folder"
    )
    assert (folder / "save/cut").is_dir()  # nothing else is touched
    shutil.copytree(folder / "export", start)
    with pytest.raises(ValueError) as caught:
        again(start_from=str(start))
    said = f"start_from: {start} is another model now; put back the one that"
    assert said in str(caught.value)
    shutil.rmtree(start)
    shutil.copytree(exports["Transformer"], start)
    again(start_from=str(start))
    assert (folder / "save/dense").is_dir()
    assert (folder / "save/torn-dense").is_dir()
