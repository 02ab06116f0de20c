"""Both recipes on wav2vec 2.0 encoders, pruned in every variant, end to end."""

import json
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import pytest
import torch
from recipe_runs import (
    CTC,
    KILLED,
    SLURP,
    TINY_CTC,
    TINY_SLURP,
    how_to_run,
    options,
    run_python,
)
from rounding import assert_same_but_for_rounding
from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR

from sb_prune import lobes
from sb_prune.export.loading import load_export
from sb_prune.run.snapshots import read_meta
from sb_prune.support.hashes import file_hash

TWO_EPOCHS = {"number_of_epochs": 2, "prune_epochs": 1, "schedule_steps": 2}


@dataclass(frozen=True)
class Recipe:
    """A recipe and how its export is used.

    folder : where its script is
    script : name of that
    tiny : scalars that make it run in seconds
    corpus : fixture with its data
    interface : SpeechBrain's, of its export
    data : output folder -> scalars that name a corpus with fewer splits
    pruning : scalars that make pruning short, too
    """

    folder: Path
    script: str
    tiny: dict
    corpus: str
    interface: type
    data: Callable = lambda folder: {}
    pruning: dict = field(default_factory=lambda: TWO_EPOCHS)


RECIPES = {
    "CTC": Recipe(
        CTC,
        "train_with_wav2vec.py",
        TINY_CTC,
        "corpus",
        EncoderASR,
        lambda folder: {
            "test_splits": "[test-clean]",
            "test_csv": f"[{folder}/test-clean.csv]",
        },
    ),
    "SLURP": Recipe(
        SLURP,
        "train_with_wav2vec2.py",
        TINY_SLURP,
        "slurp_corpus",
        EncoderDecoderASR,
        pruning={**TWO_EPOCHS, "max_decode_ratio": 0.2},  # it knows nothing
    ),
}
VARIANTS = ("size", "mac", "sepsize", "transformer_only")


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request):
    return RECIPES[request.param]


@pytest.fixture(scope="module")
def train(request, recipe, tiny_wav2vec2):
    """Function: runs a YAML of the recipe into a folder at debug size."""
    corpus = request.getfixturevalue(recipe.corpus)

    def run(folder, yaml, script=None, **more):
        how, more = how_to_run(more)
        return run_python(
            script or recipe.folder / recipe.script,
            f"hparams/{yaml}.yaml",
            *options(
                recipe.tiny,
                **{
                    "data_folder": corpus,
                    "wav2vec2_hub": tiny_wav2vec2,
                    "output_folder": folder,
                    **recipe.data(folder),
                    **more,
                },
            ),
            cwd=recipe.folder,
            **how,
        )

    return run


@pytest.fixture(scope="module")
def dense(tmp_path_factory, train):
    """Output folder of a (hardly trained) dense run."""
    folder = tmp_path_factory.mktemp("dense") / "run"
    train(folder, "demo_finetune", number_of_epochs=1)
    return folder


@pytest.fixture(scope="module")
def prune(recipe, train, dense):
    """Function: prunes what `dense` trained."""

    def run(folder, yaml="demo_prune", **more):
        return train(
            folder, yaml, **{**recipe.pruning, "dense_folder": dense, **more}
        )

    return run


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, prune):
    """Output folder of a finished run of demo_prune.yaml."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    prune(folder, new_process=True)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(tmp_path, prune, train, variant):
    prune(tmp_path / "run", f"prune_{variant}")
    assert read_meta(tmp_path / "run/save/cut")["difference"] <= 1e-5
    log = (tmp_path / "run/train_log.txt").read_text()
    first = log.splitlines()[0]
    targets = re.findall(r"realised_sparsity(\S*): ([^,\s]+)", first)
    assert [name for name, _ in targets] == (
        ["[model.feature_extractor]", "[model.encoder]"]
        if variant == "sepsize"
        else [""]
    )
    assert all(float(value) >= 0.4 for _, value in targets)
    lobe = lobes.Wav2Vec2(str(tmp_path / "run/export"), str(tmp_path))
    channels = [
        layer.conv.out_channels
        for layer in lobe.model.feature_extractor.conv_layers
    ]
    if variant == "sepsize":
        assert channels != [8] * 7
    if variant == "transformer_only":
        assert channels == [8] * 7


def test_export_is_what_was_evaluated(recipe, pruned, tmp_path):
    """The whole system by from_hparams, the encoder alone by its lobe."""
    system = recipe.interface.from_hparams(
        source=str(pruned / "export"), savedir=str(tmp_path)
    )
    loaded = load_export(pruned / "export").hparams["wav2vec2"]
    lobe = lobes.Wav2Vec2(str(pruned / "export"), str(tmp_path)).eval()
    wavs = torch.randn(2, 4000)
    with torch.no_grad():
        expected = loaded(wavs)
        assert_same_but_for_rounding(lobe(wavs), expected)
    system.transcribe_batch(wavs, torch.ones(2))


@pytest.mark.parametrize("recipe", ["SLURP"], indirect=True)
def test_slurp_export_understands_what_the_run_did(
    slurp_corpus, pruned, tmp_path
):
    from slurp_metrics import NO_ANSWER
    from slurp_prepare import parse_semantics

    model = EncoderDecoderASR.from_hparams(
        source=str(pruned / "export"), savedir=str(tmp_path)
    )
    lines = (pruned / "predictions.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        expected = json.loads(line)
        audio = slurp_corpus / "audio/slurp_real" / expected.pop("file")
        try:
            understood = parse_semantics(model.transcribe_file(str(audio)))
        except ValueError:
            understood = NO_ANSWER
        assert understood == expected


@pytest.mark.parametrize("where", [{"KILL_PHASE": "cut"}, {"KILL_EPOCH": "2"}])
def test_killed_and_rerun_ends_bit_for_bit(
    recipe, prune, pruned, tmp_path, where
):
    folder = tmp_path / "run"
    killed = prune(
        folder,
        script=KILLED,
        check=False,
        TRAIN=recipe.script,
        **where,
    )
    assert killed.returncode == -signal.SIGKILL
    prune(folder)
    weights = "export/model.safetensors"
    assert file_hash(folder / weights) == file_hash(pruned / weights)


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "bf16"},
        {
            "processes": 2,
            "distributed_backend": "gloo",
            "find_unused_parameters": True,
        },
    ],
    ids=["bf16", "two processes"],
)
def test_other_ways_to_run(prune, tmp_path, more):
    prune(tmp_path / "run", **more)
    assert read_meta(tmp_path / "run/save/cut")["difference"] <= 1e-5
    load_export(tmp_path / "run/export")


def test_a_frozen_front_end_is_not_cut(prune, tmp_path):
    done = prune(tmp_path / "run", check=False, freeze_feature_extractor="True")
    assert done.returncode
    said = "is frozen, so it cannot be pruned"
    assert said in done.stdout + done.stderr
