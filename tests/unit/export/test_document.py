"""The YAML of the dense model takes scalars from that of the training."""

from types import SimpleNamespace

import pytest
import torch

from sb_prune.export.document import prepare_document

INFERENCE = """
context: !PLACEHOLDER
lin: !new:torch.nn.Linear
    in_features: 1
    out_features: 1
modules:
    lin: !ref <lin>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        lin: !ref <lin>
"""


@pytest.fixture
def prepare(tmp_path):
    """Function: scalars of the training YAML -> the document."""

    def run(**scalars):
        path = tmp_path / "inference.yaml"
        path.write_text(INFERENCE)
        brain = SimpleNamespace(
            hparams=SimpleNamespace(**scalars),
            modules={"lin": torch.nn.Linear(1, 1)},
        )
        return prepare_document(tmp_path / "export", path, brain, "lin")

    return run


@pytest.mark.parametrize("value", [None, False, 0, 2.5, "utterance"])
def test_placeholders_are_filled(prepare, value):
    assert prepare(context=value)["context"] is value


@pytest.mark.parametrize("scalars", [{}, {"context": [1]}])
def test_what_is_no_scalar_is_named(prepare, scalars):
    with pytest.raises(ValueError, match="context is a !PLACEHOLDER, but"):
        prepare(**scalars)
