"""The wheel, in an environment of its own, runs a recipe copied elsewhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from recipe_runs import RECIPE, ROOT, TINY, TINY_PRUNE, options

SOURCES = ("sb_prune", "hparams", "setup.cfg", "pyproject.toml")
DOCUMENTS = ("README.md", "LICENSE")
FEW_EPOCHS = {"number_of_epochs": 2, "prune_epochs": 1, "schedule_steps": 2}


def run(*command, cwd):
    """What a command prints; nothing of this clone is on its path."""
    hidden = {"PYTHONPATH", "PYTHONHOME"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={
            **{k: v for k, v in os.environ.items() if k not in hidden},
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def pip(*arguments, cwd):
    run(sys.executable, "-m", "pip", "--quiet", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree, built where it leaves nothing in the clone.

    By this environment's setuptools, since there may be no network.
    """
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES[:2]:
        shutil.copytree(
            ROOT / name,
            tree / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in (*SOURCES[2:], *DOCUMENTS):
        shutil.copy(ROOT / name, tree)
    pip("wheel", "--no-deps", "--no-build-isolation", ".", cwd=tree)
    (built,) = tree.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(tmp_path_factory, wheel):
    """Python that has the wheel, and of this one's packages all but ours.

    They are on its path through a .pth file, whose folder's own .pth files,
    the one of an editable sb_prune among them, are not read.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin/python"
    pip("--python", python, "install", "--no-deps", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "heavy.pth").write_text("\n".join(sorted(paths)))
    return python


def test_the_package_is_that_of_the_wheel(python, tmp_path):
    where = "import sb_prune; print(sb_prune.__file__)"
    found = Path(run(python, "-c", where, cwd=tmp_path).strip())
    assert python.parents[1] in found.parents


def test_presets_are_in_the_wheel(python, tmp_path):
    listed = run(python, "-m", "sb_prune.presets", cwd=tmp_path)
    names = {path.stem for path in (ROOT / "hparams").glob("*.yaml")}
    assert {line.split()[0] for line in listed.splitlines()} == names


def test_a_recipe_copied_out_of_the_clone(python, corpus, tmp_path):
    recipe = tmp_path / "recipe"
    shutil.copytree(RECIPE, recipe)  # what links lead to, no links
    results = tmp_path / "results"

    def train(yaml, values, **more):
        flags = options(values, data_folder=corpus, **more)
        run(python, "train.py", f"hparams/{yaml}.yaml", *flags, cwd=recipe)

    train(
        "demo_train",
        {**TINY, "number_of_epochs": 1},
        output_folder=results / "dense",
    )
    train(
        "demo_prune",
        {**TINY_PRUNE, **FEW_EPOCHS},
        output_folder=results / "pruned",
        dense_folder=results / "dense",
    )
    assert (
        "name: conformer_l0" in (recipe / "hparams/demo_prune.yaml").read_text()
    )
    (dense,) = results.glob("dense/save/*/model.ckpt")
    export = results / "pruned/export/model.ckpt"
    assert export.stat().st_size < 0.95 * dense.stat().st_size
