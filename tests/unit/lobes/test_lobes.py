"""Small encoders in SpeechBrain's lobes: exported, loaded, swapped in."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import speechbrain as sb
import torch
import transformers
from rounding import assert_same_but_for_rounding
from safetensors.torch import load_file
from speechbrain.integrations.huggingface import hubert, wav2vec2, wavlm
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from sb_prune import LayerwiseDistillation, lobes, pruned, wav2vec2_structures
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.cut.edits import FORMAT
from sb_prune.cut.modules.attention import UnequalHeads
from sb_prune.export.loading import ExportError, load_export
from sb_prune.support.hashes import file_hash

INFERENCE = Path(__file__).parents[1] / "tiny_wav2vec2.yaml"
LOBES = {
    "Wav2Vec2": (wav2vec2.Wav2Vec2, lobes.Wav2Vec2),
    "Hubert": (hubert.HuBERT, lobes.HuBERT),
    "WavLM": (wavlm.WavLM, lobes.WavLM),
}


class Recipe(sb.Brain):
    """A lobe and a Linear that regress their targets."""

    def compute_forward(self, batch, stage):
        encoded = self.modules.wav2vec2(batch["wav"], batch["lengths"])
        return self.modules.lin(encoded)

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch["y"]).square().mean()


def data():
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "wav": torch.randn(2, 700, generator=generator),
            "y": torch.randn(2, 1, 3, generator=generator),
            "lengths": torch.tensor([1.0, 0.7]),
        }
        for _ in range(4)
    ]


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory, make_wav2vec2):
    """Function: family -> an ordinary Hugging Face folder of a dense model."""

    def write(family, **options):
        folder = tmp_path_factory.mktemp("dense") / family
        make_wav2vec2(family, **options).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
        return folder

    return write


def prune(folder, source, family="Wav2Vec2", module="wav2vec2", **block):
    """Prunes a dense folder; returns the Brain, its export in `export`."""
    stock, _ = LOBES[family]
    yaml = folder / "inference.yaml"
    name = f"{stock.__module__}.{stock.__name__}"
    name = name.removeprefix("speechbrain.integrations.huggingface.")
    yaml.write_text(INFERENCE.read_text().replace("LOBE", name))
    torch.manual_seed(0)
    modules = {
        "wav2vec2": stock(str(source), str(source), output_norm=True),
        "lin": torch.nn.Linear(16, 3),
    }
    counter, model = EpochCounter(2), torch.nn.ModuleDict(modules)
    brain = pruned(Recipe)(
        modules=modules,
        opt_class=partial(torch.optim.Adam, lr=0.01),
        hparams={
            "model": model,
            "wav2vec2_hub": str(source),
            "pruning": {
                "module": module,
                "structures": wav2vec2_structures,
                "target": 0.4,
                "prune_epochs": 1,
                "schedule_steps": 3,
                "distillation": partial(LayerwiseDistillation, outputs=["lin"]),
                "inference": str(yaml),
                "export_folder": str(folder / "export"),
                **block,
            },
        },
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=Checkpointer(
            folder / "save", {"model": model, "counter": counter}
        ),
    )
    loader = {"batch_size": None}
    brain.fit(counter, data(), train_loader_kwargs=loader)
    brain.evaluate(data(), test_loader_kwargs=loader)
    brain.modules.eval()
    return brain


@pytest.fixture(scope="session")
def small(tmp_path_factory, dense_folder):
    """A folder with `export`, and the Brain that made it."""
    folder = tmp_path_factory.mktemp("pruned")
    return folder / "export", prune(folder, dense_folder("Wav2Vec2"))


@torch.no_grad()
def encode(module):
    batch = data()[0]
    return module(batch["wav"], batch["lengths"])


@pytest.mark.parametrize("norms_first", [False, True])
@pytest.mark.parametrize("family", LOBES)
def test_export_is_what_was_evaluated(
    tmp_path, dense_folder, family, norms_first
):
    source = dense_folder(family, norms_first=norms_first)
    brain = prune(tmp_path, source, family)
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5
    export = tmp_path / "export"
    ours = encode(brain.modules.wav2vec2)
    theirs = load_export(export).hparams
    assert_same_but_for_rounding(encode(theirs["wav2vec2"]), ours)
    stock, lobe = LOBES[family]
    assert type(theirs["wav2vec2"]) is stock
    swapped = lobe(str(export), str(tmp_path / "hub"), output_norm=True)
    assert_same_but_for_rounding(encode(swapped.eval()), ours)


@pytest.mark.parametrize("inside", [["value_dims"], INSIDE_HEADS])
@pytest.mark.parametrize("family", LOBES)
def test_unequal_heads_are_exported(tmp_path, dense_folder, family, inside):
    structures = partial(wav2vec2_structures, kinds=["heads", *inside])
    source = dense_folder(family)
    brain = prune(tmp_path, source, family, structures=structures, target=0.15)
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5
    layers = brain.modules.wav2vec2.model.encoder.layers
    assert any(isinstance(layer.attention, UnequalHeads) for layer in layers)
    ours = encode(brain.modules.wav2vec2)
    export = tmp_path / "export"
    assert_same_but_for_rounding(
        encode(load_export(export).hparams["wav2vec2"]), ours
    )
    _, lobe = LOBES[family]
    swapped = lobe(str(export), str(tmp_path / "hub"), output_norm=True)
    assert_same_but_for_rounding(encode(swapped.eval()), ours)


def test_export_is_a_hugging_face_folder(small):
    export, brain = small
    files = {path.name for path in export.iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "hyperparams.yaml",
        "lin.ckpt",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config = transformers.AutoConfig.from_pretrained(export)
    assert config.hidden_size == 16
    settings = json.loads((export / "config.json").read_text())["sb_prune"]
    cut, fold = settings["edits"]
    assert fold == {"fold": {}}
    assert set(cut["cut"]["plan"]) == {
        name.removeprefix("model.") for name in brain.pruning.plan.to_dict()
    }
    transformers.AutoFeatureExtractor.from_pretrained(export)


def test_weight_norm_is_folded(small):
    export, brain = small
    state = load_file(export / "model.safetensors")
    conv = brain.modules.wav2vec2.model.encoder.pos_conv_embed.conv
    assert len(conv.parametrizations) == 1  # trained as before
    name = "encoder.pos_conv_embed.conv.weight"
    assert torch.equal(state[name], conv.weight)
    assert not any("parametrizations" in key for key in state)


def test_no_path_of_the_machine_is_exported(small):
    export, brain = small
    for name in ("hyperparams.yaml", "config.json"):
        text = (export / name).read_text()
        assert str(brain.hparams.wav2vec2_hub) not in text
    assert "wav2vec2_hub" not in (export / "hyperparams.yaml").read_text()


def test_the_lobe_of_a_small_encoder_trains(small, tmp_path):
    """Every parameter is there to learn, also in the next recipe."""
    export, _ = small
    lobe = lobes.Wav2Vec2(str(export), str(tmp_path))
    encode_and_learn = lobe(data()[0]["wav"]).square()[..., :3].sum()
    encode_and_learn.backward()
    assert all(p.grad is not None for p in lobe.parameters())


def test_the_lobes_load_dense_folders_too(dense_folder, tmp_path):
    source = str(dense_folder("Wav2Vec2"))
    stock = wav2vec2.Wav2Vec2(source, str(tmp_path)).eval()
    lobe = lobes.Wav2Vec2(source, str(tmp_path)).eval()
    assert_same_but_for_rounding(encode(lobe), encode(stock))


def test_freezing_options_are_the_stock_lobes(small, tmp_path):
    export, _ = small
    lobe = lobes.Wav2Vec2(
        str(export), str(tmp_path), freeze_feature_extractor=True
    )
    frozen = [
        p.requires_grad for p in lobe.model.feature_extractor.parameters()
    ]
    assert not any(frozen)
    assert lobe.model.feature_projection.projection.weight.requires_grad


def test_several_entries_may_be_cut_together(tmp_path, dense_folder):
    """Then names in the plan start with the entry, but not in the folder."""
    brain = prune(tmp_path, dense_folder("Wav2Vec2"), module=["wav2vec2"])
    lobe = lobes.Wav2Vec2(
        str(tmp_path / "export"), str(tmp_path), output_norm=True
    )
    assert_same_but_for_rounding(
        encode(lobe.eval()), encode(brain.modules.wav2vec2)
    )


def test_a_lobe_without_arguments_is_built_too(small):
    config = json.loads((small[0] / "config.json").read_text())
    preprocessor = json.loads(
        (small[0] / "preprocessor_config.json").read_text()
    )
    lobe = lobes.skeleton(wav2vec2.Wav2Vec2, config, preprocessor)
    assert type(lobe) is wav2vec2.Wav2Vec2
    assert encode(lobe.eval()).shape[-1] == 16


def test_layerdrop_may_be_set(dense_folder, tmp_path):
    source = str(dense_folder("Wav2Vec2"))
    lobe = lobes.Wav2Vec2(source, str(tmp_path), layerdrop=0.3)
    assert lobe.model.config.layerdrop == 0.3


def test_what_a_pruned_model_is_not_loaded_with_is_refused(small, tmp_path):
    export, _ = small
    for options in ({"dtype": torch.bfloat16}, {"nonsense": 1}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}: the model in .* pruned"):
            lobes.Wav2Vec2(str(export), str(tmp_path), **options)
    lobes.Wav2Vec2(str(export), str(tmp_path), attn_implementation="eager")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_torn_files_are_named(small, tmp_path, name):
    export, _ = small
    for path in export.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torn = tmp_path / name
    torn.write_bytes(torn.read_bytes()[:-40])
    if name == "model.safetensors":
        with pytest.raises(ExportError, match="is not the file that was"):
            load_export(tmp_path)
        with pytest.raises(ValueError, match="is not the file that was"):
            lobes.Wav2Vec2(str(tmp_path), str(tmp_path))
    else:
        with pytest.raises(Exception, match="config.json"):
            lobes.Wav2Vec2(str(tmp_path), str(tmp_path))


def test_an_encoder_needs_a_loadable_of_its_own(tmp_path, dense_folder):
    text = INFERENCE.read_text()
    alone = "        wav2vec2: !ref <wav2vec2>\n        lin: !ref <lin>\n"
    assert text.endswith(alone)
    yaml = tmp_path / "other.yaml"
    yaml.write_text(
        text.replace("LOBE", "wav2vec2.Wav2Vec2").removesuffix(alone)
        + "        lin: !ref <lin>\n"
    )
    with pytest.raises(ValueError, match="add wav2vec2: !ref <wav2vec2>"):
        prune(tmp_path, dense_folder("Wav2Vec2"), inference=str(yaml))


def test_hashes_are_in_the_yaml(small):
    export, _ = small
    text = (export / "hyperparams.yaml").read_text()
    assert file_hash(export / "model.safetensors") in text


def test_the_config_says_what_the_plan_is_for(small):
    export, brain = small
    settings = json.loads((export / "config.json").read_text())["sb_prune"]
    assert settings["format"] == FORMAT
    kinds = {s.kind for s in brain.pruning.declaration.structures}
    assert set(settings["edits"][0]["cut"]["kinds"]) == kinds
    assert settings["sha256"] == file_hash(export / "model.safetensors")


def test_a_later_format_is_refused(small, tmp_path):
    export, _ = small
    later = shutil.copytree(export, tmp_path / "later")
    config = json.loads((later / "config.json").read_text())
    config["sb_prune"]["format"] = FORMAT + 1
    (later / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="later sb_prune.* --upgrade"):
        lobes.Wav2Vec2(str(later), str(tmp_path))
