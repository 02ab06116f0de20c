"""The benchmarks of methods: their runs are what their tables say they are."""

import importlib
import json
from functools import partial
from itertools import islice
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from tiny_whisper import write_tiny_whisper
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
)

from sb_prune import (
    LayerSettings,
    MACBudget,
    ParameterBudget,
    lobes,
    local_score,
    magnitude_score,
    parameter_cost,
    taylor_score,
    wav2vec2_structures,
    whisper_structures,
)
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.architectures.wav2vec2 import KINDS
from sb_prune.demo.encoder import encoder_shape, write_untrained
from sb_prune.run.descriptions import described
from sb_prune.run.settings import PruningSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark_module(monkeypatch):
    """Function: imports a benchmark as if it were run as a script."""
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    return importlib.import_module


@pytest.fixture
def cells(benchmark_module):
    return benchmark_module("cells")


@pytest.fixture
def methods(benchmark_module):
    return benchmark_module("conformer_methods")


@pytest.fixture
def variants(benchmark_module):
    return benchmark_module("hj_variants")


@pytest.fixture
def agnostic(benchmark_module):
    return benchmark_module("task_agnostic")


@pytest.fixture
def block(methods, tmp_path, monkeypatch):
    """Function: method -> the pruning block of its YAML."""
    monkeypatch.chdir(tmp_path)

    def load(method):
        values = {"dense_folder": "dense", "data_folder": "data"}
        return load_hyperpyyaml(methods.pruning_yaml(method), values)["pruning"]

    return load


def kinds_of(structures):
    """The kinds that a block prunes in a wav2vec 2.0; by default all."""
    structures = partial(structures)
    assert structures.func is wav2vec2_structures
    return list(structures.keywords.get("kinds", KINDS))


def test_every_method_makes_a_run(methods, block):
    for method in methods.all_methods():
        if method != "small_dense":
            PruningSettings(**block(method))


def test_methods_differ_in_what_their_names_say(block):
    soft, straight = block("l0_soft"), block("l0_straight+distill")
    assert not soft["gates"]().straight_through
    assert straight["gates"]().straight_through
    assert soft["distillation"] is None and straight["distillation"]
    assert block("taylor")["score"] is taylor_score
    kinds = block("l0_soft")["structures"].keywords["kinds"]
    assert kinds == block("magnitude")["structures"].keywords["kinds"]
    assert "layers" in block("l0_soft_modules")["structures"].keywords["kinds"]


@pytest.mark.parametrize("level", [0.5, 0.75])
def test_small_dense_is_as_large_as_what_pruning_leaves(methods, level):
    def size(d_model, d_ffn):
        encoder = ConformerEncoder(
            methods.LAYERS,
            d_model=d_model,
            d_ffn=d_ffn,
            nhead=4,
            kernel_size=methods.KERNEL,
        )
        return sum(p.numel() for p in encoder.parameters())

    budget = size(methods.WIDTH, 4 * methods.WIDTH) * (1 - level)
    assert 0.99 * budget < size(**methods.small_model(level)) <= budget


def test_cells_are_kept_and_only_the_missing_are_run(cells, methods, tmp_path):
    table = cells.Table(tmp_path / "table.json")
    table.add("dense/1", 2.0)
    table.add("taylor/0.5/1", 3.0)
    again = cells.Table(tmp_path / "table.json")
    ran = []

    def run(key):
        ran.append(key)
        return 1.0

    keys = ["dense/1", "taylor/0.5/1", "random/0.5/1", "random/0.5/2"]
    other = cells.Table(tmp_path / "table.json")  # of another process
    again.fill(keys, run, jobs=1)
    assert ran == keys[2:]
    other.add("random/0.5/3", 4.0)
    summary = methods.summarise(cells.Table(table.path).cells)
    assert summary["table"]["random"] == {"0.5": [1.0, 1.0, 4.0]}
    assert summary["dense"] == [2.0]


def test_a_run_that_two_cells_start_from_runs_once(cells, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[-1].partition('=')[2])\n"
        "folder.mkdir()\n"  # a second one would fail
        "time.sleep(0.5)\n"
        "(folder / 'done').write_text(' '.join(sys.argv[1:3]))\n"
    )
    runs = cells.Runs(tmp_path)
    table = cells.Table(tmp_path / "table.json")

    def run(key):
        output = runs.run("dense", script, "my.yaml", "done", {"seed": 3})
        return (output / "done").read_text()

    table.fill(["a", "b"], run, jobs=2)
    assert table.cells == dict.fromkeys("ab", "my.yaml --device=cpu")


def test_a_cell_that_fails_leaves_the_others(cells, tmp_path):
    table = cells.Table(tmp_path / "table.json")

    def run(key):
        if key == "b":
            raise OSError("no space")
        return key

    with pytest.raises(OSError, match="no space"):
        table.fill(["a", "b", "c"], run, jobs=1)
    assert cells.Table(table.path).cells == {"a": "a", "c": "c"}


# -------------------------------------------------------------- hj_variants


