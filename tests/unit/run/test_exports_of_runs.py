"""What a run exports, where to, and what is refused before it trains."""

import shutil

import pytest
import torch
from small_runs import conformer, fit, make, prune, pruning
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.checkpoints import Checkpointer

from sb_prune.support.disk import MARK
from sb_prune.support.hashes import file_hash

TARGET = 0.5


class Encoder(Pretrained):
    """An interface of SpeechBrain's, as users write theirs."""

    MODULES_NEEDED = ["encoder"]


@pytest.fixture
def model():
    return conformer()


@pytest.fixture
def begin(model, tmp_path):
    """Function: makes the Brain of a run, with changes of its block."""

    def begin(yaml=None, epochs=2, **changes):
        block = pruning(tmp_path, model, TARGET, **changes)
        if yaml is not None:
            (tmp_path / "inference.yaml").write_text(yaml)
        return make(tmp_path, model, {"pruning": block}, epochs=epochs)

    return begin


def weights(folder):
    return file_hash(folder / "export" / "model.ckpt")


def test_paths_of_the_dense_model_are_not_exported(model, begin, tmp_path):
    """Else SpeechBrain would fetch the dense weights from there."""
    elsewhere = "    paths:\n        model: somebody/dense/model.ckpt\n"
    skipped = "    conditions:\n        model: False\n"
    ours = fit(begin(model.yaml + elsewhere + skipped), model)
    theirs = Encoder.from_hparams(
        source=str(tmp_path / "export"), savedir=str(tmp_path / "fetched")
    )
    transformer, lin = theirs.mods.encoder
    found = model.predictions({"Transformer": transformer, "lin": lin})
    assert torch.allclose(found, model.predictions(ours.modules), atol=1e-6)


def test_debugging_leaves_a_finished_export_alone(model, begin, tmp_path):
    fit(begin(), model)
    before = weights(tmp_path)
    brain = begin()
    brain.debug = True
    brain.checkpointer = Checkpointer(  # as SpeechBrain does
        tmp_path / "passing", brain.checkpointer.recoverables
    )
    fit(brain, model)
    assert brain.pruning.is_cut and weights(tmp_path) == before


def test_a_slash_at_the_end_changes_nothing(model, begin, tmp_path):
    folder = f"{tmp_path / 'export'}/"
    fit(begin(export_folder=folder, milestones=[0.3]), model)
    assert (tmp_path / "export_0.3" / "hyperparams.yaml").is_file()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "modules:\n    encoder",
            "parts:\n    encoder",
            "has no modules; list",
        ),
        (
            "pretrainer:",
            "search: !new:torch.nn.Linear\n    inputs: 3\n\npretrainer:",
            "not all cannot be built from it",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(
    model, begin, old, new, message
):
    assert model.yaml.count(old) == 1
    brain = begin(model.yaml.replace(old, new))
    with pytest.raises(ValueError, match=f"inference: .*{message}"):
        fit(brain, model)
    assert brain.optimizer_step == 0


def test_a_value_may_have_the_name_of_a_module(model, begin, tmp_path):
    brain = begin()
    brain.hparams.lin = "the kind of its last layer"
    fit(brain, model)
    assert weights(tmp_path)


def test_a_dense_run_is_not_mixed_with_another(model, begin, tmp_path):
    dense = make(tmp_path, model, {})
    dense.checkpointer.save_checkpoint()
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        fit(begin(), model)


def test_a_finished_run_may_have_other_steps(model, begin, tmp_path):
    """As with more processes, or larger batches: the cut is done."""
    brain = begin()
    brain.grad_accumulation_factor = 4
    with pytest.raises(ValueError, match="schedule_steps: 3 is longer than"):
        fit(brain, model)
    fit(begin(), model)
    brain = begin()
    brain.grad_accumulation_factor = 4
    assert fit(brain, model).pruning.is_cut


def test_evaluation_leaves_alone_what_is_being_written(model, begin, tmp_path):
    """Another process may be training."""
    fit(begin(), model).checkpointer.save_checkpoint()
    folder = tmp_path / "save" / "finetune"
    (whole,) = folder.glob("CKPT*")
    being_written = folder / "CKPT+9999"
    shutil.copytree(whole, being_written)
    (being_written / MARK).unlink()
    (being_written / "model.ckpt").write_bytes(b"half")
    meta = (being_written / "CKPT.yaml").read_text()
    newest = meta.replace("unixtime: ", "unixtime: 9")
    (being_written / "CKPT.yaml").write_text(newest)
    brain = begin()
    brain.evaluate(model.batches(), test_loader_kwargs={"batch_size": None})
    assert brain.pruning.is_cut and being_written.is_dir()


def test_a_place_is_the_same_with_a_slash(model, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    prune(first, model, 0.3)
    start = str(first / "export")
    for end in ("", "/"):
        block = pruning(second, model, 0.6, start_from=start + end)
        fit(make(second, model, {"pruning": block}), model)
