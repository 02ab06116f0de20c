"""A second pruning names the kinds of the first, of which some are gone."""

from functools import partial

import pytest
import small_runs
import torch
from rounding import assert_same_but_for_rounding
from small_runs import make, prune, pruning

from sb_prune import conformer_structures
from sb_prune.export.loading import load_export

KINDS = [
    "layers",
    "ffn_modules",
    "attention_modules",
    "conv_modules",
    "ffn_units",
    "heads",
    "conv_channels",
]
EVERY = partial(conformer_structures, kinds=KINDS)


def attention_last(pruner):
    """A score by which attention goes first."""
    return torch.cat(
        [
            torch.full((s.units,), float("mha_layer" not in s.name))
            for s in pruner.declaration.structures
        ]
    )


@pytest.fixture(scope="module")
def model():
    """A Conformer whose attention cannot have dims inside heads cut."""
    model = small_runs.conformer()
    yaml = model.yaml.replace("RelPosMHAXL", "RoPEMHA")
    return small_runs.Model(**{**vars(model), "yaml": yaml})


@pytest.fixture(scope="module")
def first(tmp_path_factory, model):
    """An export without any attention."""
    folder = tmp_path_factory.mktemp("first")
    prune(folder, model, 0.35, structures=EVERY, score=attention_last)
    kept = load_export(folder / "export").steps[0].plan.keep
    modules = {n: k for n, k in kept.items() if n.endswith("mha_layer")}
    assert modules and not any(keep.any() for keep in modules.values())
    return folder / "export"


def test_attention_is_gone_and_named_again(first, model, tmp_path):
    start = {"start_from": str(first)}
    brain = prune(tmp_path, model, 0.5, structures=EVERY, **start)
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5
    export = load_export(tmp_path / "export")
    assert len(export.steps) == 2
    left = {s.kind for s in export.steps[1].declaration.structures}
    assert left == {*KINDS} - {"attention_modules", "heads"}
    assert_same_but_for_rounding(
        model.predictions(export.hparams), model.predictions(brain.modules)
    )


def refusal(folder, model, first, kinds):
    structures = partial(conformer_structures, kinds=kinds)
    start = {"start_from": str(first), "structures": structures}
    brain = make(
        folder, model, {"pruning": pruning(folder, model, 0.5, **start)}
    )
    with pytest.raises(ValueError) as caught:
        small_runs.fit(brain, model)
    assert brain.optimizer_step == 0
    return str(caught.value)


def test_a_kind_that_never_was_there_is_refused(first, model, tmp_path):
    message = refusal(tmp_path, model, first, [*KINDS, "value_dims"])
    assert "kinds: ['value_dims'] match nothing in this model" in message


def test_only_what_is_gone_is_named(first, model, tmp_path):
    message = refusal(tmp_path, model, first, ["attention_modules", "heads"])
    assert "nothing that could be cut is left of the declared kinds" in message
    assert "; declare others" in message
