"""Presets are taken by name, and any part of one can be replaced."""

import functools
import io
import shutil
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from sb_prune import (
    ConstantSchedule,
    HardConcrete,
    LinearSchedule,
    MACBudget,
    conformer_structures,
    magnitude_score,
)
from sb_prune.presets import FOLDER, main, preset, preset_names

BLOCK = """
output_folder: results
target: 0.3
pruning: !apply:sb_prune.preset
    name: conformer_l0
    module: Transformer
"""


def load(*lines, overrides=None):
    """The pruning block of a YAML with more lines in it."""
    text = BLOCK + "".join(f"    {line}\n" for line in lines)
    return load_hyperpyyaml(io.StringIO(text), overrides)["pruning"]


def readable(value):
    """What can be compared of a block: partials and objects are new ones."""
    if isinstance(value, functools.partial):
        return value.func, readable(value.keywords)
    if isinstance(value, dict):
        return {key: readable(part) for key, part in value.items()}
    if type(value).__module__.startswith("sb_prune."):
        return type(value), readable(vars(value))
    return value


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_what_its_yaml_says(name):
    with (FOLDER / f"{name}.yaml").open() as file:
        written = load_hyperpyyaml(file)
    assert readable(preset(name)) == readable(written)


def test_keys_are_added_and_replaced():
    block = load("target: !ref <target>", "schedule_steps: 7", "milestones:")
    assert block["module"] == "Transformer"
    assert block["target"] == 0.3
    assert block["schedule_steps"] == 7
    assert block["milestones"] is None
    assert "name" not in block


def test_a_reference_within_a_string():
    block = load("export_folder: !ref <output_folder>/export")
    assert block["export_folder"] == "results/export"


def test_a_target_for_each_module():
    block = load("target:", "    CNN: 0.2", "    Transformer: !ref <target>")
    assert block["target"] == {"CNN": 0.2, "Transformer": 0.3}


def test_a_mapping_replaces_arguments_and_adds_others():
    block = load("gates:", "    bound: 8.0", "schedule: {start: 0.1}")
    assert block["gates"].func is HardConcrete
    assert block["gates"].keywords == {"straight_through": False, "bound": 8.0}
    assert block["schedule"].func is LinearSchedule
    assert block["schedule"].keywords == {"start": 0.1}


def test_a_mapping_gives_a_bare_function_arguments():
    block = load("first_score: {}", "controller: {tolerance: 0.1}")
    assert block["first_score"] is magnitude_score
    assert block["controller"].keywords == {"tolerance": 0.1}


def test_a_class_takes_the_place_of_another():
    block = load(
        "schedule: !name:sb_prune.ConstantSchedule",
        "budget: !name:sb_prune.MACBudget",
        "    frames: 100",
        "gate_optimizer: !name:torch.optim.SGD",
        "    lr: 0.5",
    )
    assert block["schedule"] is ConstantSchedule
    assert block["budget"].func is MACBudget
    assert block["gate_optimizer"].func is torch.optim.SGD
    assert block["gate_optimizer"].keywords == {"lr": 0.5}  # and nothing else


def test_an_object_is_made_of_the_replaced_arguments():
    block = preset("layers_similarity", criterion={"removed": 2})
    assert block["criterion"].removed == 2


def test_null_takes_a_part_away():
    assert load("distillation: null")["distillation"] is None


def test_the_command_line_replaces_keys_too():
    changes = {"pruning": {"target": 0.7, "gates": {"bound": 4.0}}}
    block = load("target: 0.5", overrides=changes)
    assert block["target"] == 0.7
    assert block["gates"].keywords["bound"] == 4.0


def test_the_block_comes_before_other_objects():
    """The rest of the YAML is read as if there were no preset in it."""
    text = BLOCK + (
        "later: !new:collections.Counter\n    deep: {a: [1, {b: 2}]}\n"
    )
    read = load_hyperpyyaml(io.StringIO(text))
    assert read["later"] == {"deep": {"a": [1, {"b": 2}]}}
    assert read["pruning"]["structures"].func is conformer_structures


def test_two_blocks_of_one_preset_share_nothing():
    preset("conformer_l0")["structures"].keywords["kinds"].clear()
    assert preset("conformer_l0")["structures"].keywords["kinds"]


@pytest.mark.parametrize(
    "name, hint",
    [
        ("conformer_10", "did you mean conformer_l0"),
        ("wav2vec2_l0.yaml", "did you mean wav2vec2_l0"),
        ("nothing like it", "; write one of .*conformer_l0.*layers_convexity"),
        ("../hparams/conformer_l0", "!include:FILE"),
        (None, "preset: name: None is no preset"),
    ],
)
def test_unknown_names_say_what_there_is(name, hint):
    with pytest.raises(ValueError, match=hint):
        preset(name)


def test_a_yaml_without_a_name_says_what_there_is():
    text = "pruning: !apply:sb_prune.preset\n    module: Transformer\n"
    with pytest.raises(ValueError, match="name: None is no preset"):
        load_hyperpyyaml(io.StringIO(text))


def test_a_misspelt_argument_of_an_object():
    told = "preset layers_convexity: criterion: neighbors: .*; write neighbours"
    with pytest.raises(ValueError, match=told):
        preset("layers_convexity", criterion={"neighbors": 3})


def test_a_copy_is_still_included(tmp_path):
    shutil.copy(FOLDER / "conformer_l0.yaml", tmp_path / "mine.yaml")
    recipe = tmp_path / "train.yaml"
    lines = ["!include:mine.yaml", "target: 0.4", "gates: {bound: 6.0}"]
    recipe.write_text("pruning: " + "\n    ".join(lines))
    with recipe.open() as file:
        included = load_hyperpyyaml(file)["pruning"]
    named = preset("conformer_l0", target=0.4, gates={"bound": 6.0})
    assert readable(included) == readable(named)


def test_listed_with_one_line_each(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(len(line) > 40 for line in lines)


def test_printed_as_it_is(capsys):
    main(["wav2vec2_score"])
    assert (
        capsys.readouterr().out == (FOLDER / "wav2vec2_score.yaml").read_text()
    )


def test_an_unknown_name_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        main(["wav2vec_score"])
    assert "did you mean wav2vec2_score" in capsys.readouterr().err


def test_runs_as_a_module():
    command = [sys.executable, "-W", "error::RuntimeWarning"]
    done = subprocess.run(
        [*command, "-m", "sb_prune.presets", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: python -m sb_prune.presets [-h] [name]" in done.stdout
