"""The benchmark of methods: its runs are what its table says they are."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder

from sb_prune import taylor_score
from sb_prune.run import PruningRun

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def methods():
    path = ROOT / "tests/benchmarks/conformer_methods.py"
    spec = importlib.util.spec_from_file_location("conformer_methods", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def block(methods, tmp_path, monkeypatch):
    """Function: method -> the pruning block of its YAML."""
    monkeypatch.chdir(tmp_path)

    def load(method):
        values = {"dense_folder": "dense", "data_folder": "data"}
        return load_hyperpyyaml(methods.pruning_yaml(method), values)["pruning"]

    return load


def test_every_method_makes_a_run(methods, block):
    for method in methods.all_methods():
        if method != "small_dense":
            PruningRun.from_block(block(method))


def test_methods_differ_in_what_their_names_say(block):
    soft, straight = block("l0_soft"), block("l0_straight+distill")
    assert not soft["gates"]().straight_through
    assert straight["gates"]().straight_through
    assert soft["distillation"] is None and straight["distillation"]
    assert block("taylor")["score"] is taylor_score
    kinds = block("l0_soft")["structures"].keywords["kinds"]
    assert kinds == block("magnitude")["structures"].keywords["kinds"]
    assert "layers" in block("l0_soft_modules")["structures"].keywords["kinds"]


@pytest.mark.parametrize("level", [0.5, 0.75])
def test_small_dense_is_as_large_as_what_pruning_leaves(methods, level):
    def size(d_model, d_ffn):
        encoder = ConformerEncoder(
            methods.LAYERS,
            d_model=d_model,
            d_ffn=d_ffn,
            nhead=4,
            kernel_size=methods.KERNEL,
        )
        return sum(p.numel() for p in encoder.parameters())

    budget = size(methods.WIDTH, 4 * methods.WIDTH) * (1 - level)
    assert 0.99 * budget < size(**methods.small_model(level)) <= budget


def test_cells_are_kept_and_only_the_missing_are_run(methods, tmp_path):
    table = methods.Table(tmp_path / "table.json")
    table.add("dense/1", 2.0)
    table.add("taylor/0.5/1", 3.0)
    again = methods.Table(tmp_path / "table.json")
    ran = []

    class Runs:
        has_finished = staticmethod(lambda key: key == "dense/2")

        def run(self, key):
            ran.append(key)
            return 1.0

    keys = ["dense/1", "taylor/0.5/1", "random/0.5/1", "random/0.5/2"]
    fill = partial(methods.fill, again, Runs(), jobs=1)
    fill([*keys, "small_dense/0.5/3"])
    # seed 1 is known, but its model must be there to start from
    assert ran == ["dense/1", *keys[2:], "small_dense/0.5/3"]
    assert again.summary()["table"]["random"] == {"0.5": [1.0, 1.0]}
    assert again.summary()["dense"] == [1.0]