@pytest.mark.parametrize("task", ["asr", "slu"])
def test_variants_differ_in_what_their_names_say(
    variants, task, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_untrained(str(tmp_path / "encoder"), **encoder_shape(16))
    values = {
        "dense_folder": "dense",
        "data_folder": "data",
        "wav2vec2_hub": str(tmp_path / "encoder"),
        "encoder_dim": 16,
        "target": 0.6,
    }
    blocks = {}
    for variant in variants.VARIANTS:
        if variant != "small_dense":
            text = variants.pruning_yaml(task, variant)
            monkeypatch.syspath_prepend(variants.SLURP)
            blocks[variant] = load_hyperpyyaml(text, values)["pruning"]
            PruningSettings(**blocks[variant])

    def kinds(variant):
        return kinds_of(blocks[variant]["structures"])

    for variant in ("mac", "transformer_only", "magnitude"):
        budget = blocks[variant]["budget"](0.6)
        assert isinstance(budget, MACBudget)
        assert budget.frames == variants.SAMPLES
    for variant in ("size", "sepsize"):
        budget = blocks[variant].get("budget", ParameterBudget)
        assert budget is ParameterBudget
    assert len(blocks["sepsize"]["target"]) == 2
    assert {*kinds("mac")} - {*kinds("transformer_only")} == {
        "front_end_channels"
    }
    assert kinds("size") == kinds("sepsize") == kinds("mac")
    assert "front_end_channels" in kinds("magnitude")
    assert blocks["magnitude"]["score"] is magnitude_score
    assert "gates" not in blocks["magnitude"]
    assert blocks["magnitude"]["distillation"] and blocks["mac"]["distillation"]


def test_macs_of_width_are_those_that_count(variants, tmp_path):
    torch.manual_seed(0)
    write_untrained(str(tmp_path), **encoder_shape(24))
    assert variants.encoder_macs(tmp_path) == variants.macs_of_width(24)


@pytest.mark.parametrize("level", ["0.4", "0.6"])
def test_small_encoder_has_the_macs_that_pruning_leaves(variants, level):
    left = variants.DENSE_MACS * (1 - float(level))
    width = variants.small_width(float(level))
    assert variants.macs_of_width(width) <= left
    assert variants.macs_of_width(width + 4) > left


def test_shape_is_that_of_the_encoder_in_the_yaml(variants):
    assert variants.macs_of_width(128) == variants.DENSE_MACS
    yaml = variants.ASR.yaml("demo_encoder.yaml").read_text()
    for key, value in encoder_shape(128).items():
        assert f"    {key}: {value}\n" in yaml


def test_summary_has_a_list_for_each_variant(variants):
    cell = {"wer": 3.0, "macs_reduction": 0.6}
    slu = {"intent_accuracy": 90.0, "SLU_F1": 70.0, "macs_reduction": 0.61}
    cells = {
        "asr/dense/1": cell,
        "asr/mac/0.6/1": cell,
        "asr/mac/0.6/2": cell,
        "asr/mac/0.4/1": cell,
        "slu/mac/0.6/1": slu,
    }
    summary = variants.summarise(cells)
    assert summary["asr"] == {"dense": [3.0], "mac": [3.0, 3.0]}
    assert summary["asr_at_0.4"] == {"mac": [3.0]}
    assert summary["slu"] == {"mac": [90.0]}
    assert summary["slu_f1"] == {"mac": [70.0]}
    assert summary["macs_reduction"]["slu"] == {"mac": [0.61]}
    assert "3.00 ± 0.00 (2)" in variants.as_markdown(summary)


# ------------------------------------------------------------ task_agnostic


@pytest.fixture
def compression(agnostic, tmp_path, monkeypatch):
    """Function: model -> its loaded YAML, of a small encoder."""
    monkeypatch.chdir(tmp_path)
    write_untrained(str(tmp_path / "encoder"), **encoder_shape(128))

    def load(model):
        pruned = model in agnostic.PRUNED
        options = (
            agnostic.PRUNING
            if pruned
            else {**agnostic.DISTILLING, **agnostic.student(model)}
        )
        values = {
            **options,
            "data_folder": "data",
            "output_folder": str(tmp_path / model),
            "wav2vec2_hub": str(tmp_path / "encoder"),
        }
        overrides = "".join(f"{k}: {v}\n" for k, v in values.items())
        return load_hyperpyyaml(agnostic.compression_yaml(model), overrides)

    return load


def test_pruned_models_differ_in_what_their_names_say(agnostic, compression):
    blocks = {m: compression(m)["pruning"] for m in agnostic.PRUNED}
    for block in blocks.values():
        PruningSettings(**block)
    kinds = {m: kinds_of(b["structures"]) for m, b in blocks.items()}
    inside = {"query_key_dims", "value_dims"}
    assert inside < {*kinds["fine_grained"]}
    assert kinds["soft_gates"] == kinds["fine_grained"]
    assert {*kinds["fine_grained"]} - {*kinds["coarse_heads"]} == inside
    assert {*kinds["dphubert"]} == {*kinds["coarse_heads"]}
    straight = {
        model: block["gates"].keywords["straight_through"]
        for model, block in blocks.items()
    }
    assert straight == {
        "fine_grained": True,
        "coarse_heads": True,
        "soft_gates": False,
        "dphubert": False,
        "fine_grained_slow": True,
        "coarse_heads_slow": True,
    }
    for model in agnostic.SLOW:
        assert kinds[model] == kinds[model.removesuffix("_slow")]
    steps = {m: b["gate_optimizer"].keywords["lr"] for m, b in blocks.items()}
    slow = {model for model, step in steps.items() if step == 0.05}
    assert slow == {*agnostic.SLOW}


def test_students_are_as_large_as_what_pruning_leaves(agnostic, compression):
    sizes = {}
    for model in agnostic.STUDENTS:
        loaded = compression(model)
        left = agnostic.size_of(loaded["teacher"]) * (1 - agnostic.SPARSITY)
        sizes[model] = agnostic.size_of(loaded["wav2vec2"])
        assert 0.9 * left < sizes[model] <= left
        assert (loaded["mask_share"] == 0) == (model == "narrow")
        attention = loaded["wav2vec2"].model.encoder.layers[1].attention
        assert hasattr(attention, "q_proj") == (model != "armhubert")
    assert sizes["maskhubert"] == sizes["narrow"]


# ---------------------------------------------------------- convexity_depth


@pytest.fixture
def depths(benchmark_module):
    return benchmark_module("convexity_depth")


@pytest.fixture
def load_depth(depths, tmp_path, monkeypatch):
    """Function: a depth or variant -> its loaded YAML, of a small encoder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(depths.COMMANDS)
    write_untrained(str(tmp_path / "encoder"), **encoder_shape(128))

    def load(what):
        values = {
            **depths.EVERY,
            **depths.training(what),
            "data_folder": "data",
            "output_folder": str(tmp_path / what),
            "wav2vec2_hub": str(tmp_path / "encoder"),
        }
        overrides = "".join(f"{k}: {v}\n" for k, v in values.items())
        return load_hyperpyyaml(depths.recipe_yaml(what), overrides)

    return load


def test_variants_of_a_depth_have_one_size(depths, load_depth):
    sizes = {}
    for what in ("2", *depths.VARIANTS):
        loaded = load_depth(what)
        LayerSettings(**loaded["layer_pruning"])
        model = loaded["wav2vec2"].model
        size = sum(p.numel() for p in model.parameters())
        assert size == depths.ALL
        layer = model.encoder.layers[0]
        assert sum(p.numel() for p in layer.parameters()) == depths.LAYER
        removed = loaded["layer_pruning"]["criterion"].removed
        size -= removed * depths.LAYER
        if "pruning" in loaded:
            PruningSettings(**loaded["pruning"])
            pruned = depths.ALL * (1 - loaded["pruning"]["target"])
            assert pruned < size  # gates have something left to do
            size = pruned
            assert loaded["pruning"]["prune_epochs"] == depths.EPOCHS // 2
        assert loaded["epoch_counter"].limit == depths.EPOCHS
        sizes[what] = size
        frozen = loaded["wav2vec2"].freeze_feature_extractor
        assert frozen == (what not in depths.VARIANTS)
    for what in depths.VARIANTS:
        assert sizes[what] == pytest.approx(sizes["2"], rel=1e-3)


def test_what_a_curve_is_worth(depths):
    cells = {
        "curves": {
            label: {"scores": [9, 1, 2, 4, 3, 2, 1], "errors": [0] * 7}
            for label in depths.LABELS
        }
    }
    for depth, accuracy in enumerate([10, 20, 70, 60, 80, 5], start=1):
        cells[f"word/{depth}/1"] = accuracy
        cells[f"word/{depth}/2"] = accuracy + 2
    cells["word/only_layers/1"] = 30
    found = depths.summarise(cells)
    assert found["word"]["chosen"] == 3 and found["word"]["regret"] == 10
    assert found["word"]["accuracy_by_depth"][3] == [70, 72]
    assert found["word"]["only_layers"] == [30]
    assert 0 < found["word"]["spearman"] < 1
    assert found["spk_id"]["regret"] is None
    assert "70" not in depths.as_markdown(found).splitlines()[0]


# ------------------------------------------------ YAMLs of SpeechBrain's own

RECIPE = """
data_folder: !PLACEHOLDER
d_model: 8

CNN: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
    input_shape: (2, 10, 12)
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: (4, 3)
    kernel_sizes: (3, 3)
    strides: (2, 2)
    residuals: (False, False)

Transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    input_size: 9
    tgt_vocab: 5
    d_model: !ref <d_model>
    nhead: 2
    num_encoder_layers: 12
    num_decoder_layers: 1
    d_ffn: 16
    encoder_module: conformer
    attention_type: ATTENTION
    normalize_before: True
    causal: False

modules:
    CNN: !ref <CNN>
    Transformer: !ref <Transformer>
"""  # noqa: E501


@pytest.fixture
def speechbrain_yamls(benchmark_module):
    return benchmark_module("speechbrain_yamls")


def test_yamls_of_a_checkout_are_declared_and_cut(speechbrain_yamls, tmp_path):
    folder = tmp_path / "recipes/Corpus/ASR/hparams"
    (folder / "parts").mkdir(parents=True)
    for name, text in {
        "mixing.yaml": RECIPE.replace("ATTENTION", "hypermixing"),
        "part.yaml": RECIPE.partition("modules:")[0],  # others include it
        "relative.yaml": RECIPE.replace("ATTENTION", "RelPosMHAXL"),
        "unknown.yaml": RECIPE.replace("causal", "casual"),
        "vad.yaml": "modules:\n    lin: !new:torch.nn.Identity",
    }.items():
        (folder / name).write_text(text)
    found = speechbrain_yamls.measure(tmp_path)
    place = "Corpus/ASR/hparams"
    assert list(found) == [
        f"{place}/{name}.yaml" for name in ("mixing", "relative", "unknown")
    ]
    outcomes = {
        name: [result[:3] for result in results]
        for name, results in found.items()
    }
    front_end = ["CNN", "front_end_structures", "exact"]
    decoder = ["Transformer", "decoder_structures", "exact"]
    encoder = ["Transformer", "conformer_structures"]
    assert outcomes[f"{place}/relative.yaml"] == [
        front_end,
        [*encoder, "exact"],
        decoder,
    ]
    assert outcomes[f"{place}/mixing.yaml"] == [
        front_end,
        [*encoder, "refused"],
        decoder,
    ]
    said = found[f"{place}/mixing.yaml"][1][3]
    assert "is a HyperMixing; exact with kinds: [ffn_modules" in said
    assert ["Transformer", "", "not built"] in outcomes[f"{place}/unknown.yaml"]


def test_a_row_for_yamls_of_one_outcome(speechbrain_yamls):
    exact = ["CNN", "front_end_structures", "exact", "1e-06"]
    refused = ["model", "conformer_structures", "refused", "no heads"]
    yamls = {
        "A/ASR/hparams/a.yaml": [exact],
        "A/ASR/hparams/b.yaml": [exact, refused],
        "A/ASR/hparams/c.yaml": [exact],
    }
    table = speechbrain_yamls.table_of({"speechbrain": "1", "yamls": yamls})
    assert "3 YAMLs, 4 modules,\n3 of them exact" in table
    assert "| A/ASR | a, c | CNN: front_end |" in table
    row = "| A/ASR | b | CNN: front_end, model: conformer **refused** (1) |"
    assert row in table
    assert table.endswith("1. no heads\n")


def test_a_folder_without_recipes_is_no_checkout(speechbrain_yamls, tmp_path):
    with pytest.raises(SystemExit, match="name a checkout of SpeechBrain"):
        speechbrain_yamls.main([str(tmp_path)])


# ----------------------------------------------------------------- headline


@pytest.fixture
def headline(benchmark_module):
    return benchmark_module("headline")


def cell_of_headline(**figures):
    """A cell, whose figures are those of a tiny dense model."""
    return {
        "wer": 2.0,
        "encoder_params": 2000,
        "total_params": 2100,
        "gmacs_per_second": 0.08,
        "time": 1.0,
        "epochs": 5,
        **figures,
    }


def test_headline_is_the_mean_over_seeds(headline):
    cells = {
        f"{model}/{seed}": cell_of_headline(wer=1.0 + seed)
        for model in headline.MODELS
        for seed in headline.SEEDS
    }
    cells["pruned/3"]["encoder_params"] = 1001
    rows = headline.as_markdown(headline.summarise(cells)).splitlines()
    dense = "3.00 ± 1.00 | 2,000 | 2,100 | 0.0800 | 1.00 | 5 |"
    assert rows[0] == "`make demo` with 3 seeds, mean ± half the range:"
    assert rows[4] == f"| dense | {dense}"
    pruned = "| pruned | 3.00 ± 1.00 | 1,667 ± 500 | 2,100 |"
    assert rows[6].startswith(pruned)


def test_a_seed_of_the_headline_is_one_demo(headline, tmp_path, monkeypatch):
    script = tmp_path / "demo.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "folder.mkdir()\n"  # a second one would fail
        "models = {'dense': 4.0, 'dense_longer': 4.1, 'pruned': 3.0}\n"
        "report = {name: {'rtf': rtf} for name, rtf in models.items()}\n"
        "report['dense']['options'] = sys.argv[2:]\n"
        "(folder / 'report.json').write_text(json.dumps(report))\n"
    )
    monkeypatch.setattr(headline, "DEMO", script)
    cells = headline.Cells(tmp_path, "--debug_size")
    assert cells.run("pruned/2") == {"time": 0.75}
    options = ["--seed=2", "--debug_size"]
    assert cells.run("dense/2") == {"time": 1.0, "options": options}
    assert (tmp_path / "2/report.json").is_file()


def test_headline_goes_between_the_comments(headline):
    before = f"# x\n\n{headline.BEGIN}\nold\n{headline.END}\n\nMore.\n"
    after = headline.with_table(before, "new")
    assert after == before.replace("\nold\n", "\n\nnew\n\n")
    assert headline.with_table(after, "new") == after
    with pytest.raises(ValueError, match="headline:begin"):
        headline.with_table("# x\n", "new")


def test_the_readme_says_what_the_demos_gave(headline, cells):
    table = cells.Table(headline.TABLE)
    assert [*table.cells] == sorted(headline.plan_cells(full=True))
    markdown = headline.as_markdown(headline.summarise(table.cells))
    text = headline.README.read_text("utf-8")
    assert headline.with_table(text, markdown) == text
    for seed in headline.SEEDS:  # what the demo promises
        dense, pruned = (
            table.cells[f"{model}/{seed}"] for model in ("dense", "pruned")
        )
        assert pruned["wer"] <= 10
        assert pruned["encoder_params"] <= dense["encoder_params"] / 2


# --------------------------------------------------------------- demo_twice


@pytest.fixture
def twice(benchmark_module):
    return benchmark_module("demo_twice")


def test_two_prunings_have_the_steps_of_one(twice):
    one, first, second = map(twice.schedule, ("one", "first", "twice"))
    assert first == {**second, "target": twice.FIRST}
    assert one["target"] == second["target"] > first["target"]
    for key in one.keys() - {"target", "warmup_steps"}:
        assert one[key] == first[key] + second[key]
    for run in (one, first, second):  # each phase has steps of its own
        tuned = run["number_of_epochs"] - run["prune_epochs"]
        assert tuned == run["prune_epochs"]
        assert run["total_steps"] == twice.STEPS * tuned
        assert run["schedule_steps"] == run["total_steps"] // 2
    longer = twice.schedule("dense_longer")
    assert longer["number_of_epochs"] == one["number_of_epochs"]
    assert longer["total_steps"] == 2 * one["total_steps"]


def test_the_second_pruning_starts_from_the_export_of_the_first(
    twice, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_untrained(str(tmp_path / "encoder"), **encoder_shape(16))
    values = {
        "dense_folder": "dense",
        "data_folder": "data",
        "wav2vec2_hub": str(tmp_path / "encoder"),
        "encoder_dim": 16,
    }
    blocks = {}
    for model in ("one", "first", "twice", "twice_taught"):
        if model.startswith("twice"):
            values["first_folder"] = "first"
        text = twice.pruning_yaml(model)
        block = load_hyperpyyaml(text, values)["pruning"]
        PruningSettings(**block)
        assert block.get("budget", ParameterBudget) is ParameterBudget
        keys = ("start_from", "start_min_key", "teacher")
        blocks[model] = [block.get(key) for key in keys]
    assert blocks["one"] == blocks["first"] == ["dense/save", "WER", None]
    assert blocks["twice"] == ["first/export", None, None]
    assert blocks["twice_taught"] == ["first/export", None, "dense/save"]


@pytest.fixture
def twice_runs(twice, tmp_path, monkeypatch):
    """Cells whose encoder is untrained, and name of a run -> its options."""
    done = {}

    def run(self, name, script, yaml, last, options):
        output = self.folder / name
        if name not in done:
            output.mkdir()
            done[name] = options
            write_untrained(str(output / "export"), **encoder_shape(8))
            (output / last).write_text(f"%WER {len(done)}.00 [ 1 / 9 ]")
        return output

    def small_encoder(self, speech):
        output = self.folder / "encoder"
        if not output.is_dir():
            write_untrained(str(output / "encoder"), **encoder_shape(16))
            (output / "wer_test-clean.txt").write_text("%WER 9.00 [ 1 / 9 ]")
            rows = "".join(f"{row}\n" for row in ["ID", *range(12)])
            (output / "train.csv").write_text(rows)
        return output / "encoder"

    monkeypatch.setattr(twice.Runs, "run", run)
    monkeypatch.setattr(twice.Runs, "small_encoder", small_encoder)
    monkeypatch.setattr(twice, "synthesise_librispeech", lambda *_, **__: None)
    return twice.Cells(tmp_path), done


def test_both_second_prunings_start_from_one_first(twice, twice_runs):
    cells, done = twice_runs
    found = {key: cells.run(key) for key in twice.plan_cells(full=False)}
    assert {*done} == {f"{key.replace('/', '-')}" for key in found} - {"dense"}
    epochs = {key.partition("/")[0]: c["epochs"] for key, c in found.items()}
    assert epochs.pop("dense") == 0 and epochs.pop("first") == twice.EPOCHS / 2
    assert {*epochs.values()} == {twice.EPOCHS}
    for name in ("twice-1", "twice_taught-1"):
        assert done[name]["first_folder"].name == "first-1"
        assert done[name]["dense_folder"] == done["one-1"]["dense_folder"]
    (part,) = {options["train_csv"] for options in done.values()}
    assert part.read_text().split() == ["ID", "0", "5", "10"]
    assert found["dense"]["wer"] == 9
    assert found["dense"]["params"] == found["dense_longer/1"]["params"]
    assert found["one/1"]["params"] < found["dense"]["params"]


def test_figures_of_two_prunings_are_means_over_seeds(twice):
    cell = {"params": 700.0, "gmacs_per_second": 0.1, "epochs": 4}
    cells = {f"one/{seed}": {**cell, "wer": 1.0 + seed} for seed in (1, 2, 3)}
    cells["dense"] = {**cell, "wer": 2.5, "epochs": 0}
    rows = twice.as_markdown(twice.summarise(cells)).splitlines()
    assert rows[2:] == [
        "| dense | 1 | 2.50 | 700 | 0.1000 | 0 |",
        "| 50% in one run | 3 | 3.00 ± 1.00 | 700 | 0.1000 | 4 |",
    ]


# ------------------------------------------------------------------ reprune


@pytest.fixture
def reprune(benchmark_module):
    return benchmark_module("reprune")


def test_pruned_again_means_what_the_benchmark_says(reprune):
    """The first cases are of a Conformer: all kinds, slices, unequal heads."""
    first = list(islice(reprune.cases(full=False), 6))
    assert len({budget for *_, budget in first}) == 2
    for number in (0, 3, 4):
        cut, rebuilt, landing = reprune.prune(
            *first[number], (0.3, 0.5, 0.6), 0
        )
        assert len(cut) == len(rebuilt) == len(landing) == 2
        assert max(cut) <= 1e-5 and max(rebuilt) <= 1e-6
        assert 0 <= min(landing) and max(landing) < 1
    heads = [
        {"heads", *INSIDE_HEADS} & {*structures.keywords["kinds"]}
        for _, structures, _, _ in first[::2]
    ]
    assert heads == [{"heads"}, {"heads"}, {"heads", *INSIDE_HEADS}]


def test_a_model_that_is_rebuilt_otherwise_shows(reprune, monkeypatch):
    """With the state of another model, say."""
    case = next(reprune.cases(full=False))
    state = reprune.folded_state

    def scaled(model):
        return {name: 1.01 * tensor for name, tensor in state(model).items()}

    monkeypatch.setattr(reprune, "folded_state", scaled)
    _, rebuilt, _ = reprune.prune(*case, (0.3, 0.5), 0)
    assert min(rebuilt) > 1e-3


def test_what_load_memory_measures_can_be_loaded(benchmark_module, tmp_path):
    tiny = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    tiny |= {"intermediate_size": 1024, "conv_dim": (16,) * 7}
    size = benchmark_module("load_memory").export(tmp_path, tiny)
    assert size == (tmp_path / "small/model.safetensors").stat().st_size
    lobe = lobes.Wav2Vec2(str(tmp_path / "small"), str(tmp_path / "small"))
    loaded = sum(p.numel() for p in lobe.model.parameters())
    assert loaded < sum(
        p.numel() for p in Wav2Vec2Model(Wav2Vec2Config(**tiny)).parameters()
    )


# ------------------------------------------------------ whisper_librispeech


@pytest.fixture
def real(benchmark_module):
    return benchmark_module("whisper_librispeech")


@pytest.fixture
def whisper_block(real, tmp_path):
    """Function: method, size -> the block of its YAML."""
    write_tiny_whisper(tmp_path)

    def load(method, size):
        text = real.pruning_yaml(method, size)
        values = {"data_folder": "data", "whisper_hub": str(tmp_path)}
        name = "layer_pruning" if method == "layers" else "pruning"
        return load_hyperpyyaml(text, values)[name]

    return load


def test_whisper_methods_differ_in_what_their_names_say(real, whisper_block):
    for size in real.SIZES:
        blocks = {name: whisper_block(name, size) for name in real.METHODS}
        for name, block in blocks.items():
            PruningSettings(**block)
            is_refitted = name in real.EPOCHS or name.endswith(
                ("_refit", "_reselected")
            )
            assert is_refitted == (block.get("refit") is not None)
            if is_refitted:
                reselects = block["refit"].keywords["reselect"]
                assert reselects == (not name.endswith("_refit"))
            sides = block["structures"].keywords["sides"]
            assert ("decoder" in sides) == (not size.startswith("encoder"))
        assert blocks["fisher"]["score"] is taylor_score
        assert blocks["magnitude"]["score"] is magnitude_score
        kinds = [blocks[name]["structures"].keywords for name in blocks]
        assert all(each == kinds[0] for each in kinds)
        layers = whisper_block("layers", size)
        assert LayerSettings(**layers).criterion.kept in (1, 3, 4)
        sides = layers["structures"].keywords["sides"]
        assert len(sides) == 1  # one depth is chosen


def test_whisper_variants_differ_from_the_preset(real, whisper_block):
    size = "encoder-0.5"
    same = described(whisper_block("fisher_reselected", size))
    for name, (lines, options) in real.VARIANTS.items():
        block = whisper_block(name, size)
        PruningSettings(**block)
        assert (described(block) != same) == bool(lines)
        assert lines or options or name in real.SOME_EPOCHS


def test_a_longer_training_goes_on_from_a_finished_one(real, tmp_path):
    cells = object.__new__(real.Cells)
    cells.runs = real.Runs(tmp_path)
    finished = tmp_path / "final-encoder-0.5"
    (finished / "save").mkdir(parents=True)
    (finished / "save/epochs").write_text("4")
    (finished / "wer_valid.txt").write_text("of the fourth epoch")
    cells._start_from(finished, "longer/encoder-0.5")
    went_on = tmp_path / "longer-encoder-0.5"
    assert [path.name for path in went_on.iterdir()] == ["save"]
    (went_on / "save/epochs").write_text("5")
    cells._start_from(finished, "longer/encoder-0.5")  # after it was killed
    assert (went_on / "save/epochs").read_text() == "5"
    assert (finished / "save/epochs").read_text() == "4"


def test_intervals_of_word_errors(real, tmp_path):
    file = tmp_path / "wer.txt"
    line = "{}, %WER 10.00 [ {} / 10, 0 ins, 0 del, 0 sub ]\n"
    alike = "".join(line.format(n, 1) for n in range(50))
    file.write_text("%WER 10.00 [ 50 / 500, 1 ins ]\n" + alike)
    assert real.word_errors([file]) == {"wer": 10.0, "low": 10.0, "high": 10.0}
    file.write_text("".join(line.format(n, n % 2 * 2) for n in range(50)))
    found = real.word_errors([file])
    assert found["wer"] == 10.0
    # 1.96 times 10 / sqrt(50), the error of a mean of 0 and 20
    assert found["high"] - found["low"] == pytest.approx(5.5, abs=0.6)


@pytest.mark.parametrize(
    "key, options",
    [
        ("dense/30s", {"context": None}),
        ("dense/utterance-3.0", {"context": "utterance", "margin": 3.0}),
        (
            "dense/utterance-2.0-0",
            {"context": "utterance", "margin": 2.0, "min_context": 0.0},
        ),
        ("final/encoder-0.5", {"context": "utterance", "margin": 2.0}),
    ],
)
def test_the_context_of_a_cell(real, key, options):
    assert real._context(key) == options


def test_a_shorter_context_costs_less(real, tmp_path):
    write_tiny_whisper(tmp_path)
    found = [
        real.costs(str(tmp_path), context, [1.0, 9.0])
        for context in (
            {"context": "utterance", "margin": 2.0, "min_context": 0},
            {"context": "utterance", "margin": 2.0},
            {"context": None},
        )
    ]
    macs = [cost["gmacs_per_second"] for cost in found]
    assert macs == sorted(macs) and len({*macs}) == 3
    assert len({cost["params"] for cost in found}) == 1


def test_final_cells_are_among_all(real):
    keys = real.all_cells()
    assert {*real.FINAL, *real.QUICK} <= {*keys}
    assert len(keys) == len({*keys})


# -------------------------------------------------------------- real_int8


def test_integers_are_compared_in_pairs(benchmark_module):
    """Of parts that were heard one after the other."""
    benchmark = benchmark_module("real_int8")
    sizes = {"fp32": 97.5, "int8": 31.0}
    part = {
        "words": "10 10",
        "fp32": "1 2",
        "int8": "2 3",
        "seconds": {"fp32": 3.0, "int8": 2.0},
    }
    cells = {
        "whisper": {"mb": sizes, "load_s": sizes, "peak_mib": sizes},
        "whisper/test/0": part,
        "whisper/test/500": {**part, "int8": "1 2"},
    }
    found = benchmark.summarise(cells)["whisper, test"]
    assert found["fp32"][0] == 15.0 and found["int8"][0] == 20.0
    assert found["lost"][0] == 5.0 and found["lost"][1] < 5 < found["lost"][2]
    assert found["speedup"] == 1.5 and found["utterances"] == 4
    table = benchmark.as_markdown({"whisper, test": found})
    assert "| whisper, test (4) | 15.00 (" in table


# ---------------------------------------------------------- real_conformer


@pytest.fixture
def conformer(benchmark_module):
    return benchmark_module("real_conformer")


def test_conformer_methods_differ_in_what_their_names_say(conformer):
    values = {"data_folder": "data", "dense_folder": "dense"}
    methods = dict(conformer.METHODS)
    for name in conformer.AT_ONCE:
        methods[name] = (conformer.SCORE, conformer.lines_at_once(name))
    found = set()
    for name, (preset, lines) in methods.items():
        text = conformer.pruning_yaml(preset, lines)
        block = load_hyperpyyaml(text, values)["pruning"]
        PruningSettings(**block)
        assert name.endswith(("_refit", "_reselected")) == bool(
            block.get("refit")
        )
        by_size = block.get("score") is magnitude_score
        assert ("magnitude" in name) == by_size
        ends = block.get("prune_steps")
        assert (name in conformer.AT_ONCE) == (ends == conformer.SCORE_STEPS)
        found.add(str(described(block)))
    assert len(found) == len(methods)


@pytest.mark.parametrize("level", [0.5, 0.75])
def test_a_small_conformer_is_as_small_as_a_pruned_one(conformer, level):
    whole = conformer.encoder_parameters(**conformer.DENSE)
    small = conformer.encoder_parameters(**conformer.small_model(level))
    assert 0.99 * (1 - level) * whole < small <= (1 - level) * whole


def test_conformer_cells_have_methods_that_are_there(conformer):
    known = {*conformer.METHODS, *conformer.AT_ONCE}
    known |= {"dense", "dense_continued", "small_dense"}
    keys = conformer.plan_cells(full=True)
    assert len(keys) == len(set(keys))
    for key in keys:
        assert key.removeprefix("cut:").split("/")[0] in known


# --------------------------------------------------------- real_convexity


@pytest.fixture
def real_depths(benchmark_module):
    return benchmark_module("real_convexity")


@pytest.mark.parametrize(
    "task, what",
    [
        *(
            (t, w)
            for t in ("speakers", "keywords", "orders")
            for w in (None, "2")
        ),
        ("keywords", "gates"),
    ],
)
def test_depths_of_whisper_are_those_of_the_recipes(
    real_depths, task, what, tmp_path
):
    folder = real_depths.TASKS[task][0]
    write_tiny_whisper(tmp_path)
    values = {
        "output_folder": str(tmp_path / "run"),
        "data_folder": "data",
        "encoder_dim": 16,
        "wav2vec2_hub": str(tmp_path),
    }
    text = real_depths.recipe_yaml(folder, what)
    hparams = load_hyperpyyaml(text, values)
    assert isinstance(hparams["wav2vec2"], lobes.Whisper)
    block = "pruning" if what == "gates" else "layer_pruning"
    assert {"pruning", "layer_pruning"} & {*hparams} == {block}
    if what == "gates":
        PruningSettings(**hparams["pruning"])
        return
    settings = LayerSettings(**hparams["layer_pruning"])
    assert settings.structures.func is whisper_structures
    if what is not None:
        removed = real_depths.LAYERS - int(what)
        assert settings.criterion.removed == removed


def test_share_of_layers_is_that_of_the_declaration(real_depths):
    config = WhisperConfig()
    with torch.device("meta"):
        model = WhisperModel(config)
    declaration = whisper_structures(model, sides=["encoder"])
    whole = parameter_cost(declaration).dense()
    layer = parameter_cost(declaration, "encoder.layers.0").dense()
    share = real_depths.share_of_layers(config, 3)
    assert share == pytest.approx(3 * layer / whole, abs=1e-4)


def test_keywords_become_a_layout_of_speech_commands(real_depths, tmp_path):
    for word in ("one word", "other"):
        (tmp_path / "given" / word).mkdir(parents=True)
        for number in range(5):
            path = tmp_path / f"given/{word}/{number}.flac"
            soundfile.write(path, numpy.zeros(16000, "int16"), 16000)
    (tmp_path / "given/other/broken.wav").write_bytes(b"RIFF")
    found = real_depths.lay_out_keywords(tmp_path / "given", tmp_path / "found")
    assert len([*found.glob("one_word/*.wav")]) == 5
    assert len([*found.glob("other/*.wav")]) == 5
    (tmp_path / "given/other/4.flac").unlink()
    real_depths.lay_out_keywords(tmp_path / "given", tmp_path / "found")
    assert len([*found.glob("other/*")]) == 4  # and nothing half-written
    lists = [
        (found / f"{name}_list.txt").read_text().split()
        for name in ("validation", "testing")
    ]
    assert [len(listed) for listed in lists] == [1, 1]
    assert lists[0] != lists[1]
    assert all((found / name).is_file() for names in lists for name in names)


def test_orders_are_told_apart_by_the_drink(real_depths):
    words = ["large", "drip", "coffee"]
    order = {
        "tokens": [{"surface": word} for word in words],
        "entities": [
            {"type": "size", "span": [0]},
            {"type": "coffeeDrink", "span": [1, 2]},
        ],
    }
    assert real_depths.drink_of(order) == "drip_coffee"
    assert real_depths.drink_of({**order, "entities": []}) == "none"


def test_intervals_are_those_of_wilson(real_depths):
    """Of 81 in 263: Newcombe (1998), table I, method 3."""
    low, high = real_depths.interval(100 * 81 / 263, 263)
    assert (round(low, 2), round(high, 2)) == (25.53, 36.62)


def test_curves_and_accuracies_stand_in_tables(real_depths):
    curve = {"scores": [0.1] * 7, "errors": [0.01] * 7}
    curve["scores"][3] = 0.5
    cells = {f"curves/{task}": {task: curve} for task in real_depths.TASKS}
    cells["curves/aligned"] = {"words": curve, "phonemes": curve}
    for depth in range(1, 7):
        accuracy = 90.0 if depth == 4 else 80.0
        cell = {"accuracy": accuracy, "utterances": 100}
        cells[f"keywords/{depth}/1"] = cell
    found = real_depths.summarise(cells)
    assert {*found["curves"]} == {"words", "phonemes", *real_depths.TASKS}
    keywords = found["tasks"]["keywords"]
    assert keywords["chosen"] == 3 and keywords["regret"] == 10.0
    table = real_depths.as_markdown(found)
    assert "| 4 | 90.0 (82.6 to 94.5; 1) |" in table
    assert real_depths.as_markdown(
        real_depths.summarise({})
    )  # before anything has run


# ---------------------------------------------------------------- real_hj


@pytest.fixture
def real_hj(benchmark_module):
    return benchmark_module("real_hj")


def test_what_the_budget_counts_is_what_the_method_says(
    real_hj, benchmark_module, tmp_path
):
    real_speech = benchmark_module("real_speech")
    write_tiny_whisper(tmp_path)
    values = {
        "output_folder": str(tmp_path / "run"),
        "data_folder": "data",
        "dense_folder": "dense",
        "whisper_hub": str(tmp_path),
        "encoder_dim": 16,
    }
    blocks, found = {}, {}
    for method in real_hj.METHODS:
        phases = real_speech.phases(real_hj.is_at_once(method), 1, 2, 100)
        text = real_hj.pruning_yaml(method, 0.4, phases)
        block = load_hyperpyyaml(text, {**values, "target": 0.4})["pruning"]
        blocks[method], found[method] = block, PruningSettings(**block)
    macs = {n for n, s in found.items() if isinstance(s.budget, MACBudget)}
    assert macs == {*real_hj.METHODS} - {"size", "sepsize"}
    assert found["size"].budget.target == real_hj.OF_PARAMETERS[0.4]
    assert found["sepsize"].budget.target == dict.fromkeys(real_hj.PARTS, 0.4)
    assert blocks["magnitude"]["score"] is magnitude_score
    assert found["fisher_reselected"].refit and not found["fisher"].refit
    kinds = {n: s.structures.keywords["kinds"] for n, s in found.items()}
    assert "front_end_channels" not in kinds.pop("transformer_only")
    assert len({str(each) for each in kinds.values()}) == 1
    for name in ("mac", "taylor"):  # of 80 steps all gates are open for 64
        assert found[name].schedule.start == 0.8 and not blocks[name].get(
            "prune_steps"
        )
    assert found["fisher"].prune_steps == real_speech.SCORE_STEPS
    text = real_hj.pruning_yaml("layers", 0.4, {})
    hparams = load_hyperpyyaml(text, {**values, "target": 0.4})
    settings = LayerSettings(**hparams["layer_pruning"])
    assert settings.criterion.kept == 3 and "pruning" not in hparams
    assert settings.start.folder == "dense/save"


@pytest.mark.parametrize("level", [0.2, 0.6])
def test_a_small_whisper_has_the_macs_that_are_left(real_hj, level):
    config = WhisperConfig(
        d_model=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
    )
    small = real_hj.small_config(config, level)
    whole, left = (real_hj.macs_of(WhisperModel(c)) for c in (config, small))
    assert 0.8 * (1 - level) * whole < left <= (1 - level) * whole


def test_methods_are_compared_in_pairs(benchmark_module):
    shared = benchmark_module("real_speech")
    cell = {"wer": 50.0, "low": 0.0, "high": 100.0, "words": "10 10"}
    cells = {
        "dense/1": {**cell, "errors": "4 6"},
        "mac/0.4/1": {**cell, "errors": "5 7", "macs_gone": 0.41},
        "test:mac/0.4/1": {**cell, "errors": "5 7"},
    }
    found = shared.summarise_methods(cells)
    row = found["mac"]["0.4"]["1"]
    assert row["behind"] == {"wer": 10.0, "low": 10.0, "high": 10.0}
    assert row["test"]["wer"] == 50.0 and "behind" not in found["dense"]["0"]
    table = shared.methods_as_markdown(found)
    assert "| mac | 40% | 1 | 41.0% | 50.00 (0.00 to 100.00) | 10.00" in table
    # a dense model that has learned for as long, and a better method
    cells["dense_continued/1"] = {**cell, "errors": "3 4"}
    cells["layers/0.4/1"] = {**cell, "wer": 40.0, "errors": "4 6"}
    found = shared.summarise_methods(cells)
    assert found["dense_continued"]["0"]["1"]["dev"]["wer"] == 50.0
    row, best = (found[n]["0.4"]["1"] for n in ("mac", "layers"))
    assert row["behind"]["wer"] == 25.0 and best["behind"]["wer"] == 15.0
    assert row["behind_best"]["wer"] == 10.0 and "behind_best" not in best


def test_steps_are_those_of_the_recipe(benchmark_module, tmp_path):
    """Of 40 utterances of 2 s: one at a time, or several."""
    shared = benchmark_module("real_speech")
    path = tmp_path / "train.csv"
    rows = [f"{n},{2 + n / 100},$data_root/{n}.flac" for n in range(40)]
    path.write_text("\n".join(["ID,duration,wav", *rows]) + "\n")
    batches = {"num_buckets": 5, "max_batch_ex": 8}
    one, several = (
        shared.steps_in_epoch(path, max_batch_length=seconds, **batches)
        for seconds in (3, 30)
    )
    assert one == 40 and 5 <= several <= 10


# --------------------------------------------------------------- real_slu


@pytest.fixture
def real_slu(benchmark_module):
    return benchmark_module("real_slu")


@pytest.mark.parametrize("method", ["mac", "fisher", "even_magnitude"])
def test_the_recipe_of_slurp_prunes_whisper(real_slu, method, tmp_path):
    write_tiny_whisper(tmp_path)
    values = {
        "output_folder": str(tmp_path / "run"),
        "data_folder": "data",
        "dense_folder": "dense",
        "wav2vec2_hub": str(tmp_path),
        "encoder_dim": 16,
        "target": 0.4,
    }
    phases = real_slu.phases(real_slu.is_at_once(method), 2, 2, 100)
    text = real_slu.recipe_yaml(method, phases)
    hparams = load_hyperpyyaml(text, values)
    assert isinstance(hparams["wav2vec2"], lobes.Whisper)
    block = hparams["pruning"]
    budget = PruningSettings(**block).budget
    assert isinstance(budget, MACBudget) and budget.target == 0.4
    score = block.get("score")
    assert (score is local_score) == (method == "even_magnitude")


def test_slots_are_scored_as_slurp_does(real_slu, tmp_path):
    order = {
        "sentence": "mocha Skim milk",
        "scenario": "order",
        "action": "mocha",
        "tokens": [{"surface": word} for word in ("mocha", "Skim", "milk")],
        "entities": [
            {"type": "coffeeDrink", "span": [0]},
            {"type": "milkAmount", "span": [1, 2]},
        ],
    }
    slots = [
        {"type": "coffeeDrink", "filler": "mocha"},
        {"type": "milkAmount", "filler": "skim milk"},
    ]
    answer = {"scenario": "order", "action": "mocha", "entities": slots}
    none = {"scenario": "none", "action": "none", "entities": slots[:1]}
    gold = [{**order, "recordings": [{"file": name}]} for name in "ab"]
    text = "".join(json.dumps(row) + "\n" for row in gold)
    (tmp_path / "test.jsonl").write_text(text)
    cells = {}
    for key, answers in {
        "dense/1": (answer, none),
        "mac/0.4/1": (answer, answer),
    }.items():
        rows = [{**a, "file": name} for a, name in zip(answers, "ab")]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        # the last line is of a run that was killed
        (tmp_path / "predictions.jsonl").write_text(text + '{"file": "c')
        found = real_slu.understood(tmp_path, tmp_path / "test.jsonl")
        cells[key] = {**found, "macs_gone": 0.41}
    found = real_slu.summarise(cells)
    dense, pruned = found["dense"]["0"]["1"], found["mac"]["0.4"]["1"]
    # three of four slots found, none wrong: 2 * 3 / (2 * 3 + 1)
    assert dense["f1"][0] == pytest.approx(100 * 6 / 7, abs=0.01)
    assert dense["drinks"][0] == 50.0 and pruned["f1"] == [100.0] * 3
    assert pruned["ahead"][0] == pytest.approx(100 / 7, abs=0.01)
    assert 0 == pruned["ahead"][1] < pruned["ahead"][2]
    table = real_slu.as_markdown(found)
    assert "| mac | 40% | 1 | 41.0% | 100.0 (100.0 to 100.0) | 14.3 (" in table


@pytest.mark.parametrize(
    "recipe",
    [
        "LibriSpeech/speaker-identification",
        "LibriSpeech/self-supervised-learning/compression",
        "SLURP/direct",
    ],
)
def test_exports_are_made_from_whisper_too(benchmark_module, recipe, tmp_path):
    shared = benchmark_module("real_speech")
    text = "inference: hparams/inference.yaml\n"
    hparams = shared.ROOT / "recipes" / recipe / "hparams"
    shared.write_with_whisper(tmp_path / "0.4.yaml", text, hparams)
    inference = tmp_path / "0.4-inference.yaml"
    written = (tmp_path / "0.4.yaml").read_text()
    assert written == f"inference: {inference}\n"
    assert "wav2vec2: !new:sb_prune.lobes.Whisper" in inference.read_text()


# ---------------------------------------------------- real_task_agnostic


@pytest.fixture
def real_agnostic(benchmark_module):
    return benchmark_module("real_task_agnostic")


def test_small_encoders_of_whisper_are_what_they_are_called(
    real_agnostic, tmp_path
):
    write_tiny_whisper(tmp_path)
    values = {
        "output_folder": str(tmp_path / "run"),
        "data_folder": "data",
        "wav2vec2_hub": str(tmp_path),
        "encoder_dim": 16,
    }
    blocks = {}
    for model in real_agnostic.PRUNED:
        text = real_agnostic.compression_yaml(model)
        hparams = load_hyperpyyaml(text, values)
        PruningSettings(**hparams["pruning"])
        blocks[model] = hparams["pruning"]
        for entry in ("wav2vec2", "teacher"):
            lobe = hparams[entry]
            assert isinstance(lobe, lobes.Whisper) and lobe.output_all_hiddens
            assert lobe.freeze == (entry == "teacher")
    kinds = {n: b["structures"].keywords["kinds"] for n, b in blocks.items()}
    inside = {n for n, k in kinds.items() if {*INSIDE_HEADS} <= {*k}}
    assert inside == {"fine_grained", "soft_gates"}
    through = {
        name
        for name, block in blocks.items()
        if "gates" in block and block["gates"].keywords["straight_through"]
    }
    assert through == {"fine_grained", "coarse_heads"}
    assert blocks["reselected"]["distillation"] is None


@pytest.mark.parametrize(
    "model", ["armhubert", "maskhubert", "narrow", "starhubert"]
)
def test_students_of_whisper_are_as_small_as_what_is_pruned(
    real_agnostic, model, tmp_path
):
    teacher = tmp_path / "teacher"
    write_tiny_whisper(teacher, d_model=64, encoder_ffn_dim=256)
    config = WhisperConfig.from_pretrained(teacher)
    options = real_agnostic.student(config, model)
    values = {
        "output_folder": str(tmp_path / "run"),
        "data_folder": "data",
        "wav2vec2_hub": str(teacher),
        **{n: v for n, v in options.items() if n not in ("conv", "reuse")},
        "conv": None,
        "reuse": json.loads(options.get("reuse", "null").lower()),
    }
    if model == "starhubert":
        values["distilled_layers"] = [1, 2]
    text = real_agnostic.compression_yaml(model)
    hparams = load_hyperpyyaml(text, values)
    small, whole = (
        sum(p.numel() for p in hparams[entry].model.parameters())
        for entry in ("wav2vec2", "teacher")
    )
    left = 1 - real_agnostic.SPARSITY
    assert 0.8 * left * whole < small <= left * whole
    assert ("mask_share" in hparams) == (model != "starhubert")
    first = hparams["wav2vec2"].model.encoder.layers[1].self_attn
    assert hasattr(first, "q_proj") == (model != "armhubert")
