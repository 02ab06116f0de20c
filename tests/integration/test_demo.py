"""`make demo` at debug size, and the report of what it exports."""

import json
import subprocess

import pytest
from recipe_runs import RECIPE, ROOT, run_python

MODELS = ("dense", "dense_longer", "pruned")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "results"
    run_python(RECIPE / "demo.py", folder, "--debug_size", cwd=ROOT)
    return folder


def test_report_has_what_it_promises(demo):
    report = json.loads((demo / "report.json").read_text())
    assert report["seed"] == 1234
    assert 0 <= report["export_max_abs_diff"] <= 1e-5
    for model in MODELS:
        row = report[model]
        assert set(row) == {
            "wer",
            "encoder_params",
            "total_params",
            "gmacs_per_second",
            "rtf",
            "epochs",
        }
        assert all(value > 0 for value in row.values())
    dense, pruned = report["dense"], report["pruned"]
    assert pruned["encoder_params"] <= dense["encoder_params"] / 2
    assert pruned["gmacs_per_second"] < dense["gmacs_per_second"]
    assert report["dense_longer"]["epochs"] == pruned["epochs"]


def test_pictures_are_pngs(demo):
    for name in ("structure.png", "curves.png"):
        assert (demo / name).read_bytes().startswith(b"\x89PNG")


def test_rerun_keeps_the_result(demo):
    before = json.loads((demo / "report.json").read_text())
    run_python(RECIPE / "demo.py", demo, "--debug_size", cwd=ROOT)
    after = json.loads((demo / "report.json").read_text())
    for model in MODELS:
        for key in ("wer", "encoder_params", "gmacs_per_second"):
            assert after[model][key] == before[model][key]


def test_a_failing_run_shows_its_log(tmp_path):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense/save").write_text("in the way")
    done = run_python(
        RECIPE / "demo.py", tmp_path, "--debug_size", cwd=ROOT, check=False
    )
    assert done.returncode
    assert "failed; the end of" in done.stderr


def test_report_of_the_export(demo):
    folder = demo / "pruned/export"
    done = run_python("-m", "sb_prune.report", folder, "--seconds=2", cwd=demo)
    for word in (
        "encoder.layers.0",
        "pruned part, parameters",
        "MACs/s",
        "real-time factor",
        "peak memory",
    ):
        assert word in done.stdout
    params = json.loads((demo / "report.json").read_text())["pruned"]
    assert f"{params['encoder_params']:,}" in done.stdout
    for name in ("structure.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_report_of_no_export_is_one_clear_line(demo):
    done = run_python("-m", "sb_prune.report", demo, cwd=demo, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("report: ")
    assert "name an export folder" in done.stderr


def test_make_runs_this_demo_and_these_tests():
    def plan(goal):
        return subprocess.run(
            ["make", "--dry-run", goal],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "transformer/demo.py results/demo" in plan("demo")
    assert "-m pytest" in plan("test")
    assert "tests/benchmarks/cost.py" in plan("bench")
