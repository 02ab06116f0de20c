"""Every YAML in the repository loads, and prune YAMLs add only pruning."""

import re

import pytest
from hyperpyyaml import load_hyperpyyaml
from recipe_runs import RECIPE, ROOT

YAMLS = sorted(
    path
    for folder in ("hparams", "recipes")
    for path in (ROOT / folder).rglob("*.yaml")
)


def placeholders(path, folder):
    """A value for each !PLACEHOLDER: folders, or what train.yaml says."""
    names = re.findall(r"^(\w+): !PLACEHOLDER", path.read_text(), re.M)
    train = "demo_train.yaml" if path.stem.endswith("ctc") else "train.yaml"
    values = {}
    for name in names:
        if name.endswith("folder"):
            values[name] = str(folder)
        else:
            text = (RECIPE / "hparams" / train).read_text()
            (found,) = re.findall(rf"^{name}: (\S+)", text, re.M)
            values[name] = float(found) if "." in found else int(found)
    return values


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_loads(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Checkpointers make their folders
    with open(path) as file:
        hparams = load_hyperpyyaml(file, placeholders(path, tmp_path))
    assert hparams


def test_there_are_yamls():
    assert len(YAMLS) >= 7


@pytest.mark.parametrize("kind", ["", "demo_"])
def test_prune_yaml_is_train_yaml_and_the_block(kind):
    """Nothing else may drift apart: the dense run must load."""
    train = (RECIPE / f"hparams/{kind}train.yaml").read_text().splitlines()
    prune = (RECIPE / f"hparams/{kind}prune.yaml").read_text()
    prune = re.sub(r"#+ Pruning #+\n\npruning: .*?\n\n", "", prune, flags=re.S)
    changed = {
        re.match(r"\w*", line).group()
        for line in set(prune.splitlines()) ^ set(train)
        if not line.startswith("#")
    }
    assert changed <= {
        "output_folder",
        "tokenizer_folder",
        "dense_folder",
        "number_of_epochs",
        "prune_epochs",
        "target",
        "schedule_steps",
        "warmup_steps",
        "cooldown_steps",
        "total_steps",
        "update_until_epoch",
        "lr",
    }
