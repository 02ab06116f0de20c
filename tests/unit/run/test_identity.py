"""The identity of a run: another value of a key is refused by name."""

import inspect
import json
from functools import partial

import pytest
import torch
from unit.test_brain import PrunedRecipe, block, fit, make

import sb_prune
from sb_prune import depth
from sb_prune.distillation import nearest_surviving
from sb_prune.run import record
from sb_prune.run.layer_settings import LayerSettings
from sb_prune.run.settings import PruningSettings

LAYERWISE = sb_prune.LayerwiseDistillation
OTHER_STRUCTURES = partial(
    sb_prune.conformer_structures, kinds=["feed_forward"]
)
PRUNING = {
    "module": "Transformer",
    "structures": sb_prune.conformer_structures,
    "target": 0.5,
    "prune_epochs": 2,
    "schedule_steps": 10,
}
LAYERS = {
    "module": "Transformer",
    "structures": sb_prune.conformer_structures,
    "criterion": depth.LastLayers(1),
}
SCORE = {"score": sb_prune.magnitude_score}
DISTILLED = {"distillation": partial(LAYERWISE, temperature=2.0)}
STARTED = {"start_from": "results/dense"}

# key, what else the block says, the old value, the new one, and what the
# message says about both
CHANGED = [
    ("module", {}, "Transformer", ["Transformer", "CNN"], "'CNN'"),
    (
        "structures",
        {},
        partial(sb_prune.conformer_structures, kinds=["heads"]),
        OTHER_STRUCTURES,
        "['heads']), not sb_prune.conformer_structures(kinds: ['feed_forward']",
    ),
    (
        "structures",
        {},
        [sb_prune.conformer_structures],
        [sb_prune.decoder_structures],
        "[sb_prune.conformer_structures], not [sb_prune.decoder_structures]",
    ),
    ("target", {}, 0.5, 0.6, "0.5, not 0.6"),
    ("target", {}, 0.5, {"encoder": 0.5}, "0.5, not {'encoder': 0.5}"),
    ("prune_epochs", {}, 2, 3, "2, not 3"),
    ("schedule_steps", {}, 10, 20, "10, not 20"),
    ("prune_steps", {}, None, 12, "None, not 12"),
    ("hold_weights", {}, False, True, "False, not True"),
    ("start_from", {}, None, "results/dense", "None, not 'results/dense'"),
    ("start_min_key", STARTED, None, "WER", "None, not 'WER'"),
    ("start_max_key", STARTED, "ACC", "F1", "'ACC', not 'F1'"),
    (
        "budget",
        {},
        partial(sb_prune.MACBudget, frames=300),
        partial(sb_prune.MACBudget, frames=500),
        "MACBudget(frames: 300), not sb_prune.MACBudget(frames: 500)",
    ),
    (
        "budget",
        {},
        sb_prune.MACBudget,
        sb_prune.ParameterBudget,
        "sb_prune.MACBudget, not sb_prune.ParameterBudget",
    ),
    (
        "schedule",
        {},
        sb_prune.LinearSchedule,
        sb_prune.CubicSchedule,
        "sb_prune.LinearSchedule, not sb_prune.CubicSchedule",
    ),
    (
        "schedule",
        {},
        partial(sb_prune.CubicSchedule, start=0.1),
        partial(sb_prune.CubicSchedule, start=0.2),
        "CubicSchedule(start: 0.1), not sb_prune.CubicSchedule(start: 0.2)",
    ),
    (
        "gates",
        {},
        partial(sb_prune.HardConcrete, temperature=0.5),
        partial(sb_prune.HardConcrete, temperature=0.6),
        "(temperature: 0.5), not sb_prune.HardConcrete(temperature: 0.6)",
    ),
    (
        "controller",
        {},
        sb_prune.ExactBudget,
        partial(sb_prune.AugmentedLagrangian, lr=0.1),
        "ExactBudget, not sb_prune.AugmentedLagrangian(lr: 0.1)",
    ),
    (
        "gate_optimizer",
        {},
        partial(torch.optim.SGD, lr=0.1),
        partial(torch.optim.SGD, lr=0.2),
        "SGD(lr: 0.1), not torch.optim.sgd.SGD(lr: 0.2)",
    ),
    (
        "first_score",
        {},
        sb_prune.magnitude_score,
        sb_prune.taylor_score,
        "sb_prune.magnitude_score, not sb_prune.taylor_score",
    ),
    (
        "score",
        {},
        sb_prune.magnitude_score,
        sb_prune.random_score,
        "sb_prune.magnitude_score, not sb_prune.random_score",
    ),
    ("score_every", SCORE, 10, 20, "10, not 20"),
    (
        "refit",
        {},
        sb_prune.LeastSquares,
        partial(sb_prune.LeastSquares, ridge=0.1),
        "LeastSquares, not sb_prune.LeastSquares(ridge: 0.1)",
    ),
    ("min_keep", {}, 1, 2, "1, not 2"),
    ("seed", {}, 0, 1, "0, not 1"),
    (
        "distillation",
        {},
        partial(LAYERWISE, temperature=2.0),
        partial(LAYERWISE, temperature=3.0),
        "(temperature: 2.0), not sb_prune.LayerwiseDistillation(temperature: 3",
    ),
    (
        "distillation",
        {},
        LAYERWISE,
        partial(LAYERWISE, match=nearest_surviving),
        "(match: sb_prune.distillation.nearest_surviving)",
    ),
    ("teacher", DISTILLED, None, "results/large", "None, not 'results/large'"),
]
LAYERS_CHANGED = [
    ("module", {}, "Transformer", "wav2vec2", "'Transformer', not 'wav2vec2'"),
    (
        "structures",
        {},
        sb_prune.conformer_structures,
        OTHER_STRUCTURES,
        "conformer_structures, not sb_prune.conformer_structures(kinds",
    ),
    (
        "criterion",
        {},
        depth.LastLayers(1),
        depth.LastLayers(2),
        "LastLayers(removed: 1), not sb_prune.depth.LastLayers(removed: 2)",
    ),
    (
        "criterion",
        {},
        depth.SimilarBlock(depth.linear_cka, 1),
        depth.SimilarBlock(depth.cosine_similarity, 1),
        "similarity: sb_prune.depth.cosine_similarity",
    ),
    ("labels", {}, "phonemes", ["spk_id"], "['phonemes'], not ['spk_id']"),
    ("sample", {}, 2000, 1000, "2000, not 1000"),
    (
        "pooling",
        {},
        depth.mean_over_time,
        depth.max_over_time,
        "sb_prune.depth.mean_over_time, not sb_prune.depth.max_over_time",
    ),
    ("seed", {}, 0, 1, "0, not 1"),
    ("start_from", {}, "dense", "export", "'dense', not 'export'"),
    ("start_min_key", STARTED, None, "WER", "None, not 'WER'"),
    ("start_max_key", STARTED, "ACC", "F1", "'ACC', not 'F1'"),
    (
        "distillation",
        {},
        partial(LAYERWISE, temperature=2.0),
        partial(LAYERWISE, temperature=3.0),
        "(temperature: 2.0), not sb_prune.LayerwiseDistillation(temperature: 3",
    ),
    ("teacher", DISTILLED, None, "results/large", "None, not 'results/large'"),
]
BLOCKS = {
    "pruning": (PruningSettings, PRUNING, CHANGED),
    "layer_pruning": (LayerSettings, LAYERS, LAYERS_CHANGED),
}
FREE = {
    "pruning": {"inference", "export_folder", "milestones"},
    "layer_pruning": {"inference", "export_folder"},
}


