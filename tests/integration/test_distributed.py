"""Two processes (gloo, on the CPU) prune what one process would."""

from pathlib import Path

import pytest
import torch
from recipe_runs import run_python
from small_train import train

from sb_prune.export.loading import load_export
from sb_prune.run.snapshots import read_meta
from sb_prune.support.hashes import file_hash

HERE = Path(__file__).parent
TWO = {
    "processes": 2,
    "distributed_backend": "gloo",
    # several micro-batches for each of the two
    "grad_accumulation_factor": 2,
    "max_batch_length": 4,
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Where one process was: 4 batches for each step."""
    folder = tmp_path_factory.mktemp("one")
    train(folder, batches_per_step=4)
    return folder


# DistributedDataParallel hands on copies of the outputs with `find_unused`;
# "again" prunes what was pruned in `first`
@pytest.fixture(scope="module", params=["usual", "find_unused", "again"])
def way(request):
    return request.param


@pytest.fixture(scope="module")
def folder_of_one(way, first, tmp_path_factory):
    """Where one process was, with the same start as the two."""
    if way != "again":
        return first
    folder = tmp_path_factory.mktemp("one")
    train(folder, 4, str(first / "export"))
    return folder


@pytest.fixture(scope="module")
def folder_of_two(way, first, tmp_path_factory):
    """Where two processes were, with 2 x 2 of the same batches a step."""
    folder = tmp_path_factory.mktemp("two")
    options = {"find_unused": [way], "again": [first / "export"]}
    run_python(
        HERE / "small_train.py",
        folder,
        2,
        *options.get(way, []),
        processes=2,
        new_process=way == "usual",
    )
    return folder


@pytest.fixture(scope="module")
def of_one(folder_of_one):
    """What one process saw."""
    return torch.load(folder_of_one / "steps0.pt", weights_only=False)


@pytest.fixture(scope="module")
def of_two(folder_of_two):
    """What each of two processes saw."""
    files = [folder_of_two / f"steps{rank}.pt" for rank in (0, 1)]
    return [torch.load(file, weights_only=False) for file in files]


def test_gates_are_those_of_one_process(of_one, of_two):
    assert len(of_one["steps"]) == 7  # 8, the first before the target rises
    for rank in of_two:
        assert len(rank["steps"]) == 7
        for expected, found in zip(of_one["steps"], rank["steps"]):
            for name, value in expected.items():
                torch.testing.assert_close(
                    found[name], value, rtol=0, atol=1e-6
                )


def test_processes_agree_bit_for_bit(of_two):
    first, second = of_two
    for one, other in zip(first["steps"], second["steps"]):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for part in ("model", "teacher"):
        assert all(
            torch.equal(first[part][name], second[part][name])
            for name in first[part]
        )


def test_bad_loss_of_one_process_stops_the_gates_of_both(of_two):
    for rank in of_two:
        logits = [step["logits"] for step in rank["steps"]]
        stayed = [torch.equal(a, b) for a, b in zip(logits, logits[1:])]
        assert stayed == [False, True, False, False, False, True]


def test_weights_are_those_of_one_process(of_one, of_two):
    """Through both phases, so through the cut and a second wrapping."""
    for name, value in of_one["model"].items():
        torch.testing.assert_close(
            of_two[0]["model"][name], value, rtol=0, atol=1e-5
        )


def test_modules_are_unwrapped_in_the_end(of_two):
    assert of_two[0]["lin"] is torch.nn.Linear


def test_the_main_process_alone_exports(way, folder_of_two):
    """At a milestone it waits until the other one has gone on."""
    again = way == "again"
    exports = ["export", "export_0.6"] if again else ["export"]
    found = {f.name for f in folder_of_two.glob("export*_by*")}
    assert found == {f"{name}_by0" for name in exports}
    for name in exports:
        export = load_export(folder_of_two / name)
        assert len(export.steps) == (2 if again else 1)


def test_the_export_keeps_the_units_of_one_process(
    folder_of_one, folder_of_two
):
    one, two = (
        [step.plan.to_dict() for step in load_export(folder / "export").steps]
        for folder in (folder_of_one, folder_of_two)
    )
    assert one == two


@pytest.fixture(scope="module")
def recipe_of_two(tmp_path_factory, prune):
    """The recipe, pruned by two processes without interruption."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    prune(folder, **TWO)
    return folder


def test_recipe_of_two_processes_exports(recipe_of_two):
    assert read_meta(recipe_of_two / "save/cut")["difference"] <= 1e-5
    assert load_export(recipe_of_two / "export").encoder is not None
    assert not list(recipe_of_two.rglob("*.incomplete"))


def test_killed_and_rerun_ends_bit_for_bit(tmp_path, prune, recipe_of_two):
    """The generators of each process continue where they were."""
    killed = prune(
        tmp_path / "run",
        script=HERE / "killed_train.py",
        check=False,
        KILL_EPOCH="2",
        **TWO,
    )
    assert killed.returncode
    assert not (tmp_path / "run/save/cut").exists()
    prune(tmp_path / "run", **TWO)
    found, expected = (
        file_hash(folder / "export/model.ckpt")
        for folder in (tmp_path / "run", recipe_of_two)
    )
    assert found == expected


def test_rerun_by_one_process_warns(tmp_path, prune, recipe_of_two):
    """What two processes saved, one may evaluate."""
    done = prune(recipe_of_two, test_only=True)
    assert "Saved by 2 processes, continued by 1" in done.stdout + done.stderr
