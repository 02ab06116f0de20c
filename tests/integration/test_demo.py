"""The demos at debug size: what `make demo` and its sisters run."""

import json
import re
import shutil
import subprocess

import pytest
from recipe_runs import CTC, PROBING, RECIPE, ROOT, SLURP, run_python

DEMO = RECIPE / "demo.py"
ASR = {"wer": float}
SLU = {"intent_accuracy": float, "SLU_F1": float}
COSTS = {
    "encoder_params": int,
    "total_params": int,
    "gmacs_per_second": float,
    "rtf": float,
    "epochs": int,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder of a finished demo, its stdout, and where it was started."""
    return run_demo(DEMO, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module", params=[CTC, SLURP], ids=["ctc", "slurp"])
def wav2vec2_demo(request, tmp_path_factory):
    """Report and stdout of a demo that makes its own encoder."""
    demo = request.param / "demo.py"
    folder, stdout, started_in = run_demo(demo, tmp_path_factory.mktemp("demo"))
    assert list(started_in.iterdir()) == []
    return json.loads((folder / "report.json").read_text()), stdout


def run_demo(script, place):
    started_in = place / "cwd"
    started_in.mkdir()
    done = run_python(
        script, "../demo", "--debug_size", "--seed=5", cwd=started_in
    )
    return place / "demo", done.stdout, started_in


def check_report(report, figures):
    for name in ("dense", "dense_longer", "pruned"):
        types = {key: type(value) for key, value in report[name].items()}
        assert types == {**figures, **COSTS}
        assert report[name]["rtf"] > 0
    assert [report[n]["epochs"] for n in ("dense", "dense_longer")] == [2, 4]
    assert report["pruned"]["epochs"] == 4
    assert report["seed"] == 5
    assert 0 <= report["export_max_abs_diff"] <= 1e-5
    assert report["export_is_evaluated"] is True
    for figure in figures:
        evaluated = report["pruned"][figure]
        assert report[f"export_{figure}"] == pytest.approx(evaluated, 0.1)


def test_report(demo):
    check_report(json.loads((demo[0] / "report.json").read_text()), ASR)


def test_report_of_wav2vec2(wav2vec2_demo):
    report, _ = wav2vec2_demo
    check_report(report, ASR if "wer" in report["dense"] else SLU)


def test_sizes(demo):
    report = json.loads((demo[0] / "report.json").read_text())
    dense, pruned = report["dense"], report["pruned"]
    unit = 2 * 32 + 1  # of an FFN, the cheapest leaf
    half = dense["encoder_params"] / 2
    assert half - 3 * unit < pruned["encoder_params"] <= half + unit
    gone = dense["encoder_params"] - pruned["encoder_params"]
    assert dense["total_params"] - pruned["total_params"] == gone
    assert pruned["gmacs_per_second"] < dense["gmacs_per_second"]
    for key in ("encoder_params", "total_params", "gmacs_per_second"):
        assert report["dense_longer"][key] == dense[key]


def test_macs_of_wav2vec2(wav2vec2_demo):
    report, stdout = wav2vec2_demo
    assert "encoder: epoch 1 of 1, valid WER" in stdout
    dense, pruned = report["dense"], report["pruned"]
    assert dense["encoder_params"] == 1_330_448
    gone = dense["encoder_params"] - pruned["encoder_params"]
    assert dense["total_params"] - pruned["total_params"] == gone
    # 40% of the encoder's; the CTC head stays
    left = pruned["gmacs_per_second"] / dense["gmacs_per_second"]
    assert 0.59 < left < 0.61


def test_pictures_logs_and_tables(demo):
    folder, stdout, started_in = demo
    for name in ("structure.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for name in ("dense", "dense_longer", "pruned", "report"):
        assert (folder / f"{name}.log").stat().st_size
        assert f"| {name} " in stdout or name == "report"
    assert "dense: epoch 2 of 2, valid WER" in stdout
    assert list(started_in.iterdir()) == []


def test_rerun_trains_nothing(demo):
    folder = demo[0]
    logs = {name: name.read_bytes() for name in folder.glob("*/train_log.txt")}
    assert len(logs) == 3
    before = json.loads((folder / "report.json").read_text())
    done = run_python(DEMO, folder, "--debug_size", "--seed=5")
    assert "starting" not in done.stdout
    assert all(name.read_bytes() == text for name, text in logs.items())
    after = json.loads((folder / "report.json").read_text())
    for report in (before, after):
        for name in ("dense", "dense_longer", "pruned"):
            del report[name]["rtf"]
    assert after == before


def test_other_arguments_are_refused(demo):
    done = run_python(DEMO, demo[0], "--debug_size", "--seed=6", check=False)
    assert done.returncode == 1
    assert "holds a demo with another seed (5, not 6)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    done = run_python(DEMO, tmp_path, check=False)
    assert done.returncode == 1
    assert "holds something else than a demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failing_run_shows_its_last_words(demo):
    folder = shutil.copytree(demo[0], demo[0].with_name("broken"))
    (folder / "pruned" / "finished").unlink()
    shutil.rmtree(folder / "pruned" / "save")
    shutil.rmtree(folder / "dense" / "save")  # nothing to start from
    done = run_python(DEMO, folder, "--debug_size", "--seed=5", check=False)
    assert done.returncode == 1
    assert "Error" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: pruned failed with")


BENCHMARKS = {
    path
    for path in ROOT.glob("tests/benchmarks/*.py")
    if "__main__" in path.read_text()  # others are what benchmarks share
}


def planned(goal):
    """What `make` would run."""
    return subprocess.check_output(
        ["make", "--dry-run", goal], cwd=ROOT, text=True
    )


@pytest.mark.parametrize(
    "goal, scripts",
    [
        ("demo", {DEMO}),
        ("demo-wav2vec2", {CTC / "demo.py"}),
        ("demo-slurp", {SLURP / "demo.py"}),
        ("demo-probes", {PROBING / "run_probes.py"}),
        ("bench", BENCHMARKS),
    ],
)
def test_make_runs_what_is_tested(goal, scripts):
    found = {ROOT / name for name in re.findall(r"\S+\.py", planned(goal))}
    assert found == scripts


def test_make_test_leaves_out_no_test():
    text = planned("test").replace("\\\n", " ")
    (given,) = re.findall("-m pytest(.*)", text)
    how = "-n 2 --dist loadfile --no-loadscope-reorder"
    assert given.split() == how.split()  # what names a part would stand here
