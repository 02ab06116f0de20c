"""Runs of a demo follow one another, or go side by side, as they should."""

import pytest

from sb_prune.demo.command import demonstrate
from sb_prune.demo.runs import Run, train

# Notes when it starts and ends; fails if its seed is odd.
SCRIPT = """
import sys, time
from pathlib import Path

options = dict(a[2:].split("=") for a in sys.argv[2:] if "=" in a)
name = Path(options["output_folder"]).name
print("the last words of", name, flush=True)
for word in ("starts", "ends"):
    with open("notes", "a") as notes:
        notes.write(f"{name} {word}\\n")
    time.sleep(0.3)
sys.exit(int(options["seed"]) % 2)
"""


@pytest.fixture
def make_run(tmp_path):
    """Function: name -> Run of a script that only takes notes."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def make(name, seed=0):
        options = {"seed": seed}
        return Run(tmp_path / name, script, "x.yaml", 1, "WER", options)

    return make


def notes(folder):
    return (folder / "notes").read_text().splitlines()


def mark(run):
    """What a run of a recipe would have made before the marker."""
    run.folder.mkdir()
    return run


def test_a_demo_needs_a_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo", str(tmp_path), "--jobs=0"])
    with pytest.raises(SystemExit):
        demonstrate(None, "A demo.")
    assert "--jobs: 0 must be at least 1" in capsys.readouterr().err


def test_one_job_trains_one_run_at_a_time(make_run, tmp_path):
    dense, pruned, longer = map(mark, map(make_run, ("dense", "pruned", "l")))
    train([[dense, pruned], [longer]], jobs=1)
    started = [line.split()[0] for line in notes(tmp_path)[::2]]
    ended = [line.split()[0] for line in notes(tmp_path)[1::2]]
    assert started == ended
    assert sorted(started) == ["dense", "l", "pruned"]
    assert started.index("dense") < started.index("pruned")


def test_two_jobs_train_two_chains_side_by_side(make_run, tmp_path):
    dense, pruned, longer = map(mark, map(make_run, ("dense", "pruned", "l")))
    train([[dense, pruned], [longer]], jobs=2)
    lines = notes(tmp_path)
    assert {*lines[:2]} == {"dense starts", "l starts"}
    assert lines.index("dense ends") < lines.index("pruned starts")


def test_finished_runs_are_left_alone(make_run, tmp_path):
    dense, pruned = map(mark, map(make_run, ("dense", "pruned")))
    dense.marker.touch()
    train([[dense, pruned]])
    assert notes(tmp_path) == ["pruned starts", "pruned ends"]
    assert pruned.marker.is_file()


def test_a_run_that_fails_ends_the_demo(make_run, tmp_path, capsys):
    broken, waiting = mark(make_run("broken", seed=1)), mark(make_run("w"))
    with pytest.raises(SystemExit, match="broken failed with status 1"):
        train([[broken, waiting]])
    assert "the last words of broken" in capsys.readouterr().err
    assert not broken.marker.is_file()
    assert "w starts" not in notes(tmp_path)