def go_on(folder, name, before, after):
    """Goes on with a run whose block has other values now."""
    settings, stock, _ = BLOCKS[name]
    old, new = (
        {name: settings(**{**stock, **given}).identity}
        for given in (before, after)
    )
    record.write_record(folder, old, {}, "", {})
    record.check_same_run(folder, record.read_record(folder), new, True)


@pytest.mark.parametrize(
    ("name", "key", "beside", "old", "new", "says"),
    [(name, *row) for name in BLOCKS for row in BLOCKS[name][2]],
)
def test_another_value_is_refused_by_name(
    name, key, beside, old, new, says, tmp_path
):
    before, after = {**beside, key: old}, {**beside, key: new}
    with pytest.raises(ValueError) as caught:
        go_on(tmp_path, name, before, after)
    message = str(caught.value)
    assert f"another {name}: {key}: " in message
    assert says in message
    assert "write another output_folder, or the old value" in message
    go_on(tmp_path, name, before, before)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_key_is_in_the_table_or_free(name):
    settings, _, rows = BLOCKS[name]
    keys = set(inspect.signature(settings).parameters)
    assert {row[0] for row in rows} | FREE[name] == keys
    assert not {row[0] for row in rows} & FREE[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_where_the_export_goes_may_change(name, tmp_path):
    given = {"inference": "dense.yaml", "export_folder": "export"}
    if name == "pruning":
        given["milestones"] = [0.3]
    assert given.keys() == FREE[name]
    go_on(tmp_path, name, {}, given)


def test_the_same_written_in_another_way_goes_on(tmp_path):
    as_in_a_yaml = {
        "budget": partial(sb_prune.ParameterBudget),
        "schedule": partial(sb_prune.LinearSchedule),
    }
    go_on(tmp_path, "pruning", {}, as_in_a_yaml)
    go_on(
        tmp_path,
        "pruning",
        {"gates": partial(sb_prune.HardConcrete, lower=-0.2, upper=1.2)},
        {"gates": partial(sb_prune.HardConcrete, upper=1.2, lower=-0.2)},
    )


# ------------------------------------------------------------- a whole run


class Killed(PrunedRecipe):
    """A recipe that is killed when its second epoch begins."""

    def on_stage_start(self, stage, epoch=None):
        if epoch == 2:
            raise KeyboardInterrupt
        super().on_stage_start(stage, epoch)


def begun(folder, **changes):
    """Prunes a tiny Conformer, killed after its first checkpoint."""
    brain, counter = make(folder, Killed, pruning=block(**changes))
    with pytest.raises(KeyboardInterrupt):
        fit(brain, counter)
    assert list((folder / "prune").glob("CKPT*"))


CHANGES = {
    "seed": 3,
    "budget": partial(sb_prune.MACBudget, frames=200),
    "schedule": sb_prune.CubicSchedule,
    "gates": partial(sb_prune.HardConcrete, temperature=0.5),
    "distillation": partial(LAYERWISE, temperature=3.0),
}


def test_a_killed_run_goes_on_with_its_own_settings_only(tmp_path):
    own = {
        "budget": partial(sb_prune.MACBudget, frames=100),
        "distillation": partial(LAYERWISE, temperature=2.0),
    }
    begun(tmp_path, **own)
    for key, value in CHANGES.items():
        brain, counter = make(tmp_path, pruning=block(**{**own, key: value}))
        with pytest.raises(ValueError, match=f"another pruning: {key}: .*not "):
            fit(brain, counter)
        assert not brain.hparams.losses
    brain, counter = make(tmp_path, pruning=block(**own))
    fit(brain, counter)
    assert counter.current == 4
    assert len(brain.hparams.losses) == 30  # the first epoch, of 10, is done


def test_a_folder_without_a_record_is_refused(tmp_path):
    """Earlier versions wrote `dense` and `prune`, and no `run.json`."""
    begun(tmp_path)
    (tmp_path / record.RECORD).unlink()
    brain, counter = make(tmp_path, pruning=block())
    with pytest.raises(
        ValueError, match=r"earlier version of sb_prune.*finish"
    ):
        fit(brain, counter)
    assert list((tmp_path / "prune").glob("CKPT*"))
    assert (tmp_path / "dense").is_dir()


# -------------------------------------------------------------- the record


@pytest.fixture
def written(tmp_path):
    """Path of a record."""
    record.write_record(tmp_path, {"pruning": {"seed": "0"}}, {}, "", {})
    return tmp_path / record.RECORD


@pytest.mark.parametrize("part", [0, 0.5, 0.95])
def test_a_truncated_record_is_refused(part, written):
    text = written.read_text(encoding="utf-8")
    written.write_text(text[: int(part * len(text))], encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json is damaged.*move the"):
        record.read_record(written.parent)


@pytest.mark.parametrize("content", ["[]", "{}", '"run"', '{"version": 1}'])
def test_a_record_of_something_else_is_refused(content, written):
    written.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        record.read_record(written.parent)


def test_a_record_of_a_later_version_is_refused(written):
    """Also if it holds other things than this version knows."""
    later = {"version": record.VERSION + 1, "phases": []}
    written.write_text(json.dumps(later), encoding="utf-8")
    with pytest.raises(ValueError, match="version 2, which a later sb_prune"):
        record.read_record(written.parent)
